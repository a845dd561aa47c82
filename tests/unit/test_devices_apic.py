"""The local APIC and the I/O APIC, without a guest."""

import pytest

from trapgate.instructions import polled_ports
from trapgate.vmm.devices import Pc
from trapgate.vmm.devices.apic import LocalApic
from trapgate.vmm.devices.apic_timer import ONE_SHOT, PERIODIC, TSC_DEADLINE, ApicTimer
from trapgate.vmm.devices.ioapic import IoApic
from trapgate.vmm.devices.pc import NoProcessor
from trapgate.vmm.devices.pic import PicPair

MASKED = 1 << 16
SELF, ALL, OTHERS = 1 << 18, 2 << 18, 3 << 18
ENABLED, X2APIC, BOOT = 1 << 11, 1 << 10, 1 << 8
APIC_BASE, TSC_DEADLINE_MSR = 0x1B, 0x6E0


class Processor:
    """Pins that remember."""

    def __init__(self) -> None:
        self.cr8 = 0
        self.nmis = self.inits = self.smis = 0
        self.start_ups: list[int] = []

    def nmi(self) -> None:
        self.nmis += 1

    def init(self) -> None:
        self.inits += 1

    def smi(self) -> None:
        self.smis += 1

    def start_up(self, vector: int) -> None:
        self.start_ups.append(vector)


class Machine:
    """A local APIC with everything around it, as a driver sees it."""

    def __init__(self) -> None:
        self.processor = Processor()
        self.pic = PicPair()
        self.apic = LocalApic(self.processor, self.pic)
        self.io = IoApic(self.apic.interconnect)

    def get(self, offset: int, now: int = 0) -> int:
        return self.apic.read(offset, 4, now)

    def put(self, offset: int, value: int, now: int = 0) -> None:
        self.apic.write(offset, 4, value, now)

    def ipi(self, command: int, destination: int = 0) -> None:
        self.put(0x310, destination << 24)
        self.put(0x300, command)

    def taken(self) -> list[int]:
        """All interrupts that the processor takes now, none of them ended."""
        vectors = []
        while self.apic.pending():
            vectors.append(self.apic.acknowledge())
        return vectors

    def redirect(self, pin: int, low: int, high: int = 0) -> None:
        for index, value in ((0x11 + 2 * pin, high), (0x10 + 2 * pin, low)):
            self.io.write(0, 4, index, 0)
            self.io.write(0x10, 4, value, 0)

    def entry(self, pin: int) -> int:
        value = 0
        for n in (0, 1):
            self.io.write(0, 4, 0x10 + 2 * pin + n, 0)
            value |= self.io.read(0x10, 4, 0) << 32 * n
        return value


def test_firmware_leaves_it_in_virtual_wire_mode() -> None:
    machine = Machine()
    assert machine.get(0xF0) == 0x1FF
    assert machine.get(0x350) == 0x700
    assert machine.get(0x360) == 0x400
    assert machine.get(0x30) == 0x50014
    assert machine.apic.read_msr(APIC_BASE, 0) == 0xFEE00000 | ENABLED | BOOT
    for port, value in ((0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0)):
        machine.pic.write(port, 1, value, 0)
    machine.pic.set_line(4, True)
    assert machine.taken() == [0x34]
    machine.put(0x350, 0x700 | MASKED)
    machine.pic.write(0x20, 1, 0x20, 0)
    machine.pic.set_line(1, True)
    assert not machine.apic.pending()
    assert machine.apic.write_msr(APIC_BASE, 0xFEE00000 | BOOT, 0, 0)
    assert machine.taken() == [0x31]  # without an APIC the wire is the processor's pin


def test_external_interrupts_are_above_all_priorities() -> None:
    machine = Machine()
    for port, value in ((0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0)):
        machine.pic.write(port, 1, value, 0)
    machine.put(0x80, 0xFF)
    machine.ipi(SELF | 0xE1)
    assert not machine.apic.pending()
    machine.pic.set_line(0, True)
    assert machine.taken() == [0x30]
    assert machine.get(0x100 + 16 * 1) == 0  # and are not in service


