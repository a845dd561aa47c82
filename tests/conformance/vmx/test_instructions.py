"""Every VMX instruction, and every way in which it fails.

SDM, "VMX Instruction Reference": VMsucceed, VMfailInvalid (CF), VMfailValid (ZF, and the
VM-instruction error), and the faults #UD, #GP, #SS and #PF.
"""

from struct import pack

import pytest

from tests.conformance import tiny_guest as tiny
from tests.conformance.x86_vmm import (
    AREA,
    EXITED,
    FAULTED,
    FELL_THROUGH,
    MODES,
    OTHER_VMCS,
    POINTERS,
    VMCS_REGION,
    VMXON_REGION,
    Assembler,
    X86Vmm,
)
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import vmx
from trapgate.sdm.fields import Field
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

OK, INVALID, VALID = 0, 1, 0x40
OTHER, SCRATCH = POINTERS + 16, POINTERS + 24
GP, UD, PF, SS = 13, 6, 14, 12
RING_3_CODE = 0x58000

FAILURES = {
    "vmclear of an unaligned address": ("vmclear", VMCS_REGION + 8, 2),
    "vmclear beyond the physical width": ("vmclear", 1 << 41 | VMCS_REGION, 2),
    "vmclear of the VMXON region": ("vmclear", VMXON_REGION, 3),
    "vmptrld of an unaligned address": ("vmptrld", VMCS_REGION + 8, 9),
    "vmptrld beyond the physical width": ("vmptrld", 1 << 63 | VMCS_REGION, 9),
    "vmptrld of the VMXON region": ("vmptrld", VMXON_REGION, 10),
    "vmptrld of another revision": ("vmptrld", AREA, 11),
    "vmxon in root operation": ("vmxon", VMXON_REGION, 15),
}


def run(mode: str, program: bytes, **more: object) -> X86Vmm:
    """A VMM that executes `program` and leaves by an OUT."""
    vmm = X86Vmm(mode, program=program, **more)  # type: ignore[arg-type]
    vmm.port = vmm.run()  # type: ignore[attr-defined]
    return vmm


def begin(a: Assembler) -> bytes:
    """VMXON, VMCLEAR, VMPTRLD."""
    return a.vmxon() + a.vmclear() + a.vmptrld()


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def a(mode: str) -> Assembler:
    return Assembler(mode == "l64")


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("current", [False, True])
def test_failures_with_a_pointer(mode: str, a: Assembler, name: str, current: bool) -> None:
    instruction, pointer, error = FAILURES[name]
    program = begin(a) if current else a.vmxon()
    program += getattr(a, instruction)(SCRATCH)
    vmm = run(mode, program, memory={SCRATCH: pack("<Q", pointer)})
    if current:
        assert (vmm.flags, vmm["VM_INSTRUCTION_ERROR"]) == (VALID, error)
    else:
        assert vmm.flags == INVALID


@pytest.mark.parametrize(
    "pointer", [VMXON_REGION + 1, 1 << 40 | VMXON_REGION, AREA], ids=["unaligned", "wide", "other"]
)
def test_vmxon_fails_invalid(mode: str, a: Assembler, pointer: int) -> None:
    vmm = run(mode, a.vmxon(SCRATCH), memory={SCRATCH: pack("<Q", pointer)})
    assert (vmm.flags, vmm.processor.x86_vmm.in_vmx_operation) == (INVALID, False)


def test_vmxon_wants_feature_control(mode: str, a: Assembler) -> None:
    for value in (0, vmx.FEATURE_LOCKED, vmx.FEATURE_VMX_OUTSIDE_SMX):
        vmm = X86Vmm(mode, program=a.vmxon())
        vmm.processor.x86_vmm.state[vmx.FEATURE_CONTROL] = value
        assert (vmm.run(), vmm.vector) == (FAULTED, GP)


def test_vmxon_wants_vmxe(mode: str, a: Assembler) -> None:
    vmm = X86Vmm(mode, program=a.vmxon())
    vmm.vmcs["CR4_READ_SHADOW"] &= ~0x2000
    vmexit = vmm.processor.vmlaunch(vmm.vmcs)
    # To the VMM in Python, which gives its guest #UD.
    assert isinstance(vmexit, VmExit)
    assert vmexit.reason == ExitReason.VMXON


@pytest.mark.parametrize("name", ["vmread", "vmwrite", "vmlaunch", "vmresume", "vmcall"])
def test_nothing_current_is_invalid(mode: str, a: Assembler, name: str) -> None:
    code = {
        "vmread": a.vmread(int(Field.EXIT_REASON)),
        "vmwrite": a.vmwrite(int(Field.EXCEPTION_BITMAP), 1),
        "vmlaunch": a.vmlaunch,
        "vmresume": a.vmresume,
        "vmcall": a.vmcall,
    }[name]
    assert run(mode, a.vmxon() + code).flags == INVALID


