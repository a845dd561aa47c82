"""Encodings that are undefined, and #UD before #NM.

SDM, volume 2, the instructions' pages and the appendix "Opcode Map"; volume 3, "Interrupt 6 -
Invalid Opcode Exception (#UD)".
"""

import iced_x86 as iced
import pytest

from tests.conformance.tiny_guest import (
    CODE,
    DATA,
    GDT,
    MEMORY,
    MODES,
    STACK,
    VMCALL,
    Run,
    Tiny,
    begin,
)
from trapgate.processor.processor import Processor
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import NM, UD
from trapgate.vmcs.vmcs import Vmcs

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
EVERYTHING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
PRIMARY = "PRIMARY_PROCESSOR_BASED_CONTROLS"
BITS = {"r16": 16, "p32": 32, "pae": 32, "l64": 64}
EM, TS = 4, 8
OSFXSR = 1 << 9


def met(run: Run) -> tuple[int, int | None, int] | str:
    """Vector, error code and offset in the code of the exception that exited, or its reason."""
    event = run.exit.interruption
    if event is None:
        return run.exit.reason.name
    start = CODE if run.guest.mode != "r16" else 0
    return event.vector, event.error_code, run.vmcs["GUEST_RIP"] - start


def meets(guest: Tiny, engine: str, **controls: int) -> tuple[int, int | None, int] | str:
    return met(begin(guest, EVERYTHING | controls, engine=engine))


class Machine:
    """One processor for thousands of instructions, each in a guest that is set up anew."""

    def __init__(self, engine: str, mode: str) -> None:
        self.guest = Tiny(mode)
        self.processor = Processor(MEMORY, engine=engine)
        tables = self.guest.tables()
        for address, data in tables.items():
            self.processor.memory.write(address, data)
        # What an instruction may spoil for the next one.
        self._kept = {at: data for at, data in tables.items() if GDT <= at < GDT + 0x80}
        self._kept |= {STACK - 0x40: bytes(0x40), DATA: bytes(0x40)}

    def is_undefined(self, code: bytes) -> bool:
        """Whether `code` is #UD."""
        processor, vmcs = self.processor, Vmcs()
        for address, data in self._kept.items():
            processor.memory.write(address, data)
        processor.memory.write(CODE, code + VMCALL * 2)
        if self.guest.mode != "r16":
            vmcs.set_flat_segments(64 if self.guest.long else 32)
        for name, value in self.guest.state().items():
            vmcs[name] = value
        vmcs["PIN_BASED_CONTROLS"] |= ct.PIN_PREEMPTION_TIMER
        vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 50
        vmcs[PRIMARY] |= ct.PRIMARY_SECONDARY_CONTROLS
        vmcs["SECONDARY_PROCESSOR_BASED_CONTROLS"] |= ct.SECONDARY_RDTSCP
        vmcs["EXCEPTION_BITMAP"] = 0xFFFFFFFF
        for name in ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9"):
            setattr(processor.registers, name, DATA)
        end = processor.vmlaunch(vmcs)
        assert isinstance(end, VmExit)
        start = CODE if self.guest.mode != "r16" else 0
        return (
            end.interruption is not None
            and end.interruption.vector == UD
            and vmcs["GUEST_RIP"] == start
        )


@pytest.fixture(params=[(e, m) for e in ENGINES for m in ("r16", "p32", "l64")], ids="-".join)
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(*request.param)


# Undefined encodings. The oracle is a decoder (iced-x86) that knows nothing of ours.

MEMORY_FORM, REGISTER_FORM = 0x00, 0xC1
ESCAPES = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")
PREFIXES = {0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3}


def test_lock_is_undefined_but_before_a_read_and_write_of_memory(machine: Machine) -> None:
    bits = BITS[machine.guest.mode]
    step = 1 if machine.processor.engine.cells[0] else 5
    wrong = []
    seen = 0
    for escape in ESCAPES[:2]:
        for opcode in range(0, 256, step):
            if not escape and (opcode in PREFIXES or opcode in (0x0F, 0x62, 0xC4, 0xC5)):
                continue
            if not escape and bits == 64 and opcode & 0xF0 == 0x40:
                continue
            for form in (MEMORY_FORM | 8, REGISTER_FORM):
                code = b"\xf0" + escape + bytes((opcode, form)) + bytes(10)
                allowed = not iced.Decoder(bits, code).decode().is_invalid
                seen += allowed
                if machine.is_undefined(code) and allowed:
                    wrong.append(("refused", code.hex()))
                elif not allowed and not machine.is_undefined(code):
                    wrong.append(("taken", code.hex()))
    assert wrong == []
    assert seen > 3