def test_priorities_of_requests_and_services() -> None:
    machine = Machine()
    for vector in (0x51, 0x52, 0x81, 0x31):
        machine.ipi(SELF | vector)
    assert machine.taken() == [0x81]  # 51H and 52H are of a lower class than the one in service
    assert machine.get(0xA0) == 0x80
    machine.ipi(SELF | 0x8F)
    assert not machine.apic.pending()
    machine.ipi(SELF | 0x91)
    assert machine.taken() == [0x91]
    machine.put(0xB0, 0)
    assert machine.get(0xA0) == 0x80
    machine.put(0xB0, 0)
    assert machine.taken() == [0x8F]
    machine.put(0xB0, 0)
    assert machine.taken() == [0x52]
    assert machine.get(0x100 + 0x20) == 1 << 18
    assert machine.get(0x200 + 0x20) == 1 << 17
    assert machine.get(0x200 + 0x10) == 1 << 17
    machine.put(0xB0, 0)
    assert machine.taken() == [0x51]
    machine.put(0xB0, 0)
    assert machine.taken() == [0x31]
    machine.put(0xB0, 0)
    machine.put(0xB0, 0)  # one too many does nothing
    assert machine.get(0xA0) == 0
    assert machine.taken() == []
    assert machine.apic.acknowledge() == 0xFF  # nothing there any more: the spurious vector


def test_task_priority_and_cr8_are_one() -> None:
    machine = Machine()
    machine.put(0x80, 0x5A)
    assert machine.processor.cr8 == 5
    assert machine.get(0x80) == machine.get(0xA0) == 0x5A
    machine.ipi(SELF | 0x5F)
    machine.ipi(SELF | 0x41)
    assert machine.taken() == []
    machine.processor.cr8 = 4
    assert machine.get(0x80) == 0x40
    assert machine.taken() == [0x5F]
    assert machine.get(0xA0) == 0x50
    machine.put(0xB0, 0)
    machine.processor.cr8 = 3
    assert machine.taken() == [0x41]


@pytest.mark.parametrize(
    ("command", "destination", "arrives"),
    [
        (SELF | 0x44, 0x7F, True),
        (ALL | 0x44, 0x7F, True),
        (OTHERS | 0x44, 0, False),
        (0x44, 0, True),
        (0x44, 1, False),
        (0x44, 0xFF, True),
        (0x800 | 0x44, 0x02, True),
        (0x800 | 0x44, 0x05, False),
        (0x900 | 0x44, 0x06, True),
        (0x144, 0, True),
        (0x4000 | 0x44, 0, True),
    ],
)
def test_destinations(command: int, destination: int, arrives: bool) -> None:
    machine = Machine()
    machine.put(0xD0, 0x02 << 24)
    machine.ipi(command, destination)
    assert machine.taken() == ([0x44] if arrives else [])


@pytest.mark.parametrize(
    ("destination", "arrives"), [(0x32, True), (0x31, False), (0x22, False), (0xF2, True)]
)
def test_clusters(destination: int, arrives: bool) -> None:
    machine = Machine()
    machine.put(0xE0, 0)
    assert machine.get(0xE0) == 0x0FFF_FFFF
    machine.put(0xD0, 0x32 << 24)
    machine.ipi(0x800 | 0x44, destination)
    assert machine.apic.pending() == arrives


def test_nmi_and_init_reach_the_processor() -> None:
    machine = Machine()
    machine.ipi(0x400 | 0x13)
    machine.ipi(0x4500)
    assert (machine.processor.nmis, machine.processor.inits) == (1, 1)
    machine.ipi(0x8500)  # INIT level de-assert
    machine.ipi(0x4608)  # start-up: the processor runs already
    machine.ipi(0x4200)  # SMI: there is none
    assert (machine.processor.nmis, machine.processor.inits) == (1, 1)
    machine.put(0xF0, 0xFF)
    machine.ipi(0x400)
    machine.ipi(SELF | 0x44)
    assert machine.processor.nmis == 2  # software-disabled, it still takes NMIs
    assert machine.taken() == []
    assert machine.get(0x320) & machine.get(0x350) & machine.get(0x370) & MASKED
    machine.put(0x350, 0x700)
    assert machine.get(0x350) == 0x700 | MASKED


