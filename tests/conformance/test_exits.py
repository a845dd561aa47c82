"""Every exit reason that is implemented: once exiting, once not, on real guest code.

Reason, qualification, instruction length and interruption information are the SDM's
("VM Exits", "Exit Qualification"); where a control says "no exit", what the
instruction does to the guest is checked instead.
"""

from collections.abc import Mapping
from struct import pack

import pytest

from tests.conformance import tiny_guest as tg
from tests.conformance.tiny_guest import CODE, DATA, Run, Tiny, begin, handler, launch, prepare
from trapgate.decision.faults import Interruption
from trapgate.processor.processor import IdleError
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import controls as ct
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

PIN, PRIMARY, SECONDARY = (
    "PIN_BASED_CONTROLS",
    "PRIMARY_PROCESSOR_BASED_CONTROLS",
    "SECONDARY_PROCESSOR_BASED_CONTROLS",
)
MODES = ("p32", "l64")
ALL_ONES = (1 << 64) - 1
GP, PF, UD = 13, 14, 6
NOP = b"\x90"

Controls = Mapping[str, int]


def at_end(run: Run) -> None:
    """The guest went through its code to the VMCALL behind it."""
    assert run.exit.reason == ExitReason.VMCALL, run.exit
    assert run.vmcs["GUEST_RIP"] == CODE + len(run.guest.code)


def exited(
    run: Run, reason: ExitReason, *, qualification: int = 0, length: int = 0, rip: int = CODE
) -> None:
    assert run.exit.reason == reason, run.exit
    assert run.exit.qualification == qualification
    assert run.exit.instruction_length == length
    assert run.exit.interruption is None
    assert run.exit.idt_vectoring is None
    assert not run.exit.entry_failed
    assert run.vmcs["GUEST_RIP"] == rip
    assert run.vmcs["EXIT_REASON"] == reason


def faulted(run: Run, vector: int) -> None:
    assert run.exit.reason == ExitReason.VMCALL, run.exit
    assert run.vmcs["GUEST_RIP"] == handler(vector)


# Instructions without operands that matter: (code, control or None, reason, qualification).
PLAIN = {
    "HLT": (b"\xf4", {PRIMARY: ct.PRIMARY_HLT_EXITING}, ExitReason.HLT),
    "INVLPG": (b"\x0f\x01\x3b", {PRIMARY: ct.PRIMARY_INVLPG_EXITING}, ExitReason.INVLPG),
    "RDTSC": (b"\x0f\x31", {PRIMARY: ct.PRIMARY_RDTSC_EXITING}, ExitReason.RDTSC),
    "RDTSCP": (
        b"\x0f\x01\xf9",
        {PRIMARY: ct.PRIMARY_RDTSC_EXITING, SECONDARY: ct.SECONDARY_RDTSCP},
        ExitReason.RDTSCP,
    ),
    "RDPMC": (b"\x0f\x33", {PRIMARY: ct.PRIMARY_RDPMC_EXITING}, ExitReason.RDPMC),
    "PAUSE": (b"\xf3\x90", {PRIMARY: ct.PRIMARY_PAUSE_EXITING}, ExitReason.PAUSE),
    "MONITOR": (b"\x0f\x01\xc8", {PRIMARY: ct.PRIMARY_MONITOR_EXITING}, ExitReason.MONITOR),
    "MWAIT": (b"\x0f\x01\xc9", {PRIMARY: ct.PRIMARY_MWAIT_EXITING}, ExitReason.MWAIT),
    "WBINVD": (b"\x0f\x09", {SECONDARY: ct.SECONDARY_WBINVD_EXITING}, ExitReason.WBINVD),
    "INVD": (b"\x0f\x08", {}, ExitReason.INVD),
    "CPUID": (b"\x0f\xa2", {}, ExitReason.CPUID),
    "VMCALL": (b"\x0f\x01\xc1", {}, ExitReason.VMCALL),
    "VMLAUNCH": (b"\x0f\x01\xc2", {}, ExitReason.VMLAUNCH),
    "VMRESUME": (b"\x0f\x01\xc3", {}, ExitReason.VMRESUME),
    "VMXOFF": (b"\x0f\x01\xc4", {}, ExitReason.VMXOFF),
    "VMREAD": (b"\x0f\x78\xc0", {}, ExitReason.VMREAD),
    "VMWRITE": (b"\x0f\x79\xc0", {}, ExitReason.VMWRITE),
    "VMPTRLD": (b"\x0f\xc7\x33", {}, ExitReason.VMPTRLD),
    "VMPTRST": (b"\x0f\xc7\x3b", {}, ExitReason.VMPTRST),
    "VMCLEAR": (b"\x66\x0f\xc7\x33", {}, ExitReason.VMCLEAR),
    "VMXON": (b"\xf3\x0f\xc7\x33", {}, ExitReason.VMXON),
    "INVEPT": (b"\x66\x0f\x38\x80\x03", {}, ExitReason.INVEPT),
    "INVVPID": (b"\x66\x0f\x38\x81\x03", {}, ExitReason.INVVPID),
}
WITHOUT_EFFECT = ("INVLPG", "PAUSE", "MONITOR", "MWAIT", "WBINVD")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PLAIN)
def test_instruction_exits(name: str, mode: str) -> None:
    code, controls, reason = PLAIN[name]
    guest = Tiny(mode, 0, NOP + code, registers={"rbx": DATA, "rcx": 0, "rdx": 0, "rax": DATA})
    run = begin(guest, controls)
    qualification = DATA if name == "INVLPG" else 0
    exited(run, reason, qualification=qualification, length=len(code), rip=CODE + 1)
    run.skip()
    at_end(run)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_instruction_does_not_exit(name: str, mode: str) -> None:
    guest = Tiny(mode, 0, PLAIN[name][0], registers={"rbx": DATA, "rax": DATA})
    at_end(begin(guest))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name", ["HLT", "INVLPG", "INVD", "WBINVD", "MONITOR", "MWAIT", "RDPMC", "VMXOFF", "CPUID"]
)
def test_privilege_is_checked_before_the_exit(name: str, mode: str) -> None:
    code, controls, reason = PLAIN[name]
    run = begin(Tiny(mode, 3, code, registers={"rbx": DATA}), controls)
    if name in ("CPUID", "VMXOFF"):
        # These exit from any ring.
        assert run.exit.reason == reason
    else:
        faulted(run, UD if name in ("MONITOR", "MWAIT") else GP)


