"""Guests that write nonsense into the interrupt controllers: runs end, each time the same way."""

import random
from collections.abc import Callable
from struct import pack

import pytest

from tests.guests.apic_guest import APIC, COUNT, IO_APIC, apic, io_apic, machine, out, write_msr
from trapgate.vmm.actions import End

SEEDS = range(12)
LIMIT = 100_000


def nonsense(seed: int) -> bytes:
    """Code that reaches every register with every width, at any address in and around the pages."""
    r = random.Random(seed)

    def address() -> int:
        page = r.choice((APIC, APIC, IO_APIC))
        offset = r.choice((r.randrange(0x400) & ~0xF, r.randrange(-8, 0x1008), 0x10, 0))
        return page + offset

    def number() -> int:
        return r.choice((r.getrandbits(32), 1 << r.randrange(32), r.randrange(256), 0xFFFFFFFF, 0))

    def pointer() -> bytes:
        return b"\xbb" + pack("<I", address())  # mov ebx, address

    ports = (0x510, 0x511, 0x600, 0x602, 0x604, 0x608, 0x80, 0x20)
    msrs = (0x1B, 0x6E0, 0x808, 0x830, 0x832, 0x83F)
    to_device, from_device = b"\xbf", b"\xbe"  # mov edi, esi
    snippets: tuple[Callable[[], bytes], ...] = (
        lambda: apic(r.randrange(0x400) & ~0xF, number()),
        lambda: io_apic(r.randrange(0x48), number()),
        lambda: b"\xa1" + pack("<I", address()),
        lambda: pointer() + b"\x88\x03",
        lambda: pointer() + b"\x66\x89\x03",
        lambda: pointer() + b"\x89\x03",
        lambda: pointer() + b"\xf0\x01\x03",
        lambda: pointer() + b"\xf0\x0f\xc7\x0b",
        lambda: pointer() + b"\x0f\x11\x03",
        lambda: pointer() + b"\xdd\x3b",
        lambda: to_device + pack("<I", address()) + b"\xb9\x40\0\0\0\xf3\xab",
        lambda: from_device + pack("<I", address()) + b"\xbf\0\0\x33\0\xb9\x80\0\0\0\xf3\xa4",
        lambda: to_device + pack("<I", address()) + b"\x66\xba\x11\x05\xb9\x08\0\0\0\xf3\x6c",
        lambda: write_msr(r.choice(msrs), number()),
        lambda: out(r.choice(ports), number() & 0xFF),
        lambda: b"\xfb\x90\x90",
        lambda: b"\xfa",
    )
    return b"".join(r.choice(snippets)() for _ in range(60))


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("seed", SEEDS)
def test_nonsense_into_the_interrupt_controllers(seed: int, engine: str) -> None:
    outcomes = []
    for _ in range(2):
        vm = machine(nonsense(seed), engine=engine)
        stop = vm.run(max_instructions=LIMIT, timeout=60)
        assert stop.message != "out of time"
        count = vm.processor.memory.read(COUNT, 4)
        outcomes.append((stop, vm.processor.time, vm.summary().exits, count))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0].end in set(End) - {End.ENTRY_FAILED, End.UNHANDLED}


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize(
    ("period", "end"),
    [(1, End.LIMIT), (2, End.LIMIT), (37, End.DEBUG_EXIT), (1000, End.DEBUG_EXIT)],
)
def test_a_timer_faster_than_its_handler_cannot_outrun_the_limit(
    period: int, end: End, engine: str
) -> None:
    # As on a processor: behind the handler's IRET the next interrupt is there already.
    wait = b"\xfb\xb9\x00\x10\x00\x00\xe2\xfe\xfa"  # sti; loop 4096 times; cli
    code = apic(0x3E0, 0xB) + apic(0x320, 1 << 17 | 0x41) + apic(0x380, period) + wait
    vm = machine(code, engine=engine)
    stop = vm.run(max_instructions=1_000_000, timeout=60)
    assert stop.end == end, stop
    assert stop.message != "out of time"
    assert int.from_bytes(vm.processor.memory.read(COUNT, 4), "little") > 1


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_level_that_nobody_serves_comes_for_ever_and_the_run_still_ends(engine: str) -> None:
    # The SCI, level-triggered, with the timer's status set and never cleared.
    code = (
        io_apic(0x11 + 18, 0)
        + io_apic(0x10 + 18, 0x8000 | 0x69)
        + b"\x66\xba\x02\x06\x66\xb8\x01\x00\x66\xef"  # timer enable
        + b"\xfb\xf4\xeb\xfd"
    )
    vm = machine(code, engine=engine)
    stop = vm.run(max_instructions=2_344_000_000, timeout=60)
    assert stop.end == End.LIMIT
    assert stop.message != "out of time"
    assert int.from_bytes(vm.processor.memory.read(COUNT, 4), "little") > 1