def test_errors_are_latched_by_a_write() -> None:
    machine = Machine()
    machine.put(0x370, 0xFE)
    machine.ipi(SELF | 0x0F)
    assert machine.taken() == [0xFE]
    assert machine.get(0x280) == 0
    machine.put(0x280, 0)
    assert machine.get(0x280) == 1 << 5
    machine.get(0x40)  # a register that is not there
    machine.put(0x280, 0)
    assert machine.get(0x280) == 1 << 7
    machine.put(0x370, 0x05)  # an error vector that is illegal itself
    machine.redirect(3, 0x07)
    machine.io.set_line(3, True)
    machine.put(0x280, 0)
    assert machine.get(0x280) == 1 << 6


def test_only_whole_aligned_stores_reach_a_register() -> None:
    machine = Machine()
    for offset, size in ((0x80, 1), (0x80, 2), (0x81, 4), (0x84, 4), (0x88, 8)):
        machine.apic.write(offset, size, (1 << 8 * size) - 1, 0)
    assert machine.get(0x80) == 0
    machine.apic.write(0x80, 8, 0x1_0000_0077, 0)
    assert machine.get(0x80) == 0x77
    assert machine.apic.read(0x30, 1, 0) == 0x14
    assert machine.apic.read(0x32, 2, 0) == 5
    assert machine.apic.read(0x30, 8, 0) == 0x50014
    assert machine.apic.read(0x38, 8, 0) == 0


def test_every_offset_and_size_is_survived() -> None:
    machine = Machine()
    for offset in range(0x1000):
        for size in (1, 2, 4, 8):
            assert 0 <= machine.apic.read(offset, size, 0) < 1 << 8 * size
            machine.apic.write(offset, size, (1 << 8 * size) - 1, 0)
            assert 0 <= machine.io.read(offset, size, 0) < 1 << 8 * size
            machine.io.write(offset, size, (1 << 8 * size) - 1, 0)


def test_state_transitions() -> None:
    machine = Machine()
    base = 0xFEE00000 | BOOT
    allowed = {
        "off": {"off", "xapic"},
        "xapic": {"off", "xapic", "x2apic"},
        "x2apic": {"off", "x2apic"},
    }
    bits = {"off": 0, "xapic": ENABLED, "x2apic": ENABLED | X2APIC}
    way = {"off": ["off"], "xapic": ["off", "xapic"], "x2apic": ["off", "xapic", "x2apic"]}
    for before, steps in way.items():
        for after, value in bits.items():
            for step in steps:
                assert machine.apic.write_msr(APIC_BASE, base | bits[step], 0, 0)
            moved = machine.apic.write_msr(APIC_BASE, base | value, 0, 0)
            assert moved == (after in allowed[before]), (before, after)
            assert not machine.apic.write_msr(APIC_BASE, base | X2APIC, 0, 0)
            assert machine.apic.write_msr(APIC_BASE, base, 0, 0)
    for wrong in (1, 1 << 9, 1 << 40):
        assert not machine.apic.write_msr(APIC_BASE, base | wrong, 0, 0)
    assert machine.apic.page is None
    assert machine.apic.write_msr(APIC_BASE, 0xFED40000 | BOOT | ENABLED, 0, 0)
    assert machine.apic.page == 0xFED40
    assert machine.get(0xF0) == 0xFF  # it lost its state when it was off
    assert machine.get(0x350) == MASKED


def x2apic() -> Machine:
    machine = Machine()
    assert machine.apic.write_msr(APIC_BASE, 0xFEE00000 | BOOT | ENABLED | X2APIC, 0, 0)
    return machine


def test_read_only_bits_of_a_local_vector_may_be_written_in_x2apic_mode() -> None:
    apic = x2apic().apic
    assert apic.write_msr(0x80F, 0x1FF, 0, 0)
    assert apic.write_msr(0x835, 0x5700, 0, 0)
    assert apic.read_msr(0x835, 0) == 0x700
    assert apic.write_msr(0x832, 0x10F0, 0, 0)
    assert not apic.write_msr(0x832, 0x4000, 0, 0)