UNDEFINED = {
    "extrq": "660f78c00000",
    "extrq register": "660f79c1",
    "insertq": "f20f78c10000",
    "insertq register": "f20f79c1",
    "movntss": "f30f2b00",
    "movntsd": "f20f2b00",
    "xabort": "c6f800",
    "xbegin": "c7f800000000",
    "group 11 of a register": "c6f900",
    "xop": "8fc9",
    "pop with reg 1": "8f08",
    "vmcall behind 66": "660f01c1",
    "monitor behind f2": "f20f01c8",
    "clac behind f3": "f30f01ca",
    "movlpd of registers": "660f12c1",
    "movmskps of memory": "0f5000",
    "psrlw of memory": "0f711000",
    "pslldq of mmx": "0f73f800",
    "fxsave behind 66": "660fae00",
    "lfence behind f3": "f30faee8",
    "tpause": "660faef0",
    "umonitor": "f30faef0",
    "umwait": "f20faef0",
    "movnti behind 66": "660fc300",
    "movdq2q of memory": "f20fd600",
    "lock cpuid": "f00fa2",
    "lock hlt": "f0f4",
    "lock rdtsc": "f00f31",
    "lock int3": "f0cc",
    "lock clts": "f00f06",
    "lock pushf": "f09c",
    "lock nop": "f090",
    "lock iret": "f0cf",
    "lock vmread": "f00f78c0",
    "lock vmcall": "f00f01c1",
    "lock mov cr0": "f00f20c0",
    "lock int1": "f0f1",
    "lock sti": "f0fb",
    "lock out": "f0ee",
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", UNDEFINED)
def test_what_is_undefined_comes_before_anything_else(name: str, mode: str, engine: str) -> None:
    code = bytes.fromhex(UNDEFINED[name])
    guest = Tiny(mode, code=code, registers={"rax": DATA, "rbx": DATA, "rsi": 0})
    # HLT, RDTSC and port accesses would exit.
    controls = {PRIMARY: ct.PRIMARY_HLT_EXITING | ct.PRIMARY_RDTSC_EXITING | 1 << 24}
    assert meets(guest, engine, **controls) == (UD, None, 0)


DEFINED = {
    "reserved nop 0d": "0f0dc0",
    "reserved nop 18": "0f18c0",
    "reserved nop 1f": "0f1fc0",
    "test with reg 1": "f6c801",
    "test with reg 1, wide": "f7c801000000",
    "vmcall": "0f01c1",
    "lzcnt is bsr": "f30fbdc1",
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", DEFINED)
def test_what_is_defined_although_it_looks_odd(name: str, engine: str) -> None:
    for mode in ("p32", "l64"):
        assert meets(Tiny(mode, code=bytes.fromhex(DEFINED[name])), engine) == "VMCALL"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_second_encoding_of_test_sets_flags(engine: str) -> None:
    run = begin(Tiny("l64", code=bytes.fromhex("f6c880"), registers={"rax": 0x180}), engine=engine)
    assert run.exit.reason is ExitReason.VMCALL
    assert run.vmcs["GUEST_RFLAGS"] & 0xC1 == 0x80


# #UD before #NM.

MMX, SSE, SSE_38, CRC32, EMMS = "0f6f00", "0f57c0", "660f3800c1", "f20f38f0c1", "0f77"
FXSAVE, LDMXCSR, X87, PSHUFB_MMX, NO_38 = "0fae00", "0fae10", "d9e8", "0f3800c1", "0f38ffc0"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["p32", "l64"])
@pytest.mark.parametrize(
    ("code", "cr0", "osfxsr", "expected"),
    [
        (MMX, EM | TS, True, UD),
        (MMX, TS, True, NM),
        (MMX, TS, False, NM),
        (MMX, 0, False, None),
        (EMMS, EM | TS, True, UD),
        (SSE, EM | TS, True, UD),
        (SSE, TS, False, UD),
        (SSE, TS, True, NM),
        (SSE_38, TS, False, UD),
        (SSE_38, TS, True, NM),
        (PSHUFB_MMX, TS, False, NM),
        (PSHUFB_MMX, TS | EM, False, UD),
        (LDMXCSR, TS, False, UD),
        (LDMXCSR, TS, True, NM),
        (FXSAVE, TS, False, NM),
        (FXSAVE, EM, True, NM),
        (X87, EM | TS, True, NM),
        (CRC32, TS, False, None),
        (NO_38, TS, True, UD),
    ],
)
def test_invalid_opcode_comes_before_device_not_available(
    code: str, cr0: int, osfxsr: bool, expected: int | None, mode: str, engine: str
) -> None:
    guest = Tiny(mode, code=bytes.fromhex(code), registers={"rax": DATA})
    guest.fields["GUEST_CR0"] = guest.state()["GUEST_CR0"] | cr0
    if not osfxsr:
        guest.fields["GUEST_CR4"] = guest.state()["GUEST_CR4"] & ~OSFXSR
    found = meets(guest, engine)
    assert found == ("VMCALL" if expected is None else (expected, None, 0))


@pytest.mark.parametrize("engine", ENGINES)
def test_task_switched_is_hidden_from_one_instruction_only(engine: str) -> None:
    """CRC32, which CR0.TS does not concern, and MOVAPS behind it in the same block."""
    guest = Tiny("p32", code=bytes.fromhex(CRC32 + "0f28c1"))
    guest.fields["GUEST_CR0"] = guest.state()["GUEST_CR0"] | TS
    assert meets(guest, engine) == (NM, None, len(bytes.fromhex(CRC32)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["r16", "p32", "l64"])
def test_crc32_needs_no_state_of_vectors(mode: str, engine: str) -> None:
    # Its page knows neither CR0.EM and CR0.TS nor CR4.OSFXSR. The instruction behind it does.
    for prefix in ("", "66"):
        for opcode in ("f20f38f0c1", "f20f38f1c1"):
            code = bytes.fromhex(prefix + opcode)
            for behind, osfxsr, vector in (("0f58c0", 0, UD), ("0f6fc1", OSFXSR, UD)):
                guest = Tiny(mode, code=code * 2 + bytes.fromhex(behind))
                state = guest.state()
                guest.fields["GUEST_CR0"] = state["GUEST_CR0"] | EM | TS
                guest.fields["GUEST_CR4"] = state["GUEST_CR4"] & ~OSFXSR | osfxsr
                assert meets(guest, engine) == (vector, None, 2 * len(code))
            guest = Tiny(mode, code=code + b"\x0f\x58\xc0")
            guest.fields["GUEST_CR0"] = guest.state()["GUEST_CR0"] | TS
            assert meets(guest, engine) == (NM, None, len(code))
