"""The event timer, by its specification (IA-PC HPET 1.0a); a microsecond is 1,000 instructions."""

from hypothesis import given, settings
from hypothesis import strategies as st

from trapgate.vmm.devices.clock import VirtualClock
from trapgate.vmm.devices.hpet import Hpet, LineGate
from trapgate.vmm.devices.pc import Pc

CONFIGURATION, STATUS, COUNTER = 0x10, 0x20, 0xF0
TICK = 10
"""Instructions of a tick of the counter: 10 ns."""
LEVEL, ENABLED, PERIODIC, SET_VALUE, NARROW = 2, 4, 8, 0x40, 0x100
PIN_20 = 20 << 9


class Wire:
    def __init__(self) -> None:
        self.level = False
        self.edges = 0

    def set(self, level: bool) -> None:
        self.edges += level and not self.level
        self.level = level


class Bench:
    """A timer block with its wires."""

    def __init__(self) -> None:
        self.pins = {number: Wire() for number in range(24)}
        self.legacy = (Wire(), Wire())
        self.pit, self.rtc = Wire(), Wire()
        self.gates = (LineGate(self.pit), LineGate(self.rtc))
        self.hpet = Hpet(
            VirtualClock(), lambda n, level: self.pins[n].set(level), self.legacy, self.gates
        )

    def write(self, offset: int, value: int, now: int = 0, size: int = 8) -> None:
        self.hpet.write(offset, size, value, now)

    def read(self, offset: int, now: int = 0, size: int = 8) -> int:
        return self.hpet.read(offset, size, now)

    def timer(self, number: int, configuration: int, comparator: int, now: int = 0) -> None:
        self.write(0x100 + 0x20 * number, configuration, now)
        self.write(0x108 + 0x20 * number, comparator, now)


def test_identity() -> None:
    bench = Bench()
    capabilities = bench.read(0)
    assert capabilities >> 32 == 10_000_000, "femtoseconds of a tick"
    assert capabilities >> 16 & 0xFFFF == 0x8086
    assert capabilities >> 8 & 0x1F == 2, "the last timer's number"
    assert capabilities & 1 << 13, "64 bits"
    assert capabilities & 1 << 15, "legacy replacement"
    assert bench.read(4, size=4) == 10_000_000
    assert bench.read(0x100) >> 32 == 0x00F0_0000
    assert bench.read(0x160) == 0, "there is no fourth timer"


def test_the_counter_counts_while_it_is_enabled() -> None:
    bench = Bench()
    assert bench.read(COUNTER, 5000) == 0
    bench.write(COUNTER, 0x1_FFFF_FFF0, 5000)
    bench.write(CONFIGURATION, 1, 10_000)
    assert bench.read(COUNTER, 10_000 + 32 * TICK) == 0x2_0000_0010
    assert bench.read(COUNTER + 4, 10_000 + 32 * TICK, size=4) == 2
    bench.write(CONFIGURATION, 0, 10_000 + 40 * TICK)
    assert bench.read(COUNTER, 99_999) == 0x2_0000_0018


def test_one_shot() -> None:
    bench = Bench()
    bench.timer(0, ENABLED | PIN_20, 100)
    assert bench.hpet.next_deadline(0) is None, "the counter stands"
    bench.write(CONFIGURATION, 1, 0)
    assert bench.hpet.next_deadline(0) == 100 * TICK
    bench.hpet.advance(100 * TICK - 1)
    assert bench.pins[20].edges == 0
    bench.hpet.advance(100 * TICK)
    assert (bench.pins[20].edges, bench.pins[20].level) == (1, False)
    bench.hpet.advance(10**9)
    assert bench.pins[20].edges == 1