@pytest.mark.parametrize("code", [b"\x0f\xaa", b"\x0f\x37", b"\x0f\x01\xd1", b"\x0f\x01\xf9"])
def test_what_this_processor_lacks_is_undefined(code: bytes) -> None:
    """RSM outside SMM, GETSEC without SMX, XSETBV without OSXSAVE, RDTSCP not enabled."""
    faulted(begin(Tiny("l64", 0, code)), UD)


@pytest.mark.parametrize("mode", ["p32", "pae"])
def test_syscall_is_for_64_bit_mode(mode: str) -> None:
    """Whatever EFER.SCE is."""
    faulted(begin(Tiny(mode, 3, b"\x0f\x05", fields={"GUEST_IA32_EFER": 1})), UD)


def test_rdpmc_reads_counters_that_stand_still() -> None:
    # xor ecx, ecx; mov eax, ecx; dec eax; rdpmc
    run = begin(Tiny("l64", 0, bytes.fromhex("31c9 89c8 ffc8 0f33")))
    at_end(run)
    assert (run.processor.registers.rax, run.processor.registers.rdx) == (0, 0)
    # mov ecx, 4; rdpmc
    faulted(begin(Tiny("l64", 0, bytes.fromhex("b904000000 0f33"))), GP)


@pytest.mark.parametrize("mode", MODES)
def test_rdtsc_shows_virtual_time_and_the_offset(mode: str) -> None:
    code = b"\x0f\x31"
    plain = begin(Tiny(mode, 0, code))
    at_end(plain)
    offset = 0x1234_5678_9ABC
    run = begin(
        Tiny(mode, 0, code, fields={"TSC_OFFSET": offset}), {PRIMARY: ct.PRIMARY_TSC_OFFSETTING}
    )
    at_end(run)

    def shown(which: Run) -> int:
        registers = which.processor.registers
        return registers.rdx << 32 | registers.rax

    assert shown(plain) < 100
    assert shown(run) == shown(plain) + offset


def test_rdtscp_also_gives_tsc_aux() -> None:
    guest = Tiny("l64", 0, b"\x0f\x01\xf9", registers={"tsc_aux": 77, "rcx": ALL_ONES})
    run = begin(guest, {SECONDARY: ct.SECONDARY_RDTSCP})
    at_end(run)
    assert run.processor.registers.rcx == 77


# I/O.

IO_FORMS = {
    "IN AL, imm8": (b"\xe4\x60", 1, 1, 1),
    "IN AX, imm8": (b"\x66\xe5\x60", 2, 1, 1),
    "IN EAX, imm8": (b"\xe5\x60", 4, 1, 1),
    "OUT imm8, AL": (b"\xe6\x60", 1, 0, 1),
    "OUT imm8, AX": (b"\x66\xe7\x60", 2, 0, 1),
    "OUT imm8, EAX": (b"\xe7\x60", 4, 0, 1),
    "IN AL, DX": (b"\xec", 1, 1, 0),
    "IN AX, DX": (b"\x66\xed", 2, 1, 0),
    "IN EAX, DX": (b"\xed", 4, 1, 0),
    "OUT DX, AL": (b"\xee", 1, 0, 0),
    "OUT DX, AX": (b"\x66\xef", 2, 0, 0),
    "OUT DX, EAX": (b"\xef", 4, 0, 0),
}
UNCONDITIONAL = {PRIMARY: ct.PRIMARY_UNCONDITIONAL_IO_EXITING}
BITMAPS = {PRIMARY: ct.PRIMARY_USE_IO_BITMAPS}
LOW_PORT, HIGH_PORT = 0x60, 0x9ABC


def bits(*ports: int) -> dict[int, bytes]:
    """I/O bitmaps A and B with these ports' bits set."""
    bitmap = bytearray(0x2000)
    for port in ports:
        bitmap[port >> 3] |= 1 << (port & 7)
    return {tg.IO_BITMAP_A: bytes(bitmap)}


