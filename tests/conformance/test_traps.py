"""Single-step traps behind what core and Python carry out, and what DR6 says of breakpoints."""

from struct import pack

import pytest

from tests.conformance.tiny_guest import (
    CODE,
    CODE_32,
    DATA,
    GDT,
    OTHER_TASK,
    TABLES,
    TF,
    Tiny,
    begin,
    handler,
)
from trapgate.sdm.vectors import DB
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine

pytestmark = pytest.mark.conformance

CR4_DE = 1 << 3
BTF = 2
ENGINES = ("native", "portable")
BS = 1 << 14
WATCH_DB = {"EXCEPTION_BITMAP": 1 << DB}

INSTRUCTIONS = {
    "insb": (b"\x6c", {}),
    "outsb": (b"\x6e", {}),
    "in": (b"\xe4\x80", {}),
    "out": (b"\xe6\x80", {}),
    "lgdt": (b"\x0f\x01\x13", {}),
    "sgdt": (b"\x0f\x01\x03", {}),
    "smsw [ebx]": (b"\x0f\x01\x23", {}),
    "smsw eax": (b"\x0f\x01\xe0", {}),
    "lmsw [esi]": (b"\x0f\x01\x36", {}),
    "lmsw eax": (b"\x0f\x01\xf0", {"rax": 1}),
    "invlpg": (b"\x0f\x01\x3b", {}),
    "clts": (b"\x0f\x06", {}),
    "mov eax, cr0": (b"\x0f\x20\xc0", {}),
    "mov cr0, eax": (b"\x0f\x22\xc0", {"rax": 0x80010031}),
    "rdtsc": (b"\x0f\x31", {}),
    "lldt": (b"\x0f\x00\xd0", {"rax": 0}),
    "ltr": (b"\x0f\x00\xd8", {"rax": OTHER_TASK}),
    "mov eax, dr0": (b"\x0f\x21\xc0", {}),
    "rdmsr": (b"\x0f\x32", {"rcx": 0x174}),
    "xgetbv": (b"\x0f\x01\xd0", {"rcx": 0}),
    "clflush": (b"\x0f\xae\x3b", {}),
    "addps": (b"\x0f\x58\xc0", {}),
    "movups": (b"\x0f\x11\x03", {}),
    "fld1": (b"\xd9\xe8", {}),
    "fprem": (b"\xd9\xf8", {}),
    "fnstenv": (b"\xd9\x33", {}),
    "fxsave": (b"\x0f\xae\x03", {}),
    "rcl": (b"\xd1\x13", {}),
    "mov cr3, eax": (b"\x0f\x22\xd8", {"rax": TABLES}),
    "far jmp": (b"\xea" + pack("<IH", CODE + 7, CODE_32), {}),
}
REPEATED = {
    "rep insb": (b"\xf3\x6c", {"rcx": 2}),
    "rep outsb": (b"\xf3\x6e", {"rcx": 2}),
    "rep movsb": (b"\xf3\xa4", {"rcx": 2}),
}


def stepped(code: bytes, registers: dict[str, int], engine: str) -> tuple[int, int]:
    """Where the first #DB comes behind code that is executed with TF, and its qualification."""
    common = {"rbx": DATA, "rsi": DATA + 64, "rdi": DATA + 128, "rdx": 0x80}
    guest = Tiny("p32", code=code + b"\x90\x90", registers=common | registers)
    guest.memory |= {DATA: pack("<HI", 0x7F, GDT), DATA + 64: b"\x31\0"}
    guest.fields |= {"GUEST_RFLAGS": 2 | TF, "GUEST_CR4": 0x2610 | 1 << 18}
    run = begin(guest, WATCH_DB, engine=engine)
    assert run.exit.interruption is not None, run.exit
    return run.vmcs["GUEST_RIP"] - CODE, run.exit.qualification


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_a_trap_comes_right_behind(name: str, engine: str) -> None:
    code, registers = INSTRUCTIONS[name]
    assert stepped(code, registers, engine) == (len(code), BS)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", REPEATED)
def test_a_trap_comes_behind_each_iteration(name: str, engine: str) -> None:
    code, registers = REPEATED[name]
    assert stepped(code, registers, engine) == (0, BS)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [1, 3])
@pytest.mark.parametrize("code", [b"\x90", b"\xaa"])
def test_a_breakpoint_on_data_is_not_met_by_execution(code: bytes, kind: int, engine: str) -> None:
    """NOP, and STOSB elsewhere: of a trap behind them only TF is a cause."""
    registers = {"rdi": DATA, "dr0": CODE + 1}
    guest = Tiny("p32", code=code + b"\x90", registers=registers)
    guest.fields |= {"GUEST_RFLAGS": 2 | TF, "GUEST_DR7": 0x401 | kind << 16}
    run = begin(guest, WATCH_DB, engine=engine)
    assert (run.vmcs["GUEST_RIP"], run.exit.qualification) == (CODE + 1, BS)


PORTS = {
    "in al, 80h": (b"\xe4\x80", 1),
    "out 80h, al": (b"\xe6\x80", 1),
    "in eax, dx": (b"\xed", 4),
    "out dx, ax": (b"\x66\xef", 2),
    "insb": (b"\x6c", 1),
    "outsd": (b"\x6f", 4),
}