def test_x2apic_registers() -> None:
    machine = x2apic()
    apic = machine.apic
    assert apic.page is None
    assert apic.read_msr(0x802, 0) == 0
    assert apic.read_msr(0x80D, 0) == 1
    assert apic.read_msr(0x803, 0) == 0x50014
    assert apic.write_msr(0x808, 0x20, 0, 0)
    assert machine.processor.cr8 == 2
    assert apic.write_msr(0x830, 0x99 | 7 << 32, 0, 0)
    assert not apic.pending()
    assert apic.read_msr(0x830, 0) == 0x99 | 7 << 32
    assert apic.write_msr(0x830, 0x99, 0, 0)
    assert apic.write_msr(0x83F, 0xA9, 0, 0)
    assert machine.taken() == [0xA9]
    assert apic.read_msr(0x815, 0) == 1 << 9
    assert apic.write_msr(0x80B, 0, 0, 0)
    assert machine.taken() == [0x99]
    assert apic.write_msr(0x830, 0x800 | 0x71 | 1 << 32, 0, 0)
    assert apic.write_msr(0x80B, 0, 0, 0)
    assert machine.taken() == [0x71]
    for index in (0x80B, 0x80E, 0x80C, 0x82F, 0x831, 0x83F, 0x840, 0x8FF, 0x800):
        assert apic.read_msr(index, 0) is None, hex(index)
    for index, value in (
        (0x802, 0), (0x803, 0), (0x80A, 0), (0x80D, 0), (0x810, 0), (0x839, 0), (0x80E, 0),
        (0x80B, 1), (0x828, 1), (0x808, 0x100), (0x80F, 0x1000), (0x832, 1 << 19),
        (0x83E, 4), (0x83F, 0x100), (0x838, 1 << 32), (0x830, 1 << 20),
    ):  # fmt: skip
        assert not apic.write_msr(index, value, 0, 0), hex(index)


def test_xapic_mode_has_no_x2apic_msrs() -> None:
    machine = Machine()
    assert machine.apic.read_msr(0x803, 0) is None
    assert not machine.apic.write_msr(0x83F, 0x99, 0, 0)


def test_a_disabled_apic_hears_nothing() -> None:
    machine = Machine()
    machine.apic.write_msr(APIC_BASE, 0xFEE00000 | BOOT, 0, 0)
    machine.redirect(3, 0x400)
    machine.io.set_line(3, True)
    machine.apic.lint(1, True)
    assert machine.processor.nmis == 0
    assert machine.apic.read_msr(0x803, 0) is None


@pytest.mark.parametrize(
    ("divide", "by"),
    [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)],
)
def test_timer_divides(divide: int, by: int) -> None:
    timer = ApicTimer()
    timer.set_divide(divide, 0)
    timer.set_initial(100, 50)
    assert timer.next_deadline() == 50 + 100 * by
    assert timer.count(50 + 40 * by) == 60
    assert timer.count(50 + 40 * by + by - 1) == 60
    assert not timer.expired(50 + 100 * by - 1)
    assert timer.expired(50 + 100 * by)
    assert timer.count(10**9) == 0
    assert timer.next_deadline() is None


def test_timer_counts_on_through_changes_of_mode_and_divisor() -> None:
    timer = ApicTimer()
    timer.set_divide(11, 0)
    timer.set_initial(1000, 0)
    timer.set_mode(PERIODIC)
    assert timer.count(600) == 400
    timer.set_divide(0, 600)
    assert timer.count(600) == 400
    assert timer.expired(1400)
    assert timer.count(1400) == 1000
    assert timer.next_deadline() == 3400
    assert timer.expired(3400 + 10 * 2000 + 1)  # missed ones are one
    assert timer.next_deadline() == 3400 + 11 * 2000
    timer.set_mode(ONE_SHOT)
    assert timer.expired(3400 + 11 * 2000)
    timer.set_mode(PERIODIC)
    assert timer.count(3400 + 11 * 2000) == 0  # what stands still stays so
    timer.set_initial(0, 0)
    assert timer.next_deadline() is None


