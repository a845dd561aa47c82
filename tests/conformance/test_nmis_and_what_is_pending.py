"""Blocking by NMI and IRET; debug exceptions that MOV SS has held back.

SDM, "Changes to Instruction Behavior in VMX Non-Root Operation" (IRET), "Information for VM Exits
Due to Vectored Events", "Delivery of Pending Debug Exceptions after VM Entry".
"""

import pytest

from tests.conformance.tiny_guest import (
    ABSENT,
    CODE,
    CODE_32,
    CODE_64,
    DATA,
    DATA_0,
    MODES,
    STACK,
    Run,
    Tiny,
    begin,
    handler,
    launch,
    prepare,
)
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.state import BLOCKING_BY_MOV_SS, BLOCKING_BY_NMI
from trapgate.sdm.vectors import BP, PF, UD

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
EVERYTHING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
PIN, PRIMARY = "PIN_BASED_CONTROLS", "PRIMARY_PROCESSOR_BASED_CONTROLS"
UNBLOCKING = 1 << 12
NONE = {PIN: 0}
EXITING = {PIN: ct.PIN_NMI_EXITING}
VIRTUAL = {PIN: ct.PIN_NMI_EXITING | ct.PIN_VIRTUAL_NMIS}
INFORMATION = "VM_EXIT_INTERRUPTION_INFORMATION"
BLOCKING = "GUEST_INTERRUPTIBILITY_STATE"


def iret(mode: str) -> bytes:
    return b"\x48\xcf" if mode == "l64" else b"\xcf"


def returns(mode: str, stack: int) -> Tiny:
    """NOP, then an IRET that goes on behind itself, with NMIs blocked; its frame at `stack`."""
    size = {"r16": 2, "l64": 8}.get(mode, 4)
    code = b"\x90" + iret(mode)
    if mode == "r16":
        words: tuple[int, ...] = (len(code), CODE >> 4, 2)
    else:
        selector = CODE_64 if mode == "l64" else CODE_32
        words = (CODE + len(code), selector, 2, STACK, DATA_0)
    frame = b"".join(word.to_bytes(size, "little") for word in words)
    fields = {"GUEST_RSP": stack, BLOCKING: BLOCKING_BY_NMI}
    return Tiny(mode, 0, code, {stack: frame}, fields)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("controls", "after"), [(NONE, 0), (EXITING, BLOCKING_BY_NMI), (VIRTUAL, 0)]
)
def test_iret_unblocks_nmis_unless_they_exit(
    controls: dict[str, int], after: int, mode: str, engine: str
) -> None:
    run = begin(returns(mode, STACK - 0x80), EVERYTHING | controls, engine=engine)
    assert run.exit.reason is ExitReason.VMCALL
    assert run.vmcs[BLOCKING] == after


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize(
    ("controls", "bit"), [(NONE, UNBLOCKING), (EXITING, 0), (VIRTUAL, UNBLOCKING)]
)
def test_an_iret_that_faults_says_whether_it_has_unblocked(
    controls: dict[str, int], bit: int, mode: str, engine: str
) -> None:
    run = begin(returns(mode, ABSENT), EVERYTHING | controls, engine=engine)
    assert run.exit.interruption is not None
    assert run.exit.interruption.vector == PF
    assert run.vmcs["GUEST_RIP"] == CODE + 1
    assert run.vmcs[INFORMATION] & UNBLOCKING == bit
    assert run.vmcs[BLOCKING] == (0 if bit else BLOCKING_BY_NMI)
    # The same IRET at the same place: whether it unblocks is no matter of the address.
    run.resume()
    assert run.vmcs[INFORMATION] & UNBLOCKING == 0
    run.vmcs[BLOCKING] = BLOCKING_BY_NMI
    run.resume()
    assert run.vmcs[INFORMATION] & UNBLOCKING == bit


@pytest.mark.parametrize("engine", ENGINES)
def test_another_instruction_at_the_address_of_an_iret_has_not_unblocked(engine: str) -> None:
    run = begin(returns("p32", STACK - 0x80), EVERYTHING, engine=engine)
    run.processor.memory.write(CODE + 1, b"\x0f\x0b")
    run.vmcs["GUEST_RIP"] = CODE
    run.resume()
    assert run.exit.interruption is not None
    assert run.exit.interruption.vector == UD
    assert run.vmcs[INFORMATION] & UNBLOCKING == 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_an_nmi_waits_for_the_iret_of_another(mode: str, engine: str) -> None:
    guest = returns(mode, STACK - 0x80)
    processor, vmcs = prepare(guest, engine=engine)
    processor.nmi()
    run = launch(guest, processor, vmcs)
    assert run.exit.reason is ExitReason.VMCALL
    assert run.vmcs["GUEST_CS_BASE"] + run.vmcs["GUEST_RIP"] == handler(2)
    assert run.pushed(1) == [len(guest.code) + (0 if mode == "r16" else CODE)]
    assert run.vmcs[BLOCKING] == BLOCKING_BY_NMI


