"""Every opcode that has a ModR/M byte, with each prefix and form: what is no instruction is #UD.

The authority is iced-x86's opcode table, as far as the features that CPUID shows go. #UD comes
before #NM, so CR0.TS is 1; and before page faults, so the operand in memory is absent.
"""

from collections.abc import Iterator

import iced_x86 as iced
import pytest
from iced_x86 import CpuidFeature as Feature

from tests.conformance.tiny_guest import ABSENT, CODE, DATA, VMCALL, Tiny, prepare
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm.vectors import UD

pytestmark = pytest.mark.conformance

TS = 8
HLT_AND_MOV_DR = 1 << 7 | 1 << 23
PREFIXES = (b"", b"\x66", b"\xf3", b"\xf2")
FORMS = [0x03 | field << 3 for field in range(8)] + [0xC0 | field << 3 for field in range(8)]
"""[BX], [EBX] or [RBX], and the first register, with each REG field."""
LEFT_OUT = {
    *range(0x80, 0x90),  # near branches
    *(0x05, 0x07, 0x34, 0x35, 0x38, 0x3A, 0xAA),  # other ways out, escapes, RSM
    *(0x0D, 0x18, 0x1C, 0x1E),  # NOPs that later processors gave a meaning
    *(0x0B, 0xB9, 0xFF),  # UD2, UD1 and UD0, which are #UD
}
FEATURES = {
    *(Feature.INTEL8086, Feature.INTEL186, Feature.INTEL286, Feature.INTEL386, Feature.INTEL486),
    *(
        Feature.FPU,
        Feature.FPU287,
        Feature.FPU387,
        Feature.X64,
        Feature.MMX,
        Feature.SSE,
        Feature.SSE2,
        Feature.SSE3,
        Feature.SSSE3,
    ),
    *(Feature.SSE4_1, Feature.SSE4_2, Feature.POPCNT, Feature.CX8, Feature.CMPXCHG16B),
    *(Feature.CMOV, Feature.FXSR, Feature.SEP, Feature.SYSCALL, Feature.TSC, Feature.MSR),
    *(Feature.RDTSCP, Feature.RDPMC, Feature.CLFSH, Feature.CLFLUSHOPT, Feature.RDRAND),
    *(Feature.SMAP, Feature.MONITOR, Feature.MULTIBYTENOP, Feature.CPUID),
    *(Feature.VMX, Feature.INVEPT, Feature.INVVPID),
}
NOT_NOW = {iced.Mnemonic.XGETBV, iced.Mnemonic.XSAVE, iced.Mnemonic.XRSTOR}
"""#UD as long as CR4.OSXSAVE is 0; for such reasons INVPCID and RDFSBASE are not in FEATURES."""
PREFIX_IGNORED = {"wbnoinvd", "tzcnt", "lzcnt"}
"""On a processor without them they are the instruction without F3H."""


GROUPS = [
    *(0x62, 0x80, 0x81, 0x83, 0x8C, 0x8D, 0x8E, 0x8F, 0xC0, 0xC1, 0xC6, 0xC7),
    *(0xD0, 0xD1, 0xD2, 0xD3, *range(0xD8, 0xE0), 0xF6, 0xF7, 0xFE, 0xFF),
]
"""Opcodes without escape some forms of which are no instructions."""


def encodings(bits: int, escape: bytes) -> Iterator[tuple[bytes, bool]]:
    """Code, and whether it is an instruction."""
    for opcode in range(256) if escape else GROUPS:
        if len(escape) == 1 and opcode in LEFT_OUT:
            continue
        of_x87 = not escape and 0xD8 <= opcode <= 0xDF
        for prefix in PREFIXES:
            for form in (*FORMS[:8], *range(0xC0, 0x100)) if of_x87 else FORMS:
                code = prefix + escape + bytes([opcode, form, 0, 0, 0, 0])
                instruction = iced.Decoder(bits, code + bytes(4)).decode()
                name = str(instruction).split()[0]
                features = set(instruction.cpuid_features())
                known = features <= FEATURES or name in PREFIX_IGNORED
                is_one = not instruction.is_invalid and known
                if name == "mov" and opcode in (0x20, 0x21, 0x22, 0x23):
                    continue  # the register decides
                yield code, is_one and instruction.mnemonic not in NOT_NOW


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("mode", ["p32", "l64"])
@pytest.mark.parametrize("escape", [b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a"])
def test_what_is_no_instruction_is_undefined(escape: bytes, mode: str, engine: str) -> None:
    registers = dict.fromkeys(("rax", "rsi", "rdi", "rbp"), DATA)
    guest = Tiny(mode, registers=registers | {"rbx": ABSENT, "rcx": 0, "rdx": 0})
    guest.fields["GUEST_CR0"] = guest.state()["GUEST_CR0"] | TS
    controls = {"EXCEPTION_BITMAP": 0xFFFFFFFF, "PRIMARY_PROCESSOR_BASED_CONTROLS": HLT_AND_MOV_DR}
    processor, vmcs = prepare(guest, controls, engine=engine)
    wrong = []
    enter = processor.vmlaunch
    for code, is_one in encodings(64 if mode == "l64" else 32, escape):
        processor.memory.write(CODE, code + VMCALL * 4)
        for name, value in guest.state().items():
            vmcs[name] = value
        vmcs["GUEST_ACTIVITY_STATE"] = 0
        for name, value in guest.registers.items():
            setattr(processor.registers, name, value)
        end = enter(vmcs)
        enter = processor.vmresume
        assert isinstance(end, VmExit)
        vector = None if end.interruption is None else end.interruption.vector
        at_it = vmcs["GUEST_RIP"] in (CODE, 0)
        if (vector == UD and at_it) == is_one:
            wrong.append((code.hex(" "), end.reason.name, vector))
    assert wrong == []