def test_tsc_deadline() -> None:
    machine = Machine()
    apic = machine.apic
    assert apic.write_msr(TSC_DEADLINE_MSR, 500, 100, 0)
    assert apic.read_msr(TSC_DEADLINE_MSR, 0) == 0  # not in this mode
    machine.put(0x320, TSC_DEADLINE << 17 | 0x70)
    assert apic.write_msr(TSC_DEADLINE_MSR, 5_500, 5_000, 100)
    assert apic.read_msr(TSC_DEADLINE_MSR, 100) == 5_500
    machine.put(0x380, 77, 100)
    assert machine.get(0x390, 100) == machine.get(0x380, 100) == 0
    assert apic.next_deadline(100) == 600
    apic.advance(600)
    assert machine.taken() == [0x70]
    assert apic.read_msr(TSC_DEADLINE_MSR, 600) == 0
    machine.put(0xB0, 0)
    assert apic.write_msr(TSC_DEADLINE_MSR, 5_400, 5_500, 700)  # has passed: at once
    assert machine.taken() == [0x70]
    machine.put(0xB0, 0)
    assert apic.write_msr(TSC_DEADLINE_MSR, 10_000, 5_600, 800)
    assert apic.write_msr(TSC_DEADLINE_MSR, 0, 5_600, 800)
    assert apic.next_deadline(800) is None
    assert apic.write_msr(TSC_DEADLINE_MSR, 10_000, 5_600, 800)
    machine.put(0x320, PERIODIC << 17 | 0x70, 900)
    assert apic.next_deadline(900) is None


def test_a_masked_timer_wants_no_time() -> None:
    machine = Machine()
    machine.put(0x3E0, 11)
    machine.put(0x380, 1000)
    assert machine.apic.next_deadline(0) is None
    machine.put(0x320, 0x70, 10)
    assert machine.apic.next_deadline(10) == 1000
    machine.apic.advance(1000)
    machine.put(0x320, PERIODIC << 17 | 0x70, 1000)
    machine.put(0x380, 1, 1000)
    assert machine.apic.next_deadline(1000) is None  # the request before waits still
    assert machine.taken() == [0x70]
    assert machine.apic.next_deadline(1000) == 1001
    assert machine.get(0x390, 1500) == 1


def test_lint0_takes_edges_of_the_8259s_in_other_modes() -> None:
    pc = Pc(1 << 24, lambda byte: None)
    for port, value in ((0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xFE)):
        pc.write(port, 1, value, 0)
    pc.store(0xFEE00350, 4, 0x0051, 0)
    for port, value in ((0x43, 0x34), (0x40, 0x9C), (0x40, 0x2E)):
        pc.write(port, 1, value, 0)
    assert pc.acknowledge() == 0x51  # the timer's output rose when its mode was set
    pc.store(0xFEE000B0, 4, 0, 0)
    now = pc.next_deadline(0)
    assert now is not None
    pc.advance(now)
    assert pc.acknowledge() == 0x51
    assert not pc.pending()


def test_edges_at_the_io_apic() -> None:
    machine = Machine()
    assert machine.entry(5) == MASKED
    machine.io.set_line(5, True)
    machine.redirect(5, 0x65)
    assert machine.taken() == []  # an edge at a masked pin is lost
    machine.io.set_line(5, False)
    machine.io.set_line(5, True)
    machine.io.set_line(5, True)
    assert machine.taken() == [0x65]
    machine.put(0xB0, 0)
    assert machine.taken() == []
    machine.redirect(5, 0x65, 3 << 24)
    machine.io.set_line(5, False)
    machine.io.set_line(5, True)
    assert machine.taken() == []  # for another APIC
    machine.redirect(5, 0x400)
    machine.io.set_line(5, False)
    machine.io.set_line(5, True)
    assert machine.processor.nmis == 1