def test_pointers(mode: str, a: Assembler) -> None:
    vmm = run(mode, a.vmxon() + a.vmptrst(SCRATCH))
    assert vmm.processor.memory.read(SCRATCH, 8) == b"\xff" * 8
    vmm = run(mode, begin(a) + a.vmptrld(OTHER) + a.vmptrst(SCRATCH))
    assert vmm.processor.memory.read(SCRATCH, 8) == pack("<Q", OTHER_VMCS)
    vmm = run(mode, begin(a) + a.vmclear() + a.vmptrst(SCRATCH))
    assert vmm.processor.memory.read(SCRATCH, 8) == b"\xff" * 8


def test_fields_live_in_their_regions(mode: str, a: Assembler) -> None:
    bitmap, reason = int(Field.EXCEPTION_BITMAP), int(Field.TSC_OFFSET)
    program = begin(a) + a.vmwrite(bitmap, 0x1234) + a.vmwrite(reason, 0x5678)
    program += a.vmclear(OTHER) + a.vmptrld(OTHER) + a.vmwrite(bitmap, 0x9999)
    vmm = run(mode, program + a.vmptrld() + a.vmread(bitmap))
    assert (vmm.flags, vmm.processor.registers.rax) == (OK, 0x1234)
    assert vmm["TSC_OFFSET"] == 0x5678


@pytest.mark.parametrize("encoding", [0x6FFE, 0x4, 0x1000, 0x8000, 0x4001, 0x20FE, 0x10000])
def test_fields_that_are_not_there(mode: str, a: Assembler, encoding: int) -> None:
    for code in (a.vmread(encoding), a.load(2, encoding) + b"\x0f\x79\xd0"):
        vmm = run(mode, begin(a) + code)
        assert (vmm.flags, vmm["VM_INSTRUCTION_ERROR"]) == (VALID, 12)


def test_exit_information_can_be_written(mode: str, a: Assembler) -> None:
    """As bit 29 of IA32_VMX_MISC says."""
    vmm = run(mode, begin(a) + a.vmwrite(int(Field.EXIT_REASON), 1))
    assert (vmm.flags, vmm["EXIT_REASON"]) == (OK, 1)


def test_widths(mode: str, a: Assembler) -> None:
    ones = (1 << 64) - 1
    long = mode == "l64"
    names = ("GUEST_CS_SELECTOR", "EXCEPTION_BITMAP", "TSC_OFFSET", "GUEST_RSP")
    program = begin(a)
    for name in names:
        program += a.load(2, int(Field[name])) + a.load(0, ones) + b"\x0f\x79\xd0"
    vmm = run(mode, program)
    full = ones if long else 0xFFFFFFFF
    assert [vmm[name] for name in names] == [0xFFFF, 0xFFFFFFFF, full, full]


def test_halves_of_a_field(mode: str, a: Assembler) -> None:
    offset = int(Field.TSC_OFFSET)
    program = begin(a) + a.vmwrite(offset, 0x1111_2222_3333_4444)
    program += a.load(2, offset | 1) + a.load(0, 0xAAAA_BBBB) + b"\x0f\x79\xd0"
    vmm = run(mode, program + a.vmread(offset | 1))
    assert vmm["TSC_OFFSET"] == 0xAAAA_BBBB_3333_4444
    assert vmm.processor.registers.rax == 0xAAAA_BBBB
    assert run(mode, program + a.vmread(offset)).processor.registers.rax == (
        0xAAAA_BBBB_3333_4444 if mode == "l64" else 0x3333_4444
    )


def test_memory_operands(mode: str, a: Assembler) -> None:
    size = 8 if mode == "l64" else 4
    bitmap = a.load(2, int(Field.EXCEPTION_BITMAP))
    program = begin(a) + bitmap
    program += b"\x0f\x79" + a.absolute(2, SCRATCH)  # vmwrite rdx, [scratch]
    program += b"\x0f\x78" + a.absolute(2, AREA)  # vmread [area], rdx
    vmm = run(mode, program, memory={SCRATCH: pack("<Q", 0xFEDC_BA98_7654_3210)})
    assert vmm["EXCEPTION_BITMAP"] == 0x7654_3210
    read = vmm.processor.memory.read(AREA, 8)
    assert read == pack("<Q", 0x7654_3210)[:size].ljust(8, b"\0")


