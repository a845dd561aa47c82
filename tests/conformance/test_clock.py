"""The virtual clock counts what was executed, and the preemption timer ends a run anywhere.

An instruction counts when it was executed, faults or exits. The counts below are counted by hand;
where the timer leaves a guest is compared with the same guest under the monitor trap flag.
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import ABSENT, CODE, DATA, Tiny, begin, launch, prepare
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason

ENGINES = ("native", "portable")
NOPS = b"\x90" * 3


def mem(opcode: bytes, address: int, register: int = 0) -> bytes:
    """An instruction of 32-bit code with a memory operand at a fixed address."""
    return opcode + bytes([register << 3 | 5]) + pack("<I", address)


LOAD_ABSENT = mem(b"\x8b", ABSENT)
STORE_ABSENT = mem(b"\x89", ABSENT)
CASES = {
    "no event": (NOPS, 3),
    "page fault of a load": (NOPS + LOAD_ABSENT + NOPS, 4),
    "page fault of a store": (NOPS + STORE_ABSENT + NOPS, 4),
    "divide error": (NOPS + b"\x31\xc9\xf7\xf1" + NOPS, 5),
    "undefined opcode": (NOPS + b"\x0f\x0b" + NOPS, 4),
    "INT3": (NOPS + b"\xcc" + NOPS, 4),
    "INT n": (NOPS + b"\xcd\x40" + NOPS, 4),
    "INTO": (b"\xb8\xff\xff\xff\x7f\x83\xc0\x01" + NOPS + b"\xce" + NOPS, 6),
    "INTO without overflow": (b"\x31\xc0\xce" + NOPS, 5),
    "BOUND": (b"\x31\xc0\x48" + NOPS + mem(b"\x62", DATA) + NOPS, 6),
    "null selector into SS": (b"\x31\xc0" + NOPS + b"\x8e\xd0" + NOPS, 5),
    "selector beyond the GDT": (b"\x66\xb8\x00\x10" + NOPS + b"\x8e\xd8" + NOPS, 5),
    "RDTSC": (NOPS + b"\x0f\x31" + NOPS, 7),
    "MOV CR3": (b"\x0f\x20\xd8" + NOPS + b"\x0f\x22\xd8" + NOPS, 8),
    "loads of segments": (b"\x8c\xd8\x8e\xd8\x8e\xd0" + NOPS, 6),
    "STI, CLI": (b"\xfb" + NOPS + b"\xfa" + NOPS, 8),
    "PUSHF, POPF": (b"\x9c\x9d" + NOPS, 5),
    "far jump": (NOPS + b"\xea" + pack("<IH", CODE + 12, 8) + b"\xf4\xf4" + NOPS, 7),
    "IRET": (b"\x9c\x6a\x08\x68" + pack("<I", CODE + 12) + b"\xcf\xf4\xf4\xf4" + NOPS, 7),
    "a loop": (b"\xb9\x07\x00\x00\x00\x90\x90\xe2\xfc" + NOPS, 1 + 3 * 7 + 3),
    "LDMXCSR": (mem(b"\x0f\xae", DATA, 2) + NOPS, 4),
    "a store to its own block": (
        b"\xc6\x05" + pack("<I", CODE + 8) + b"\x90\xf4\xf4"[:1] + NOPS,
        4,
    ),
    "a store to the page of the code": (b"\xc6\x05" + pack("<I", CODE + 0x80) + b"\x90" + NOPS, 4),
    "x87 exception": (
        b"\xdb\xe3" + mem(b"\xd9", DATA + 8, 5) + b"\xd9\xe8\xd9\xee\xde\xf9\x9b" + NOPS,
        6,
    ),
    "SSE exception": (mem(b"\x0f\xae", DATA + 12, 2) + b"\x0f\x57\xc0\x0f\x5e\xc0" + NOPS, 3),
}
"""32-bit code, and how many of its instructions are executed before a VMCALL, which counts, too."""
DATA_BYTES = pack("<IIII", 0x1F80, 0x7F, 0x37B, 0x1D00)


def guest(code: bytes) -> Tiny:
    """Ring 0 of 32-bit protected mode."""
    return Tiny("p32", 0, code, {DATA: DATA_BYTES}, {"GUEST_CR4": 0x2610, "GUEST_CR0": 0x80010033})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_a_guest_takes_as_long_as_it_has_instructions(name: str, engine: str) -> None:
    code, count = CASES[name]
    run = begin(guest(code), engine=engine)
    assert run.exit.reason is ExitReason.VMCALL, run.exit
    assert run.processor.time == count + 1


@pytest.mark.parametrize("engine", ENGINES)
def test_an_exit_in_mid_block_counts_what_came_before(engine: str) -> None:
    io = {"PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_UNCONDITIONAL_IO_EXITING}
    cpuid, inb = b"\x0f\xa2", b"\xe4\x60"
    run = begin(guest(NOPS + cpuid + NOPS + inb + NOPS + inb), io, engine=engine)
    times = [run.processor.time]
    for reason in (ExitReason.IO_INSTRUCTION, ExitReason.IO_INSTRUCTION, ExitReason.VMCALL):
        assert run.skip().reason is reason
        times.append(run.processor.time)
    assert times == [4, 8, 12, 13]


LOOP = b"".join(
    (
        b"\xb9\x05\x00\x00\x00",
        NOPS,
        b"\x51",
        b"\x0f\x31",
        b"\xcd\x40",
        b"\x59",
        b"\x49\x75\xf4",
        NOPS,
    )
)
"""Five times round, with a handler that returns: twelve instructions or so each."""
IRET_AT = 0xA400


def looping() -> Tiny:
    """LOOP, with an interrupt handler that returns behind a page fault's worth of work."""
    tiny = guest(LOOP)
    tiny.memory[IRET_AT] = b"\x90\x90\xcf"
    return tiny