def test_periodic() -> None:
    """First the comparator with VAL_SET, then the period (section 2.3.9.2.2)."""
    bench = Bench()
    bench.write(CONFIGURATION, 1, 0)
    bench.timer(1, ENABLED | PERIODIC | SET_VALUE | PIN_20, 1000)
    bench.write(0x128, 50)
    edges = []
    now = 0
    for _ in range(4):
        deadline = bench.hpet.next_deadline(now)
        assert deadline is not None
        now = deadline
        bench.hpet.advance(now)
        edges.append(now // TICK)
    assert edges == [1000, 1050, 1100, 1150]
    assert bench.pins[20].edges == 4
    assert bench.read(0x128, now) == 1200
    bench.hpet.advance(now + 500 * TICK)
    assert bench.pins[20].edges == 5, "what was missed is one edge"
    assert bench.hpet.next_deadline(now + 500 * TICK) == now + 550 * TICK


def test_level_triggered_until_the_status_is_cleared() -> None:
    bench = Bench()
    bench.write(CONFIGURATION, 1, 0)
    bench.timer(2, ENABLED | LEVEL | PIN_20, 10)
    bench.hpet.advance(10 * TICK)
    assert bench.pins[20].level
    assert bench.read(STATUS, 11 * TICK) == 1 << 2
    bench.write(STATUS, 0b011, 12 * TICK)
    assert bench.pins[20].level
    bench.write(STATUS, 0b100, 13 * TICK)
    assert not bench.pins[20].level
    assert bench.read(STATUS, 14 * TICK) == 0


def test_a_narrow_timer_comes_round() -> None:
    bench = Bench()
    bench.write(COUNTER, 0xFFFF_FFFF_FFFF_FFF0)
    bench.write(CONFIGURATION, 1, 0)
    bench.timer(0, ENABLED | NARROW | PIN_20, 0x10)
    assert bench.hpet.next_deadline(0) == 0x20 * TICK
    bench.hpet.advance(0x20 * TICK)
    assert bench.hpet.next_deadline(0x20 * TICK) == (0x20 + (1 << 32)) * TICK


def test_legacy_replacement() -> None:
    bench = Bench()
    bench.gates[0].set(True)
    assert bench.pit.level
    bench.timer(0, ENABLED, 10)
    bench.timer(1, ENABLED, 20)
    bench.write(CONFIGURATION, 3, 0)
    assert not bench.pit.level, "the 8254's interrupt goes nowhere"
    bench.hpet.advance(20 * TICK)
    assert [wire.edges for wire in bench.legacy] == [1, 1]
    bench.write(CONFIGURATION, 1, 20 * TICK)
    assert bench.pit.level


def test_without_an_interrupt_enabled_nothing_happens() -> None:
    bench = Bench()
    bench.write(CONFIGURATION, 1, 0)
    bench.timer(0, PIN_20, 10)
    bench.timer(1, ENABLED | 5 << 9, 10)  # a pin it cannot be routed to
    bench.hpet.advance(20 * TICK)
    assert not any(wire.edges for wire in bench.pins.values())


def test_it_is_in_the_machine() -> None:
    pc = Pc(1 << 20, lambda byte: None)
    assert pc.load(0xFED00004, 4, 0) == 10_000_000
    pc.store(0xFED00010, 4, 1, 0)
    assert pc.load(0xFED000F0, 4, 1000) == 100
    assert 0xFED00 in pc.pages


accesses = st.lists(
    st.tuples(
        st.sampled_from(
            [0, 0x10, 0x14, 0x20, 0xF0, 0xF4, 0x100, 0x108, 0x120, 0x128, 0x148, 0xFF8]
        ),
        st.sampled_from([1, 2, 4, 8]),
        st.integers(0, (1 << 64) - 1),
        st.integers(0, 10**12),
    ),
    max_size=30,
)


@settings(max_examples=200)
@given(accesses)
def test_whatever_is_written_deadlines_lie_ahead(
    writes: list[tuple[int, int, int, int]],
) -> None:
    bench = Bench()
    now = 0
    for offset, size, value, later in writes:
        now += later
        bench.write(offset, value & (1 << 8 * size) - 1, now, size)
        deadline = bench.hpet.next_deadline(now)
        assert deadline is None or deadline > now
        assert 0 <= bench.read(offset & ~7, now) < 1 << 64
