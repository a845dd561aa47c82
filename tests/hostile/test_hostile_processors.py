"""Guests whose processors send each other anything: no crash, and the same each time."""

import random
from struct import pack

import pytest

from tests.guests.apic_guest import apic, write_msr
from tests.guests.smp_guest import machine
from trapgate.vmm.actions import End
from trapgate.vmm.machine import VirtualMachine

ENDS = {End.DEBUG_EXIT, End.RESET, End.HALTED, End.LIMIT, End.TRIPLE_FAULT, End.ENTRY_FAILED}
LIMIT = 100_000
START_UP = 6
TIMER = (0x320, 0x380, 0x3E0)
"""Interrupts at every third instruction are dear, and nobody's surprise."""


def nonsense(seed: int, count: int = 60) -> bytes:
    """Writes to registers of the local APIC: commands to anybody, and everything else."""
    r = random.Random(seed)
    code = b""
    for _ in range(count):
        kind = r.randrange(4)
        if kind == 0:
            command = r.choice((0x4500, 0x4608, 0x4400, 0x4200, 0x41, 0x7F, r.getrandbits(20)))
            if command >> 8 & 7 == START_UP:
                command = 0x4608
            shorthand = r.choice((0, 0, 1, 2, 3)) << 18
            code += apic(0x310, r.choice((0, 1, 2, 7, 255)) << 24)
            code += apic(0x300, command & ~(3 << 18) | shorthand | r.randrange(2) << 11)
        elif kind == 1:
            offset = r.choice([n for n in range(0, 0x400, 16) if n not in TIMER])
            code += apic(offset, r.getrandbits(32))
        elif kind == 2:
            base = 0xFEE0_0000 | r.choice((0x900, 0x800, 0xD00, 0xC00, 0x500, 0))
            # #GP leads to the handler, which returns to the same instruction: not too often.
            code += write_msr(0x1B, base) if r.randrange(12) == 0 else b"\x90"
        else:
            code += r.choice((b"\xfb", b"\xfa", b"\xf3\x90", b"\xfb\xf4", b"\x90" * 5))
    return code


def run(seed: int, engine: str) -> tuple[End, str, int]:
    work = nonsense(seed)
    vm: VirtualMachine = machine(
        work, processors=4, engine=engine, seed=seed, length=200, last=nonsense(seed + 1)
    )
    stop = vm.run(max_instructions=LIMIT)
    assert stop.end in ENDS, stop
    return stop.end, stop.message, vm.processor.time


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_anything_sent_to_anybody(engine: str) -> None:
    ends = [run(seed, engine) for seed in range(40)]
    assert len({end for end, _, _ in ends}) > 1
    assert [run(seed, engine) for seed in range(5)] == ends[:5]


def test_a_broadcast_of_everything_at_once() -> None:
    storm = b"".join(
        apic(0x300, shorthand << 18 | mode << 8 | 0x4041)
        for mode in (0, 1, 2, 4, 5, 6)
        for shorthand in (1, 2, 3)
    )
    forever = b"\xfb" + storm + b"\xe9" + pack("<i", -len(storm) - 6)
    vm = machine(forever, processors=8, engine="native", length=50)
    assert vm.run(max_instructions=LIMIT).end in ENDS