ADDRESSING = {
    # vmptrst with rbx = AREA - 100H, rsi = 20H
    "base and displacement": (b"\x0f\xc7\xbb" + pack("<i", 0x140), AREA + 0x40),
    "small displacement": (b"\x0f\xc7\x7b\x7f", AREA - 0x100 + 0x7F),
    "negative displacement": (b"\x0f\xc7\x7b\x80", AREA - 0x100 - 0x80),
    "scaled index": (b"\x0f\xc7\x7c\xf3\x08", AREA - 0x100 + 8 * 0x20 + 8),
    "index without base": (b"\x0f\xc7\x3c\xb5" + pack("<I", AREA), AREA + 4 * 0x20),
    "segment override": (b"\x26\x0f\xc7\x3b", AREA - 0x100),
}


@pytest.mark.parametrize("name", ADDRESSING)
def test_addressing(mode: str, a: Assembler, name: str) -> None:
    code, address = ADDRESSING[name]
    load = a.load(3, AREA - 0x100) + a.load(6, 0x20)
    vmm = run(mode, begin(a) + load + code)
    assert vmm.processor.memory.read(address, 8) == pack("<Q", VMCS_REGION)


def test_addressing_of_64_bits() -> None:
    a = Assembler(long=True)
    # vmptrst [r11 + r14 * 2], then vmptrst [rip + 100H]
    extended = b"\x49\x89\xdb\x49\x89\xf6\x43\x0f\xc7\x3c\x73"
    load = a.load(3, AREA) + a.load(6, 0x20)
    relative = b"\x0f\xc7\x3d" + pack("<i", 0x100)
    program = begin(a) + load + extended + relative
    vmm = run("l64", program)
    assert vmm.processor.memory.read(AREA + 0x40, 8) == pack("<Q", VMCS_REGION)
    end = tiny.CODE + len(program) + 0x100
    assert vmm.processor.memory.read(end, 8) == pack("<Q", VMCS_REGION)


def test_an_operand_across_two_pages(mode: str, a: Assembler) -> None:
    at = AREA + 0x1000 - 3
    vmm = run(mode, begin(a) + a.vmptrst(at))
    assert vmm.processor.memory.read(at, 8) == pack("<Q", VMCS_REGION)


@pytest.mark.parametrize("name", ["vmxon", "vmclear", "vmptrld", "vmptrst"])
def test_page_faults_of_operands(mode: str, a: Assembler, name: str) -> None:
    code = getattr(a, name)(tiny.ABSENT)
    program = code if name == "vmxon" else a.vmxon() + code
    vmm = run(mode, program)
    assert (vmm.port, vmm.vector) == (FAULTED, PF)  # type: ignore[attr-defined]
    assert vmm.processor.registers.cr2 == tiny.ABSENT
    pushed = vmm.processor.memory.read(vmm.vmcs["GUEST_RSP"], 4)
    assert int.from_bytes(pushed, "little") == (2 if name == "vmptrst" else 0)


def test_a_read_only_page_cannot_be_stored_to(mode: str, a: Assembler) -> None:
    vmm = run(mode, a.vmxon() + a.vmptrst(tiny.READ_ONLY))
    assert (vmm.port, vmm.vector) == (FAULTED, PF)  # type: ignore[attr-defined]


def test_segments_of_operands() -> None:
    a = Assembler(long=False)
    vmm = run("p32", a.vmxon() + b"\x2e" + a.vmptrst(AREA))  # cs: is not writable
    assert (vmm.port, vmm.vector) == (FAULTED, GP)  # type: ignore[attr-defined]
    long = Assembler(long=True)
    far = long.load(3, 1 << 47)
    vmm = run("l64", long.vmxon() + far + b"\x0f\xc7\x3b")  # vmptrst [rbx]
    assert (vmm.port, vmm.vector) == (FAULTED, GP)  # type: ignore[attr-defined]
    far = long.load(5, 1 << 47)
    vmm = run("l64", long.vmxon() + far + b"\x0f\xc7\x7d\x00")  # vmptrst [rbp]
    assert (vmm.port, vmm.vector) == (FAULTED, SS)  # type: ignore[attr-defined]


def test_launch_state(mode: str, a: Assembler) -> None:
    vmm = X86Vmm(mode, handler=a.vmlaunch)
    assert vmm.run() == EXITED
    assert (vmm.flags, vmm["VM_INSTRUCTION_ERROR"]) == (VALID, 4)
    vmm = X86Vmm(mode, handler=a.vmclear() + a.vmptrld() + a.vmresume)
    assert vmm.run() == EXITED
    assert (vmm.flags, vmm["VM_INSTRUCTION_ERROR"]) == (VALID, 5)


@pytest.mark.parametrize("enabled", [False, True])
def test_entry_behind_mov_ss(mode: str, a: Assembler, enabled: bool) -> None:
    sti = b"\xfb\x90" if enabled else b""
    vmm = run(mode, begin(a) + sti + b"\x8c\xd0\x8e\xd0" + a.vmlaunch)
    assert (vmm.flags, vmm["VM_INSTRUCTION_ERROR"]) == (VALID, 26)