def met(
    code: bytes, watched: int, length: int, engine: str, **fields: int
) -> tuple[int, int] | None:
    """Where a breakpoint on `length` ports from `watched` on traps, and the qualification."""
    field = {1: 0, 2: 1, 4: 3}[length]
    registers = {"rdx": 0x80, "rsi": DATA, "rdi": DATA + 64, "dr1": watched}
    guest = Tiny("p32", code=code + b"\x90\x90", registers=registers)
    guest.fields |= {"GUEST_DR7": 0x400 | 4 | 2 << 20 | field << 22, "GUEST_CR4": 0x2610 | CR4_DE}
    guest.fields |= fields
    run = begin(guest, WATCH_DB, engine=engine)
    if run.exit.interruption is None:
        return None
    return run.vmcs["GUEST_RIP"] - CODE, run.exit.qualification


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", PORTS)
def test_breakpoints_on_ports_trap_behind_the_instruction(name: str, engine: str) -> None:
    code, size = PORTS[name]
    assert met(code, 0x80, 1, engine) == (len(code), 2)
    assert met(code, 0x83, 4, engine) == (len(code), 2)
    assert met(code, 0x80 + size, 1, engine) is None
    assert met(code, 0x7E, 2, engine) is None
    assert met(code, 0x80, 1, engine, GUEST_CR4=0x2610) is None
    assert met(code, 0x80, 1, engine, GUEST_RFLAGS=2 | TF) == (len(code), BS | 2)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("code", [b"\xe4\x80", b"\xee", b"\xe6\xf1", b"\x6c", b"\xf3\x6c"])
def test_breakpoints_on_ports_of_devices(code: bytes, engine: str) -> None:
    """The same where a VMM carries the access out: port 80H, and E9H for the others."""
    port = 0xF1 if code[1:] == b"\xf1" else 0x80
    head = b"\xb8" + pack("<I", port) + b"\x0f\x23\xc8"  # mov dr1, eax
    head += b"\xb8" + pack("<I", 0x200404) + b"\x0f\x23\xf8"  # mov dr7, eax
    head += b"\x0f\x20\xe0\x83\xc8\x08\x0f\x22\xe0"  # CR4.DE
    head += b"\x66\xba\x80\x00\xbf" + pack("<I", 0x180000) + b"\xb9\x02\x00\x00\x00"
    tail = b"\xb0\x00\xe6\xf4"
    handler = b"\x0f\x21\xf0\xa3" + pack("<I", 0x180100) + tail  # mov eax, dr6; store it
    idt = 0x101000
    begins = b"\x0f\x01\x1d" + pack("<I", 0x102000)  # lidt
    program = begins + head + code + b"\x90" + tail
    image = program.ljust(0x800, b"\x90") + handler
    gate = pack("<HHHH", 0x800, 0x10, 0x8E00, 0x10)
    image = image.ljust(idt - 0x100000, b"\0") + bytes(8) + gate
    image = image.ljust(0x2000, b"\0") + pack("<HI", 0xFF, idt)
    machine = VirtualMachine(4 << 20, engine=engine)
    machine.load(parse_guest(image, file="", memory=4 << 20))
    machine.run(max_instructions=10_000)
    dr6 = int.from_bytes(machine.processor.memory.read(0x180100, 4), "little")
    assert dr6 & 0x400F == 2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("code", "watched"), [(b"\x6c", 128), (b"\x6e", 64)])
def test_strings_of_ports_meet_breakpoints_on_data(code: bytes, watched: int, engine: str) -> None:
    """INSB and OUTSB."""
    registers = {"rdx": 0x80, "rsi": DATA + 64, "rdi": DATA + 128, "dr0": DATA + watched}
    guest = Tiny("p32", code=code + b"\x90", registers=registers)
    guest.fields["GUEST_DR7"] = 0x400 | 1 | 3 << 16
    run = begin(guest, WATCH_DB, engine=engine)
    assert (run.vmcs["GUEST_RIP"], run.exit.qualification) == (CODE + 1, 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_trap_tells_of_a_breakpoint_on_what_comes_next(engine: str) -> None:
    """Where CS has a base as well: the breakpoint's address is linear."""
    for mode in ("p32", "r16"):
        guest = Tiny(mode, code=b"\x90\x90", registers={"dr0": CODE + 1})
        guest.fields |= {"GUEST_RFLAGS": 2 | TF, "GUEST_DR7": 0x401}
        run = begin(guest, WATCH_DB, engine=engine)
        assert run.exit.qualification == BS | 1, mode


BRANCHES = {
    "jmp": (b"\x90\xeb\x00\x90", 3),
    "jz not taken, call": (b"\x74\x05\x90\xe8\x00\x00\x00\x00\x90", 8),
    "jnz taken": (b"\x90\x75\x01\x90\x90", 4),
    "loop taken": (b"\xe2\x02\x90\x90\x90", 4),
    "rep stosb, mov eax, cr0, jmp ebx": (b"\xf3\xaa\x0f\x20\xc0\x90\xff\xe3\x90\x90", 9),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BRANCHES)
def test_single_step_on_branches(name: str, engine: str) -> None:
    code, place = BRANCHES[name]
    registers = {"rcx": 3, "rdi": DATA, "rbx": CODE + place}
    guest = Tiny("p32", code=code, registers=registers)
    guest.fields |= {"GUEST_RFLAGS": 2 | TF, "GUEST_IA32_DEBUGCTL": BTF}
    run = begin(guest, WATCH_DB, engine=engine)
    assert run.exit.interruption is not None, run.exit
    assert (run.vmcs["GUEST_RIP"] - CODE, run.exit.qualification) == (place, BS)
    # The guest's own handler finds BTF clear.
    guest.fields["GUEST_IDTR_LIMIT"] = 0x7FF
    run = begin(guest, engine=engine)
    assert run.vmcs["GUEST_RIP"] == handler(DB)
    assert run.vmcs["GUEST_IA32_DEBUGCTL"] & BTF == 0