def io_qualification(
    size: int, is_in: int, port: int, *, string: int = 0, rep: int = 0, immediate: int = 0
) -> int:
    return size - 1 | is_in << 3 | string << 4 | rep << 5 | immediate << 6 | port << 16


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", IO_FORMS)
def test_io_exits(form: str, mode: str) -> None:
    code, size, is_in, immediate = IO_FORMS[form]
    port = LOW_PORT if immediate else HIGH_PORT
    qualification = io_qualification(size, is_in, port, immediate=immediate)
    for controls, memory in ((UNCONDITIONAL, {}), (BITMAPS, bits(port + size - 1))):
        registers = {"rdx": HIGH_PORT, "rax": 0x1122334455667788}
        run = begin(Tiny(mode, 0, code, memory, registers=registers), controls)
        exited(run, ExitReason.IO_INSTRUCTION, qualification=qualification, length=len(code))
        assert run.processor.registers.rax == 0x1122334455667788
        run.skip()
        at_end(run)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", IO_FORMS)
def test_io_does_not_exit(form: str, mode: str) -> None:
    code, size, is_in, immediate = IO_FORMS[form]
    port = LOW_PORT if immediate else HIGH_PORT
    # The neighbours' bits are set, and the bitmaps prevail over the unconditional control.
    both = {PRIMARY: ct.PRIMARY_USE_IO_BITMAPS | ct.PRIMARY_UNCONDITIONAL_IO_EXITING}
    memory = bits(port - 1, port + size)
    old = 0x1122334455667788
    run = begin(Tiny(mode, 0, code, memory, registers={"rdx": HIGH_PORT, "rax": old}), both)
    at_end(run)
    # Nothing is behind a port that nobody intercepts.
    seen = {1: old & ~0xFF | 0xFF, 2: old & ~0xFFFF | 0xFFFF, 4: 0xFFFF_FFFF}[size]
    expected = seen if is_in else old
    assert run.processor.registers.rax == expected


def test_io_that_wraps_around_the_port_space_exits_under_bitmaps() -> None:
    run = begin(Tiny("p32", 0, b"\xed", registers={"rdx": 0xFFFE}), BITMAPS)
    exited(run, ExitReason.IO_INSTRUCTION, qualification=io_qualification(4, 1, 0xFFFE), length=1)