@pytest.mark.parametrize("engine", ENGINES)
def test_the_preemption_timer_expires_at_each_instruction(engine: str) -> None:
    mtf = {"PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_MONITOR_TRAP_FLAG}
    run = begin(looping(), mtf, engine=engine)
    places = []
    while run.exit.reason is ExitReason.MONITOR_TRAP_FLAG:
        places.append((run.processor.time, run.vmcs["GUEST_RIP"], run.vmcs["GUEST_RSP"]))
        run.resume()
    assert run.exit.reason is ExitReason.VMCALL
    assert len(places) > 40
    # With the monitor trap flag an event's delivery is a step of its own, which takes no time.
    last = {time: (rip, stack) for time, rip, stack in places}
    processor, vmcs = prepare(looping(), engine=engine)
    launched = False
    for time in range(1, max(last) + 1):
        vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 1
        outcome = processor.vmresume(vmcs) if launched else processor.vmlaunch(vmcs)
        launched = True
        assert isinstance(outcome, VmExit)
        assert outcome.reason is ExitReason.PREEMPTION_TIMER
        assert processor.time == time
        assert (vmcs["GUEST_RIP"], vmcs["GUEST_RSP"]) == last[time]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("every", [2, 3, 7, 23])
def test_stops_do_not_change_the_time_of_what_follows(engine: str, every: int) -> None:
    whole = begin(looping(), engine=engine)
    processor, vmcs = prepare(looping(), engine=engine)
    vmcs["VMX_PREEMPTION_TIMER_VALUE"] = every
    outcome = processor.vmlaunch(vmcs)
    stops = []
    while isinstance(outcome, VmExit) and outcome.reason is ExitReason.PREEMPTION_TIMER:
        stops.append(processor.time)
        vmcs["VMX_PREEMPTION_TIMER_VALUE"] = every
        outcome = processor.vmresume(vmcs)
    assert processor.time == whole.processor.time
    assert stops == list(range(every, processor.time, every))


DEVICE = 0x300000


def test_a_device_sees_the_time_of_the_instruction_that_asks_it() -> None:
    flat = guest(
        NOPS + mem(b"\x8b", DEVICE) + NOPS + mem(b"\x89", DEVICE) + NOPS + mem(b"\xff", DEVICE)
    )
    flat.fields["GUEST_CR0"] = 0x33
    processor, vmcs = prepare(flat, engine="native")
    seen = []

    def load(address: int, size: int) -> int:
        seen.append(("load", processor.time))
        return 0

    def store(address: int, size: int, value: int) -> None:
        seen.append(("store", processor.time))
        processor.preempt()

    processor.connect(load, store, [DEVICE >> 12])
    outcome = processor.vmlaunch(vmcs)
    assert isinstance(outcome, VmExit)
    assert outcome.reason is ExitReason.PREEMPTION_TIMER
    assert processor.time == 8
    assert vmcs["GUEST_RIP"] == CODE + 18
    outcome = processor.vmresume(vmcs)
    assert isinstance(outcome, VmExit)
    assert outcome.reason is ExitReason.PREEMPTION_TIMER
    assert processor.time == 12
    assert vmcs["GUEST_RIP"] == CODE + 27
    assert seen == [("load", 4), ("store", 8), ("load", 12), ("store", 12)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_branch_to_a_non_canonical_address_counts_once(engine: str) -> None:
    code = b"\x48\xb8" + pack("<Q", 1 << 47) + NOPS + b"\xff\xe0"
    run = begin(Tiny("l64", 0, code), engine=engine)
    assert run.exit.reason is ExitReason.VMCALL
    assert run.pushed(1) == [0]
    assert run.processor.time == 6


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_pending_but_blocked_holds_up_no_block_that_is_cut(engine: str) -> None:
    """An NMI waits for IRET, and the timer ends within a block of 200 instructions."""
    blocked = guest(b"\x90" * 200)
    processor, vmcs = prepare(blocked, {"PIN_BASED_CONTROLS": ct.PIN_NMI_EXITING}, engine=engine)
    vmcs["GUEST_INTERRUPTIBILITY_STATE"] = 1 << 3
    vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 50
    processor.nmi()
    run = launch(blocked, processor, vmcs)
    assert run.exit.reason is ExitReason.PREEMPTION_TIMER
    assert (processor.time, vmcs["GUEST_RIP"]) == (50, CODE + 50)