def test_levels_ask_again_until_they_fall() -> None:
    machine = Machine()
    machine.redirect(9, 0x8000 | 0x69)
    machine.io.set_line(9, True)
    assert machine.entry(9) == 0xC069  # remote IRR
    assert machine.taken() == [0x69]
    assert machine.get(0x180 + 0x30) == 1 << 9
    machine.put(0xB0, 0)
    assert machine.taken() == [0x69]
    machine.io.set_line(9, False)
    machine.put(0xB0, 0)
    assert machine.taken() == []
    assert machine.entry(9) == 0x8069
    machine.redirect(9, 0x18000 | 0x69)
    machine.io.set_line(9, True)
    assert machine.taken() == []
    machine.redirect(9, 0x8000 | 0x69)
    assert machine.taken() == [0x69]
    machine.redirect(9, 0x0069)  # edge-triggered: remote IRR has no meaning
    assert machine.entry(9) == 0x69


def test_io_apic_registers() -> None:
    machine = Machine()
    io = machine.io
    io.write(0, 4, 1, 0)
    assert io.read(0, 4, 0) == 1
    assert io.read(0x10, 4, 0) == 0x170011
    io.write(0, 1, 0, 0)
    io.write(0x10, 4, 0xFF000000, 0)
    assert io.read(0x10, 4, 0) == 0x0F000000
    for index in (0x40, 0xFF, 5):
        io.write(0, 4, index, 0)
        io.write(0x10, 4, 0xFFFFFFFF, 0)
        assert io.read(0x10, 4, 0) == 0
    machine.redirect(23, 0xFFFFFFFF, 0xFFFFFFFF)
    assert machine.entry(23) == 0xFF0000000001AFFF


def test_the_timer_line_of_the_pc_is_pin_2() -> None:
    pc = Pc(1 << 24, lambda byte: None)
    for pin in (0, 2):
        for index, value in ((0x11 + 2 * pin, 0), (0x10 + 2 * pin, 0x60 + pin)):
            pc.store(0xFEC00000, 4, index, 0)
            pc.store(0xFEC00010, 4, value, 0)
    for port, value in ((0x43, 0x34), (0x40, 0x9C), (0x40, 0x2E)):
        pc.write(port, 1, value, 0)
    assert pc.acknowledge() == 0x62
    pc.store(0xFEE000B0, 4, 0, 0)
    assert not pc.pending()


def test_only_device_pages_answer() -> None:
    pc = Pc(1 << 24, lambda byte: None)
    assert set(pc.pages) == {0xFEE00, 0xFEC00, 0xFED00}
    assert pc.load(0xFEE00030, 4, 0) == 0x50014
    assert pc.load(0xFEE01030, 4, 0) == 0xFFFFFFFF
    assert pc.load(0xFEC01000, 8, 0) == (1 << 64) - 1
    pc.store(0xFEC01000, 8, 0, 0)
    pc.apic.write_msr(APIC_BASE, 0xFED40000 | BOOT | ENABLED, 0, 0)
    assert pc.load(0xFEE00030, 4, 0) == 0xFFFFFFFF
    assert pc.load(0xFED40030, 4, 0) == 0x50014


def found(pc: Pc, address: int) -> int:
    """What the processor says without asking, to a load of 32 bits; -1 if it asks."""
    return int(polled_ports.latched(pc.ports.cells, address, 4))


def test_the_processor_knows_the_id_of_its_apic() -> None:
    pins = [NoProcessor(), NoProcessor()]
    pc = Pc(1 << 20, lambda _: None, processor=pins[0], others=pins[1:])
    assert found(pc, 0xFEE0_0020) == 0
    pc.select(1)
    assert found(pc, 0xFEE0_0020) == 1 << 24
    pc.store(0xFEE0_0020, 4, 7 << 24, 0)
    assert found(pc, 0xFEE0_0020) == pc.load(0xFEE0_0020, 4, 0) == 7 << 24
    assert found(pc, 0xFEE0_0030) == found(pc, 0x20) == -1
    pc.apic.write_msr(APIC_BASE, 0x8000_0000 | ENABLED, 0, 0)
    pc.update_slots()
    assert (found(pc, 0xFEE0_0020), found(pc, 0x8000_0020)) == (-1, 7 << 24)
    pc.apic.write_msr(APIC_BASE, 0x8000_0000 | ENABLED | X2APIC, 0, 0)
    pc.update_slots()
    assert found(pc, 0x8000_0020) == -1
