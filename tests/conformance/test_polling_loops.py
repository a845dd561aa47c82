"""Loops that wait for a time by RDTSC: virtual time runs there, and nowhere else.

What is expected is what the loops ask for: they end when the counter has come to their time, with
interrupts on the way. Which instructions store nothing is asked of iced-x86.
"""

import random
from itertools import pairwise

import iced_x86 as iced
import pytest

from tests.guests.test_snapshots import state
from trapgate.decode.length import length_of
from trapgate.decode.pure_instructions import NOT_PURE, PURE, step_of
from trapgate.vmm.actions import End
from trapgate.vmm.machine import VirtualMachine

ENGINES = pytest.mark.parametrize("engine", ["native", "portable"])
START = 0x7C00
SECOND = 10**9
EXIT = "b000 e6f4"


def machine(code: str, engine: str = "native", **fields: int) -> VirtualMachine:
    """32-bit code in ring 0, with a handler at 5000H for interrupt 20H: inc dword [6000h]; iret."""
    vm = VirtualMachine(1 << 20, engine=engine)
    memory = vm.processor.memory
    memory.write(START, bytes.fromhex(code))
    memory.write(0x1000 + 8 * 0x20, bytes.fromhex("0050 0800 008e 0000"))
    memory.write(0x1800 + 8, bytes.fromhex("ffff0000009bcf00 ffff00000093cf00"))
    memory.write(0x5000, bytes.fromhex("ff0500600000 50 b020 e620 58 cf"))
    vm.vmcs.set_flat_segments(32)
    vm.vmcs["GUEST_CR0"] |= 1
    vm.vmcs["GUEST_IDTR_BASE"], vm.vmcs["GUEST_IDTR_LIMIT"] = 0x1000, 0x7FF
    vm.vmcs["GUEST_GDTR_BASE"], vm.vmcs["GUEST_GDTR_LIMIT"] = 0x1800, 23
    vm.vmcs["GUEST_CS_SELECTOR"] = 8
    vm.vmcs["GUEST_RIP"], vm.vmcs["GUEST_RSP"] = START, 0x7000
    for name, value in fields.items():
        vm.vmcs[name] = value
    return vm


# EBX: a second later. Then: wait till EDX:EAX, of which EAX counts, is beyond.
_BEGIN = "0f31 89c3 81c300ca9a3b"
_LOOPS = {
    "compare": "0f31 39d8 78fa",
    "with PAUSE": "f390 0f31 39d8 78f8",
    "fenced": "0faee8 0f31 f390 29d8 78f5",
    "RDTSCP": "0f01f9 f390 29d8 78f7",
    "out of the middle": "0f31 29d8 7904 f390 ebf6",
    "a long branch": "0f31 29d8 0f88f6ffffff",
    "a limit in memory": "891d00300000 f390 0f31 2b0500300000 78f4",
    "put aside on the stack": "f390 0f31 89442408 891424 8b442408 29d8 78ed",
    "more to compute": "f390 0f31 89c1 29d9 8d0409 83c700 c1e800 0fb6f0 85c9 78ea",
}
_OTHERS = {
    "a store": "0f31 a300300000 39d8 78f5",
    "a store to a table": "0f31 89049c 39d8 78f7",
    "a push": "0f31 50 58 39d8 78f8",
    "a call": "e802000000 eb03 0f31 c3 39d8 78f3",
    "an access to a port": "0f31 89c1 e480 29d9 78f6",
    "LOCK": "0f31 f083050030000000 39d8 78f3",
    "an exchange": "0f31 870d00300000 39d8 78f4",
    "a string": "0f31 39d8 a6 39d8 78f7",
    "a loop within": "0f31 b903000000 49 75fd 39d8 78f2",
    "too many instructions": "0f31" + "90" * 40 + "39d8 78d2",
}


@ENGINES
@pytest.mark.parametrize("loop", _LOOPS)
def test_time_runs_till_what_is_waited_for(loop: str, engine: str) -> None:
    vm = machine(_BEGIN + _LOOPS[loop] + EXIT, engine)
    stop = vm.run(max_instructions=2 * SECOND)
    assert stop.end is End.DEBUG_EXIT
    # Not before; at most the microseconds of the last two looks, and some rounds, later.
    assert SECOND <= vm.processor.time < SECOND + 2100
    assert vm.processor.time - vm.processor.skipped < 20 * 1_000_000


@ENGINES
@pytest.mark.parametrize("loop", _OTHERS)
def test_other_loops_take_their_instructions(loop: str, engine: str) -> None:
    vm = machine(_BEGIN + _OTHERS[loop] + EXIT, engine)
    assert vm.run(max_instructions=200_000).end is End.LIMIT
    assert vm.processor.skipped == 0


def test_few_looks_are_no_loop() -> None:
    """A guest that waits shortly gets that to the instruction; one that measures, too."""
    vm = machine("b910000000 0f31 49 75fb" + EXIT)
    assert vm.run(max_instructions=1000).end is End.DEBUG_EXIT
    assert vm.processor.skipped == 0
    # Two places by turns, many times.
    vm = machine("b900100000 0f31 89c3 0f31 29d8 49 75f5" + EXIT)
    assert vm.run(max_instructions=100_000).end is End.DEBUG_EXIT
    assert vm.processor.skipped == 0