@pytest.mark.parametrize("engine", ENGINES)
def test_the_window_of_virtual_nmis_opens_behind_iret(engine: str) -> None:
    guest = returns("l64", STACK - 0x80)
    window = {PRIMARY: ct.PRIMARY_NMI_WINDOW_EXITING}
    run = begin(guest, EVERYTHING | VIRTUAL | window, engine=engine)
    assert run.exit.reason is ExitReason.NMI_WINDOW
    assert run.vmcs["GUEST_RIP"] == CODE + len(guest.code)


# Debug exceptions that MOV SS has held back.

PENDING = "GUEST_PENDING_DEBUG_EXCEPTIONS"
HELD_BACK = {BLOCKING: BLOCKING_BY_MOV_SS, PENDING: 0x1001}
DELIVERED = {"int3": (b"\xcc", BP), "int n": (b"\xcd\x31", 0x31), "ud2": (b"\x0f\x0b", UD)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["p32", "l64"])
@pytest.mark.parametrize("name", DELIVERED)
def test_what_is_held_back_is_lost_with_the_instruction(name: str, mode: str, engine: str) -> None:
    code, vector = DELIVERED[name]
    run = begin(Tiny(mode, code=code, fields=dict(HELD_BACK)), engine=engine)
    assert run.exit.reason is ExitReason.VMCALL
    assert run.vmcs["GUEST_RIP"] == handler(vector)
    assert run.vmcs[PENDING] == 0
    assert run.vmcs[BLOCKING] == 0
    # No debug exception comes out of nothing.
    run.vmcs["EXCEPTION_BITMAP"] = 0xFFFFFFFF
    assert run.resume().reason is ExitReason.VMCALL


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_held_back_stays_at_another_exit(engine: str) -> None:
    run: Run = begin(Tiny("p32", code=b"\x0f\xa2", fields=dict(HELD_BACK)), engine=engine)
    assert run.exit.reason is ExitReason.CPUID
    assert run.vmcs[PENDING] == 0x1001


MOV_SS = b"\x8e\x17"
"""Mov ss, [rdi]."""
AS_TRAP = {"int 1": b"\xcd\x01", "int3": b"\x2e\x2e\xcc", "int n": b"\xcd\x31"}
WATCH = 0x400 | 2 | 0xF << 16
"""DR7: four bytes at DR0, read or written."""


def watched(mode: str, code: bytes) -> Tiny:
    """MOV SS from DATA, which is watched, then `code`."""
    guest = Tiny(mode, code=MOV_SS + code, fields={"GUEST_DR7": WATCH})
    guest.memory[DATA] = DATA_0.to_bytes(4, "little")
    guest.registers.update(rdi=DATA, dr0=DATA)
    return guest


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["p32", "l64"])
@pytest.mark.parametrize("name", AS_TRAP)
def test_a_watched_mov_ss_traps_behind_the_software_interrupt(
    name: str, mode: str, engine: str
) -> None:
    vector = {"int 1": 1, "int3": BP, "int n": 0x31}[name]
    run = begin(watched(mode, AS_TRAP[name]), engine=engine)
    assert run.exit.reason is ExitReason.VMCALL
    assert run.vmcs["GUEST_RIP"] == handler(1)
    # The frame below is that of the software interrupt, whose handler has not begun.
    words = run.pushed(8)
    assert words[0] == handler(vector)
    frame = 6 if mode == "l64" else 3  # aligned to 16 bytes in 64-bit mode
    assert words[frame] == CODE + len(MOV_SS) + len(AS_TRAP[name])
    assert run.processor.registers.dr6 & 0xF == 1
    assert run.vmcs[PENDING] == 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("code", [b"\xf1", b"\x0f\x0b"])
def test_a_watched_mov_ss_traps_once_or_never(code: bytes, engine: str) -> None:
    """INT1 is the one #DB; UD2 does not end, and the trap is lost."""
    run = begin(watched("l64", code), engine=engine)
    assert run.vmcs["GUEST_RIP"] == handler(1 if code == b"\xf1" else UD)
    assert run.vmcs["GUEST_RSP"] == STACK - 40
    assert run.vmcs[PENDING] == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_an_exit_behind_a_watched_mov_ss_saves_the_trap(engine: str) -> None:
    run = begin(watched("l64", b"\x0f\xa2\x90\x90"), engine=engine)
    assert run.exit.reason is ExitReason.CPUID
    assert run.vmcs[PENDING] == 0x1001
    assert run.vmcs[BLOCKING] == BLOCKING_BY_MOV_SS