STRINGS = {
    "INSB": (b"\x6c", 1, 1),
    "INSW": (b"\x66\x6d", 2, 1),
    "INSD": (b"\x6d", 4, 1),
    "OUTSB": (b"\x6e", 1, 0),
    "OUTSW": (b"\x66\x6f", 2, 0),
    "OUTSD": (b"\x6f", 4, 0),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rep", [0, 1])
@pytest.mark.parametrize("form", STRINGS)
def test_string_io_exits(form: str, rep: int, mode: str) -> None:
    code, size, is_in = STRINGS[form]
    code = b"\xf3" * rep + code
    registers = {"rdx": HIGH_PORT, "rcx": 3, "rsi": DATA + 8, "rdi": DATA + 16}
    run = begin(Tiny(mode, 0, code, registers=registers), UNCONDITIONAL)
    qualification = io_qualification(size, is_in, HIGH_PORT, string=1, rep=rep)
    exited(run, ExitReason.IO_INSTRUCTION, qualification=qualification, length=len(code))
    assert run.vmcs["GUEST_LINEAR_ADDRESS"] == DATA + (16 if is_in else 8)
    information = run.vmcs["VM_EXIT_INSTRUCTION_INFORMATION"]
    assert information >> 7 & 7 == (2 if mode == "l64" else 1)
    if not is_in:
        assert information >> 15 & 7 == 3
    # Before the first iteration: nothing has moved.
    assert {name: getattr(run.processor.registers, name) for name in registers} == registers


@pytest.mark.parametrize("mode", MODES)
def test_outs_reports_the_segment_it_reads(mode: str) -> None:
    guest = Tiny(mode, 0, b"\x64\x6e", fields={"GUEST_FS_BASE": 0x100}, registers={"rsi": DATA})
    run = begin(guest, UNCONDITIONAL)
    assert run.vmcs["GUEST_LINEAR_ADDRESS"] == DATA + 0x100
    assert run.vmcs["VM_EXIT_INSTRUCTION_INFORMATION"] >> 15 & 7 == 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", STRINGS)
def test_string_io_does_not_exit(form: str, mode: str) -> None:
    code, size, is_in = STRINGS[form]
    registers = {"rdx": HIGH_PORT, "rcx": 3, "rsi": DATA + 0x40, "rdi": DATA + 0x40}
    guest = Tiny(mode, 0, b"\xf3" + code, {DATA: bytes(0x80)}, registers=registers)
    run = begin(guest)
    at_end(run)
    found = run.processor.registers
    assert found.rcx == 0
    assert (found.rdi, found.rsi) == (
        DATA + 0x40 + is_in * 3 * size,
        DATA + 0x40 + (1 - is_in) * 3 * size,
    )
    stored = run.processor.memory.read(DATA + 0x3F, 3 * size + 2)
    assert stored == b"\0" + (b"\xff" if is_in else b"\0") * (3 * size) + b"\0"


@pytest.mark.parametrize("mode", MODES)
def test_string_io_backwards(mode: str) -> None:
    registers = {"rdx": HIGH_PORT, "rcx": 2, "rdi": DATA + 0x40}
    run = begin(Tiny(mode, 0, b"\xfd\xf3\x6d", registers=registers))
    at_end(run)
    assert run.processor.registers.rdi == DATA + 0x38
    assert run.processor.memory.read(DATA + 0x38, 12) == bytes(4) + b"\xff" * 8


@pytest.mark.parametrize("mode", MODES)
def test_string_io_of_nothing_does_not_exit(mode: str) -> None:
    at_end(begin(Tiny(mode, 0, b"\xf3\x6c", registers={"rdx": 1, "rdi": DATA}), UNCONDITIONAL))


@pytest.mark.parametrize("mode", MODES)
def test_the_guests_own_permission_comes_before_the_exit(mode: str) -> None:
    faulted(begin(Tiny(mode, 3, b"\xec"), UNCONDITIONAL), GP)
    privileged = Tiny(mode, 3, b"\xec", fields={"GUEST_RFLAGS": 2 | 3 << 12})
    run = begin(privileged, UNCONDITIONAL)
    exited(run, ExitReason.IO_INSTRUCTION, qualification=io_qualification(1, 1, 0), length=1)


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("code", [b"\xee", b"\xe6\x60", b"\xed"])
def test_an_absent_tss_is_a_page_fault_of_the_input_or_output(code: bytes, engine: str) -> None:
    guest = Tiny("p32", 3, code, fields={"GUEST_TR_BASE": tg.ABSENT})
    run = begin(guest, {**UNCONDITIONAL, "EXCEPTION_BITMAP": 1 << PF}, engine=engine)
    assert run.exit.interruption == Interruption(PF, InterruptionType.HARDWARE_EXCEPTION, 0)
    assert run.exit.qualification == tg.ABSENT + 102
    assert run.vmcs["GUEST_RIP"] == CODE


@pytest.mark.native
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("code", [b"\xcb", b"\xcf"], ids=["RETF", "IRET"])
@pytest.mark.parametrize("mapped", [True, False])
def test_ring_3_pops_its_stack_as_a_user(mode: str, code: bytes, mapped: bool) -> None:
    # With SMAP a supervisor's access to a user page faults, and this is none.
    wide = mode == "l64"
    code = b"\x48" * wide + code
    cs = tg.CODE_64_USER if wide else tg.CODE_32_USER
    frame = (CODE + len(code), cs, 2, tg.USER_STACK, tg.DATA_3)
    top = tg.USER_STACK - 64 if mapped else tg.SUPERVISOR
    fields = {"GUEST_RSP": top, "GUEST_CR4": 0x2600 | (0x20 if wide else 0x10) | 1 << 21}
    supervisors = tg.TABLES + 0x3000 + (tg.GDT >> 12) * (8 if wide else 4)
    memory = {
        top: pack("<5Q" if wide else "<5I", *frame),
        supervisors: pack("<Q" if wide else "<I", tg.GDT | 3),
    }
    run = begin(Tiny(mode, 3, code, memory, fields), {"EXCEPTION_BITMAP": 1 << PF})
    if mapped:
        at_end(run)
    else:
        assert run.exit.interruption == Interruption(PF, InterruptionType.HARDWARE_EXCEPTION, 5)
        assert top <= run.exit.qualification < top + 40


# MSRs.

LSTAR, SYSENTER_EIP = 0xC0000082, 0x176
RDMSR, WRMSR = b"\x0f\x32", b"\x0f\x30"


def msr_bit(index: int, *, is_write: bool) -> dict[int, bytes]:
    """An MSR bitmap with one bit set."""
    bitmap = bytearray(4096)
    offset = 2048 * is_write + (1024 if index >> 31 else 0)
    bitmap[offset + ((index & 0x1FFF) >> 3)] |= 1 << (index & 7)
    return {tg.MSR_BITMAP: bytes(bitmap)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", [LSTAR, SYSENTER_EIP])
@pytest.mark.parametrize("is_write", [False, True])
def test_msr_exits(is_write: bool, index: int, mode: str) -> None:
    code, reason = (WRMSR, ExitReason.WRMSR) if is_write else (RDMSR, ExitReason.RDMSR)
    registers = {"rcx": index, "rax": 5, "rdx": 0}
    guest = Tiny(mode, 0, code, msr_bit(index, is_write=is_write), registers=registers)
    run = begin(guest)
    exited(run, reason, length=2)
    assert run.vmcs["GUEST_IA32_SYSENTER_EIP"] == run.processor.registers.lstar == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", [LSTAR, SYSENTER_EIP])
def test_msr_does_not_exit_for_the_other_direction(index: int, mode: str) -> None:
    value = 0xFFFF_8000_1234_5678
    registers = {"rcx": index, "rax": value & 0xFFFF_FFFF, "rdx": value >> 32}
    guest = Tiny(mode, 0, WRMSR, msr_bit(index, is_write=False), registers=registers)
    run = begin(guest)
    at_end(run)
    kept = run.processor.registers.lstar, run.vmcs["GUEST_IA32_SYSENTER_EIP"]
    assert kept == ((value, 0) if index == LSTAR else (0, value))
    code = b"\x31\xc0\x31\xd2" + RDMSR
    fields = {"GUEST_IA32_SYSENTER_EIP": value}
    guest = Tiny(mode, 0, code, msr_bit(index, is_write=True), fields, registers | {"lstar": value})
    run = begin(guest)
    at_end(run)
    found = run.processor.registers
    assert found.rdx << 32 | found.rax == value


@pytest.mark.parametrize("index", [LSTAR, 0x2000, 0xC0002000, 0x4000_0000])
def test_msr_exits_out_of_the_bitmaps_range_or_without_them(index: int) -> None:
    guest = Tiny("l64", 0, RDMSR, registers={"rcx": index})
    processor, vmcs = prepare(guest)
    if index == LSTAR:
        vmcs[PRIMARY] &= ~ct.PRIMARY_USE_MSR_BITMAPS
    exited(launch(guest, processor, vmcs), ExitReason.RDMSR, length=2)


# Control and debug registers.

EAX_TO, EAX_FROM = b"\x0f\x22", b"\x0f\x20"
PE, MP, TS, NE, WP, AM = 1 << 0, 1 << 1, 1 << 3, 1 << 5, 1 << 16, 1 << 18
CR0 = 0x80010031
EBX = 3


def cr_qualification(number: int, access: int = 0, register: int = EBX) -> int:
    return number | access << 4 | register << 8


@pytest.mark.parametrize("mode", MODES)
def test_mov_to_cr0_exits_if_it_changes_a_bit_of_the_hosts(mode: str) -> None:
    fields = {"CR0_GUEST_HOST_MASK": NE | AM, "CR0_READ_SHADOW": NE}
    code = EAX_TO + b"\xc3"
    run = begin(Tiny(mode, 0, code, fields=fields, registers={"rbx": CR0 | AM}))
    exited(run, ExitReason.CONTROL_REGISTER_ACCESS, qualification=cr_qualification(0), length=3)
    assert run.vmcs["GUEST_CR0"] == CR0
    # What is as the shadow says does not exit, and the guest's own bits change.
    run = begin(Tiny(mode, 0, code, fields=fields, registers={"rbx": CR0 | TS | MP}))
    at_end(run)
    assert run.vmcs["GUEST_CR0"] == CR0 | TS | MP


@pytest.mark.parametrize("mode", MODES)
def test_the_host_keeps_its_bits_of_cr0(mode: str) -> None:
    fields = {"CR0_GUEST_HOST_MASK": NE | AM | WP, "CR0_READ_SHADOW": AM}
    code = EAX_FROM + b"\xc0" + b"\x89\xc3" + EAX_TO + b"\xc3"
    run = begin(Tiny(mode, 0, code, fields=fields))
    at_end(run)
    assert run.processor.registers.rax == CR0 & ~(NE | WP) | AM
    assert run.vmcs["GUEST_CR0"] == CR0


@pytest.mark.parametrize("mode", MODES)
def test_mov_to_cr4_by_mask_and_shadow(mode: str) -> None:
    pse, pge, vmxe = 1 << 4, 1 << 7, 1 << 13
    paging = 0x20 if mode == "l64" else 0x10
    real = paging | 0x600 | vmxe
    fields = {"CR4_GUEST_HOST_MASK": vmxe | pge, "CR4_READ_SHADOW": pge}
    code = EAX_TO + b"\xe3"
    run = begin(Tiny(mode, 0, code, fields=fields, registers={"rbx": paging | 0x600}))
    exited(run, ExitReason.CONTROL_REGISTER_ACCESS, qualification=cr_qualification(4), length=3)
    assert run.vmcs["GUEST_CR4"] == real
    guest = Tiny(mode, 0, code, fields=fields, registers={"rbx": paging | 0x600 | pge | pse})
    run = begin(guest)
    at_end(run)
    assert run.vmcs["GUEST_CR4"] == real | pse
    run = begin(Tiny(mode, 0, EAX_FROM + b"\xe0", fields=fields))
    at_end(run)
    assert run.processor.registers.rax == (real | pge) & ~vmxe


@pytest.mark.parametrize("mode", MODES)
def test_mov_to_cr3_and_its_targets(mode: str) -> None:
    controls = {PRIMARY: ct.PRIMARY_CR3_LOAD_EXITING}
    code = EAX_TO + b"\xdb"
    value = tg.TABLES | 8
    run = begin(Tiny(mode, 0, code, registers={"rbx": value}), controls)
    exited(run, ExitReason.CONTROL_REGISTER_ACCESS, qualification=cr_qualification(3), length=3)
    assert run.vmcs["GUEST_CR3"] == tg.TABLES
    targets = {"CR3_TARGET_COUNT": 4, "CR3_TARGET_VALUE_3": value}
    run = begin(Tiny(mode, 0, code, fields=targets, registers={"rbx": value}), controls)
    at_end(run)
    assert run.vmcs["GUEST_CR3"] == value
    # Targets beyond the count do not count.
    targets["CR3_TARGET_COUNT"] = 3
    run = begin(Tiny(mode, 0, code, fields=targets, registers={"rbx": value}), controls)
    assert run.exit.reason == ExitReason.CONTROL_REGISTER_ACCESS
    run = begin(Tiny(mode, 0, code, registers={"rbx": value}))
    at_end(run)
    assert run.vmcs["GUEST_CR3"] == value


@pytest.mark.parametrize("mode", MODES)
def test_mov_from_cr3(mode: str) -> None:
    code = EAX_FROM + b"\xd9"
    run = begin(Tiny(mode, 0, code), {PRIMARY: ct.PRIMARY_CR3_STORE_EXITING})
    qualification = cr_qualification(3, 1, register=1)
    exited(run, ExitReason.CONTROL_REGISTER_ACCESS, qualification=qualification, length=3)
    run = begin(Tiny(mode, 0, code, registers={"rcx": ALL_ONES}))
    at_end(run)
    assert run.processor.registers.rcx == tg.TABLES


def test_mov_cr8() -> None:
    controls = {PRIMARY: ct.PRIMARY_CR8_LOAD_EXITING | ct.PRIMARY_CR8_STORE_EXITING}
    # MOV CR8, R10 and MOV R10, CR8.
    load, store = b"\x45\x0f\x22\xc2", b"\x45\x0f\x20\xc2"
    for code, access in ((load, 0), (store, 1)):
        run = begin(Tiny("l64", 0, code, registers={"r10": 9}), controls)
        qualification = cr_qualification(8, access, register=10)
        exited(run, ExitReason.CONTROL_REGISTER_ACCESS, qualification=qualification, length=4)
    run = begin(Tiny("l64", 0, load + b"\x4d\x31\xd2" + store, registers={"r10": 9}))
    at_end(run)
    assert (run.processor.registers.r10, run.processor.registers.cr8) == (9, 9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("mask", "shadow", "exits", "left"),
    [(TS, TS, True, TS), (TS, 0, False, TS), (0, TS, False, 0), (0, 0, False, 0)],
)
def test_clts(mask: int, shadow: int, exits: bool, left: int, mode: str) -> None:
    fields = {
        "CR0_GUEST_HOST_MASK": NE | mask,
        "CR0_READ_SHADOW": NE | shadow,
        "GUEST_CR0": CR0 | TS,
    }
    run = begin(Tiny(mode, 0, b"\x0f\x06", fields=fields))
    if exits:
        exited(run, ExitReason.CONTROL_REGISTER_ACCESS, qualification=2 << 4, length=2)
    else:
        at_end(run)
    assert run.vmcs["GUEST_CR0"] & TS == left


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("in_memory", [False, True])
def test_lmsw(in_memory: bool, mode: str) -> None:
    source = 0xABC3 | TS
    # LMSW EBX or [EBX].
    code = b"\x0f\x01\x33" if in_memory else b"\x0f\x01\xf3"
    memory = {DATA: pack("<H", source)}
    registers = {"rbx": DATA if in_memory else source}
    fields = {"CR0_GUEST_HOST_MASK": NE | TS, "CR0_READ_SHADOW": NE}
    run = begin(Tiny(mode, 0, code, memory, fields, registers))
    qualification = 3 << 4 | in_memory << 6 | source << 16
    exited(run, ExitReason.CONTROL_REGISTER_ACCESS, qualification=qualification, length=3)
    assert run.vmcs["GUEST_LINEAR_ADDRESS"] == (DATA if in_memory else 0)
    run = begin(Tiny(mode, 0, code, memory, registers=registers))
    at_end(run)
    assert run.vmcs["GUEST_CR0"] == CR0 | MP | TS


@pytest.mark.parametrize("mode", MODES)
def test_smsw_shows_the_shadow_and_never_exits(mode: str) -> None:
    fields = {"CR0_GUEST_HOST_MASK": NE | TS, "CR0_READ_SHADOW": NE | TS}
    run = begin(Tiny(mode, 0, b"\x0f\x01\xe0", fields=fields))
    at_end(run)
    assert run.processor.registers.rax & 0xFFFF == 0x31 | TS


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [0, 3, 6, 7])
@pytest.mark.parametrize("is_read", [0, 1])
def test_mov_dr(is_read: int, number: int, mode: str) -> None:
    # MOV DRn, ECX or MOV ECX, DRn.
    code = bytes((0x0F, 0x21 if is_read else 0x23, 0xC1 | number << 3))
    run = begin(Tiny(mode, 0, code), {PRIMARY: ct.PRIMARY_MOV_DR_EXITING})
    exited(run, ExitReason.MOV_DR, qualification=number | is_read << 4 | 1 << 8, length=3)
    value = {6: 0xFFFF0FF0 | 0x4000, 7: 0x400 | 1 << 16}.get(number, 0x1234)
    registers = {"rcx": value}
    fields = {}
    if is_read:
        registers = {"rcx": ALL_ONES}
        if number == 7:
            fields["GUEST_DR7"] = value
        else:
            registers[f"dr{number}"] = value
    run = begin(Tiny(mode, 0, code, fields=fields, registers=registers))
    at_end(run)
    if is_read:
        assert run.processor.registers.rcx == value
    elif number == 7:
        assert run.vmcs["GUEST_DR7"] == value
    else:
        assert getattr(run.processor.registers, f"dr{number}") == value


# Events that no instruction causes.

STI_NOP = b"\xfb\x90\x90"
SPIN = b"\xeb\xfe"


def external(vector: int) -> Interruption:
    return Interruption(vector, InterruptionType.EXTERNAL_INTERRUPT)


@pytest.mark.parametrize("mode", MODES)
def test_interrupt_window(mode: str) -> None:
    controls = {PRIMARY: ct.PRIMARY_INTERRUPT_WINDOW_EXITING}
    run = begin(Tiny(mode, 0, NOP, fields={"GUEST_RFLAGS": 2 | tg.IF}), controls)
    exited(run, ExitReason.INTERRUPT_WINDOW)
    # Closed, and then opened behind the instruction after STI.
    run = begin(Tiny(mode, 0, STI_NOP), controls)
    exited(run, ExitReason.INTERRUPT_WINDOW, rip=CODE + 2)
    at_end(begin(Tiny(mode, 0, NOP), controls))


def test_nmi_window() -> None:
    controls = {
        PIN: ct.PIN_NMI_EXITING | ct.PIN_VIRTUAL_NMIS,
        PRIMARY: ct.PRIMARY_NMI_WINDOW_EXITING,
    }
    exited(begin(Tiny("p32", 0, NOP), controls), ExitReason.NMI_WINDOW)
    # Blocked by NMI until IRET: PUSHF; PUSH CS; PUSH next; IRET.
    back = b"\x9c\x0e\x68" + pack("<I", CODE + 8) + b"\xcf" + NOP
    blocked = Tiny("p32", 0, back, fields={"GUEST_INTERRUPTIBILITY_STATE": 8})
    run = begin(blocked, controls)
    exited(run, ExitReason.NMI_WINDOW, rip=CODE + 8)
    assert run.vmcs["GUEST_INTERRUPTIBILITY_STATE"] == 0
    still = Tiny("p32", 0, NOP, fields={"GUEST_INTERRUPTIBILITY_STATE": 8})
    at_end(begin(still, controls))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flags", [2, 2 | tg.IF])
@pytest.mark.parametrize("acknowledge", [False, True])
def test_external_interrupt_exits(acknowledge: bool, flags: int, mode: str) -> None:
    """Whatever RFLAGS.IF says."""
    controls = {PIN: ct.PIN_EXTERNAL_INTERRUPT_EXITING}
    if acknowledge:
        controls["VM_EXIT_CONTROLS"] = ct.EXIT_ACKNOWLEDGE_INTERRUPT
    guest = Tiny(mode, 0, SPIN, fields={"GUEST_RFLAGS": flags})
    processor, vmcs = prepare(guest, controls)
    processor.interrupt(0x55)
    run = launch(guest, processor, vmcs)
    assert (run.exit.reason, run.vmcs["GUEST_RIP"]) == (ExitReason.EXTERNAL_INTERRUPT, CODE)
    assert run.exit.interruption == (external(0x55) if acknowledge else None)


@pytest.mark.parametrize("acknowledge", [False, True])
def test_an_interrupt_that_is_not_acknowledged_stays(acknowledge: bool) -> None:
    controls = {PIN: ct.PIN_EXTERNAL_INTERRUPT_EXITING}
    if acknowledge:
        controls["VM_EXIT_CONTROLS"] = ct.EXIT_ACKNOWLEDGE_INTERRUPT
    guest = Tiny("p32", 0, NOP)
    processor, vmcs = prepare(guest, controls)
    processor.interrupt(0x55)
    run = launch(guest, processor, vmcs)
    again = run.resume().reason
    assert again == (ExitReason.VMCALL if acknowledge else ExitReason.EXTERNAL_INTERRUPT)
    processor.interrupt(None)
    if not acknowledge:
        run.resume()
    at_end(run)


@pytest.mark.parametrize("mode", tg.MODES)
def test_external_interrupt_is_delivered_when_the_guest_lets_it(mode: str) -> None:
    guest = Tiny(mode, 0, NOP, fields={"GUEST_RFLAGS": 2 | tg.IF})
    processor, vmcs = prepare(guest)
    processor.interrupt(0x55)
    run = launch(guest, processor, vmcs)
    faulted(run, 0x55)
    assert run.pushed(1) == [0 if mode == "r16" else CODE]
    guest = Tiny(mode, 0, STI_NOP)
    processor, vmcs = prepare(guest)
    processor.interrupt(0x55)
    run = launch(guest, processor, vmcs)
    faulted(run, 0x55)
    assert run.pushed(1) == [2 if mode == "r16" else CODE + 2]


@pytest.mark.parametrize("mode", MODES)
def test_external_interrupt_waits(mode: str) -> None:
    guest = Tiny(mode, 0, NOP)
    processor, vmcs = prepare(guest)
    processor.interrupt(0x55)
    at_end(launch(guest, processor, vmcs))


@pytest.mark.parametrize("mode", MODES)
def test_nmi(mode: str) -> None:
    guest = Tiny(mode, 0, SPIN)
    processor, vmcs = prepare(guest, {PIN: ct.PIN_NMI_EXITING})
    processor.nmi()
    run = launch(guest, processor, vmcs)
    assert run.exit.reason == ExitReason.EXCEPTION_OR_NMI
    assert run.exit.interruption == Interruption(2, InterruptionType.NMI)
    assert run.vmcs["GUEST_RIP"] == CODE
    processor, vmcs = prepare(guest)
    processor.nmi()
    run = launch(guest, processor, vmcs)
    faulted(run, 2)
    assert run.vmcs["GUEST_INTERRUPTIBILITY_STATE"] == 8


def test_nmi_waits_for_iret() -> None:
    """Blocked by NMI, another one is taken behind IRET and not before."""
    back = b"\x9c\x0e\x68" + pack("<I", CODE + 8) + b"\xcf" + NOP
    guest = Tiny("p32", 0, back, fields={"GUEST_INTERRUPTIBILITY_STATE": 8})
    processor, vmcs = prepare(guest)
    processor.nmi()
    run = launch(guest, processor, vmcs)
    faulted(run, 2)
    assert run.pushed(1) == [CODE + 8]


def test_nmi_blocked_for_ever_still_lets_the_guest_run() -> None:
    guest = Tiny("p32", 0, SPIN, fields={"GUEST_INTERRUPTIBILITY_STATE": 8})
    processor, vmcs = prepare(guest)
    processor.nmi()
    vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 1000
    run = launch(guest, processor, vmcs)
    assert run.exit.reason == ExitReason.PREEMPTION_TIMER


@pytest.mark.parametrize("mode", tg.MODES)
def test_init_and_smi_always_exit(mode: str) -> None:
    for signal, reason in (("init", ExitReason.INIT_SIGNAL), ("smi", ExitReason.OTHER_SMI)):
        guest = Tiny(mode, 0, SPIN)
        processor, vmcs = prepare(guest)
        getattr(processor, signal)()
        run = launch(guest, processor, vmcs)
        exited(run, reason, rip=0 if mode == "r16" else CODE)
        # Once: it has been taken.
        vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 10
        assert run.resume().reason == ExitReason.PREEMPTION_TIMER


@pytest.mark.parametrize("mode", MODES)
def test_triple_fault(mode: str) -> None:
    run = begin(Tiny(mode, 0, NOP + b"\x0f\x0b", fields={"GUEST_IDTR_LIMIT": 0}))
    exited(run, ExitReason.TRIPLE_FAULT, rip=CODE + 1)


@pytest.mark.parametrize(
    ("code", "vector", "kind", "length"),
    [
        (b"\xcd\x40", 0x40, InterruptionType.SOFTWARE_INTERRUPT, 2),
        (b"\xcc", 3, InterruptionType.SOFTWARE_EXCEPTION, 1),
        (b"\x0f\x0b", 6, InterruptionType.HARDWARE_EXCEPTION, 0),
    ],
)
def test_task_switch_through_a_task_gate(
    code: bytes, vector: int, kind: InterruptionType, length: int
) -> None:
    task_gate = pack("<HHHH", 0, tg.OTHER_TASK, 0xE500, 0)
    run = begin(Tiny("p32", 0, code, {tg.IDT + 8 * vector: task_gate}))
    assert run.exit.reason == ExitReason.TASK_SWITCH
    assert run.exit.qualification == 3 << 30 | tg.OTHER_TASK
    assert run.exit.instruction_length == length
    assert run.exit.idt_vectoring == Interruption(vector, kind)
    assert run.exit.interruption is None
    assert run.vmcs["GUEST_RIP"] == CODE


@pytest.mark.parametrize("mode", MODES)
def test_preemption_timer(mode: str) -> None:
    guest = Tiny(mode, 0, SPIN)
    processor, vmcs = prepare(guest)
    vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 1000
    exited(launch(guest, processor, vmcs), ExitReason.PREEMPTION_TIMER)
    assert 1000 <= processor.time < 1010
    # 0: before the first instruction.
    vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 0
    before = processor.time
    outcome = processor.vmresume(vmcs)
    assert isinstance(outcome, VmExit)
    assert (outcome.reason, processor.time) == (ExitReason.PREEMPTION_TIMER, before)


@pytest.mark.parametrize("saves", [False, True])
def test_what_is_left_of_the_preemption_timer(saves: bool) -> None:
    guest = Tiny("p32", 0, NOP * 10)
    processor, vmcs = prepare(guest)
    if saves:
        vmcs["VM_EXIT_CONTROLS"] |= ct.EXIT_SAVE_PREEMPTION_TIMER
    vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 1000
    at_end(launch(guest, processor, vmcs))
    left = vmcs["VMX_PREEMPTION_TIMER_VALUE"]
    assert left == (1000 - processor.time if saves else 1000)


@pytest.mark.parametrize("mode", MODES)
def test_hlt_waits_for_what_wakes_the_guest(mode: str) -> None:
    code = b"\xfb\xf4"
    guest = Tiny(mode, 0, code)
    run = begin(guest)
    assert run.exit.reason == ExitReason.PREEMPTION_TIMER
    assert (run.vmcs["GUEST_ACTIVITY_STATE"], run.vmcs["GUEST_RIP"]) == (1, CODE + 2)
    run.processor.interrupt(0x55)
    run.resume()
    faulted(run, 0x55)
    assert run.vmcs["GUEST_ACTIVITY_STATE"] == 0
    assert run.pushed(1) == [CODE + 2]
    processor, vmcs = prepare(guest)
    vmcs[PIN] &= ~ct.PIN_PREEMPTION_TIMER
    with pytest.raises(IdleError, match="nothing can wake it"):
        processor.vmlaunch(vmcs)