def test_vmcall_in_root(mode: str, a: Assembler) -> None:
    vmm = run(mode, begin(a) + a.vmcall)
    assert (vmm.flags, vmm["VM_INSTRUCTION_ERROR"]) == (VALID, 1)


def test_vmxoff(mode: str, a: Assembler) -> None:
    vmm = run(mode, begin(a) + a.vmxoff)
    assert (vmm.flags, vmm.processor.x86_vmm.in_vmx_operation) == (OK, False)


def test_invept_is_undefined_without_ept(mode: str, a: Assembler) -> None:
    # The portable engine's page walks are its own.
    vmm = run(mode, a.vmxon() + b"\x66\x0f\x38\x80" + a.absolute(0, AREA), engine="portable")
    assert (vmm.port, vmm.vector) == (FAULTED, UD)  # type: ignore[attr-defined]


INVVPID = {
    "address": (0, 1, 0x1000, OK),
    "address of VPID 0": (0, 0, 0x1000, VALID),
    "address not canonical": (0, 1, 1 << 60, VALID),
    "single": (1, 1, 0, OK),
    "single of VPID 0": (1, 0, 0, VALID),
    "all": (2, 0, 0, OK),
    "all but globals": (3, 1, 0, OK),
    "unknown type": (4, 1, 0, VALID),
    "reserved bits": (1, 1 << 16 | 1, 0, VALID),
}


@pytest.mark.parametrize("name", INVVPID)
def test_invvpid(mode: str, a: Assembler, name: str) -> None:
    kind, vpid, address, flags = INVVPID[name]
    program = begin(a) + a.load(0, kind) + b"\x66\x0f\x38\x81" + a.absolute(0, AREA)
    vmm = run(mode, program, memory={AREA: pack("<QQ", vpid, address)})
    assert vmm.flags == flags
    assert vmm["VM_INSTRUCTION_ERROR"] == (28 if flags else 0)


@pytest.mark.parametrize("code", [0x80, 0x81], ids=["invept", "invvpid"])
def test_task_switched_keeps_no_vmx_instruction_from_working(
    mode: str, a: Assembler, code: int
) -> None:
    # VMMs keep CR0.TS set, and the engine takes these opcodes for SSE.
    task_switched = b"\x0f\x20\xc0" + b"\x0f\xba\xe8\x03" + b"\x0f\x22\xc0"
    instruction = a.load(0, 2) + bytes([0x66, 0x0F, 0x38, code]) + a.absolute(0, AREA)
    for program in (instruction, task_switched + instruction):
        vmm = run(mode, begin(a) + program, memory={AREA: bytes(16)})
        if vmm.port == FAULTED:  # type: ignore[attr-defined]
            assert (code, vmm.vector) == (0x80, UD)
        else:
            assert vmm.flags == OK


@pytest.mark.parametrize("register", [0, 4], ids=["cr0", "cr4"])
def test_fixed_bits_stay_set(mode: str, a: Assembler, register: int) -> None:
    # MOV RAX, CRn; BTR EAX, bit; MOV CRn, RAX: paging, protection and VMXE are fixed.
    for bit in (13,) if register == 4 else (31, 0):
        modify = b"\x0f\x20" + bytes([0xC0 | register << 3])
        modify += b"\x0f\xba\xf0" + bytes([bit])
        modify += b"\x0f\x22" + bytes([0xC0 | register << 3])
        vmm = X86Vmm(mode, program=a.vmxon() + modify)
        if register == 4:
            # The VMM in Python owns CR4.VMXE, and sees what happens.
            vmexit = vmm.processor.vmlaunch(vmm.vmcs)
            assert isinstance(vmexit, VmExit)
            assert vmexit.reason == ExitReason.CONTROL_REGISTER_ACCESS
        else:
            assert (vmm.run(), vmm.vector) == (FAULTED, GP)


def test_registers_as_operands_of_memory_instructions(mode: str, a: Assembler) -> None:
    # Those of VMCLEAR and VMPTRLD are RDRAND.
    for code in (b"\xf3\x0f\xc7\xf0", b"\x0f\xc7\xf8"):
        vmm = run(mode, a.vmxon() + code)
        assert (vmm.port, vmm.vector) == (FAULTED, UD)  # type: ignore[attr-defined]


def test_all_is_well(mode: str, a: Assembler) -> None:
    vmm = X86Vmm(mode)
    assert (vmm.run(), vmm.reason) == (EXITED, ExitReason.CPUID)
    vmm = run(mode, begin(a))
    assert (vmm.port, vmm.flags) == (FELL_THROUGH, OK)  # type: ignore[attr-defined]