@ENGINES
def test_interrupts_come_at_their_times(engine: str) -> None:
    """The 8254 at a thousandth of 1.193182 MHz: its ticks in a second, one behind the other."""
    pic = "b011 e620 b020 e621 b004 e621 b001 e621 b0fe e621"
    timer = "b034 e643 b0e8 e640 b003 e640 fb"
    vm = machine(pic + timer + _BEGIN + _LOOPS["with PAUSE"] + "fa" + EXIT, engine)
    assert vm.run(max_instructions=2 * SECOND).end is End.DEBUG_EXIT
    assert abs(int.from_bytes(vm.processor.memory.read(0x6000, 4), "little") - 1193) <= 1


@ENGINES
def test_who_looks_how_often_makes_no_difference(engine: str) -> None:
    """A run in one go, and one in pieces, also of single instructions; and from a snapshot on."""
    code = "0f31 89c3 81c3a0860100" + _LOOPS["with PAUSE"] + "0f31 89c6 ebfe"
    ends = []
    for piece in (200_000, 777, 1):
        vm = machine(code, engine)
        while vm.processor.time < 150_000:
            vm.step(piece)
        vm.step(200_000 - vm.processor.time)
        found = state(vm)
        del found["vmcs"], found["exits"]
        ends.append((found, vm.processor.skipped))
    assert ends[0] == ends[1] == ends[2]
    vm = machine(code, engine)
    vm.step(50_000)
    snapshot = vm.snapshot()
    for _ in range(2):
        vm.step(200_000 - vm.processor.time)
        found = state(vm)
        del found["vmcs"], found["exits"]
        assert (found, vm.processor.skipped) == ends[0]
        vm.restore(snapshot)


@pytest.mark.parametrize(("bits", "long", "wide"), [(16, 0, 0), (32, 0, 1), (64, 1, 0)])
def test_what_is_pure_stores_and_branches_nowhere(bits: int, long: int, wide: int) -> None:
    """For random bytes, of which opcodes and prefixes are more frequent."""
    r = random.Random(bits)
    information = iced.InstructionInfoFactory()
    prefixes = (0x26, 0x2E, 0x48, 0x4C, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3)
    pure = branches = stored = 0
    for _ in range(60_000):
        code = bytes(r.choice(prefixes) for _ in range(r.choice((0, 0, 0, 1, 2))))
        code += b"\x0f" * r.randrange(2)
        if r.randrange(10) == 0:
            # MOV from a register, mostly to the stack.
            code += bytes((r.choice(b"\x88\x89"), r.choice(b"\x04\x4c\x9c"), r.choice(b"\x24\x25")))
        code += r.randbytes(15)
        low, high = (int.from_bytes(code[n : n + 8], "little", signed=True) for n in (0, 8))
        instruction = iced.Decoder(bits, code).decode()
        length = int(length_of(low, high, bool(long), bool(wide)))
        step = int(step_of(low, high, length, bool(long), bool(wide)))
        if step == NOT_PURE or instruction.is_invalid:
            continue
        assert instruction.len == length, instruction
        if step != PURE:
            branches += 1
            assert instruction.flow_control in (
                iced.FlowControl.CONDITIONAL_BRANCH,
                iced.FlowControl.UNCONDITIONAL_BRANCH,
            )
            target = instruction.near_branch_target
            width = (1 << bits) - 1
            assert target == (length + step) & width, instruction
            assert step < 0 or instruction.flow_control == iced.FlowControl.CONDITIONAL_BRANCH
            continue
        pure += 1
        assert instruction.flow_control == iced.FlowControl.NEXT, instruction
        assert not instruction.is_stack_instruction, instruction
        writes = (iced.OpAccess.WRITE, iced.OpAccess.READ_WRITE, iced.OpAccess.COND_WRITE)
        accesses = information.info(instruction).used_memory()
        for one in accesses:
            if one.access in (*writes, iced.OpAccess.READ_COND_WRITE):
                assert one.base in (iced.Register.ESP, iced.Register.RSP), instruction
                assert one.index == iced.Register.NONE
                assert instruction.mnemonic == iced.Mnemonic.MOV
                stored += 1
        assert not instruction.has_lock_prefix
    assert pure > 3000
    assert branches > 100
    assert (stored > 0) == (bits != 16)


def test_a_page_ends_a_loop() -> None:
    """A loop across two pages takes its instructions, and is right all the same."""
    at = 0x8000 - 3
    vm = machine(_BEGIN, GUEST_RIP=START)
    code = (
        bytes.fromhex(_BEGIN)
        + b"\xe9"
        + (at - START - len(_BEGIN.replace(" ", "")) // 2 - 5).to_bytes(4, "little")
    )
    vm.processor.memory.write(START, code)
    vm.processor.memory.write(at, bytes.fromhex(_LOOPS["with PAUSE"] + EXIT))
    assert vm.run(max_instructions=200_000).end is End.LIMIT
    assert vm.processor.skipped == 0


def test_times_that_a_guest_reads_only_grow() -> None:
    """EDI at 3000H: each time that differs from the one before in its upper bits, in a loop."""
    vm = machine("f390 0f31 89c1 c1e90a 39f1 74f5 89ce 8937 83c704 81ff00400000 72e6" + EXIT)
    vm.processor.registers.rdi = 0x3000
    assert vm.run(max_instructions=10_000_000).end is End.DEBUG_EXIT
    data = vm.processor.memory.read(0x3000, 0x1000)
    times = [int.from_bytes(data[n : n + 4], "little") for n in range(0, len(data), 4)]
    assert all(0 < later - time <= 2 for time, later in pairwise(times))
