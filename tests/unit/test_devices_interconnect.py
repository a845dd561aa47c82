"""Several local APICs and the I/O APIC: who gets which message."""

import pytest

from tests.unit.test_devices_apic import Processor
from trapgate.vmm.devices.apic import LocalApic
from trapgate.vmm.devices.interconnect import Interconnect
from trapgate.vmm.devices.ioapic import IoApic
from trapgate.vmm.devices.pic import PicPair

BASE = 0xFEE0_0000
ENABLED, X2APIC, BOOT = 1 << 11, 1 << 10, 1 << 8
LOGICAL, LOWEST = 1 << 11, 1 << 8
SELF, ALL, OTHERS = 1 << 18, 2 << 18, 3 << 18


class Machine:
    """Local APICs that are enabled and have logical ID 1 << n, and an I/O APIC."""

    def __init__(self, count: int = 4) -> None:
        bus = Interconnect()
        self.processors = [Processor() for _ in range(count)]
        self.apics = [LocalApic(one, PicPair(), bus, n) for n, one in enumerate(self.processors)]
        self.io = IoApic(bus, count)
        for n, apic in enumerate(self.apics):
            apic.write(0xF0, 4, 0x1FF, 0)
            apic.write(0xD0, 4, 1 << 24 + n, 0)

    def send(self, command: int, destination: int = 0, of: int = 0) -> list[int]:
        """Write the ICR of one; the numbers of those that have vector 44H now."""
        self.apics[of].write(0x310, 4, destination << 24, 0)
        self.apics[of].write(0x300, 4, command, 0)
        return [n for n, apic in enumerate(self.apics) if apic.pending()]


@pytest.mark.parametrize(
    ("command", "destination", "arrives"),
    [
        (0x44, 2, [2]),
        (0x44, 7, []),
        (0x44, 0xFF, [0, 1, 2, 3]),
        (LOGICAL | 0x44, 0x0A, [1, 3]),
        (LOGICAL | LOWEST | 0x44, 0x0C, [2]),
        (SELF | 0x44, 3, [1]),
        (ALL | 0x44, 3, [0, 1, 2, 3]),
        (OTHERS | 0x44, 3, [0, 2, 3]),
    ],
)
def test_destinations_and_shorthands(command: int, destination: int, arrives: list[int]) -> None:
    assert Machine().send(command, destination, of=1) == arrives


def test_lowest_priority_looks_at_task_and_interrupts_in_service() -> None:
    machine = Machine()
    machine.processors[0].cr8 = 5
    machine.send(0x66, 1)
    assert machine.apics[1].acknowledge() == 0x66
    assert machine.send(LOGICAL | LOWEST | 0x84, 0x07) == [2]


def test_others_wait_for_a_start_up_and_the_first_does_not() -> None:
    machine = Machine(3)
    machine.send(OTHERS | 0x4500)
    machine.send(OTHERS | 0x4608)
    machine.send(0x400, 2)
    assert [one.inits for one in machine.processors] == [0, 1, 1]
    assert [one.start_ups for one in machine.processors] == [[], [8], [8]]
    assert [one.nmis for one in machine.processors] == [0, 0, 1]
    bases = [apic.read_msr(0x1B, 0) for apic in machine.apics]
    assert bases == [BASE | ENABLED | BOOT, BASE | ENABLED, BASE | ENABLED]


def test_after_a_reset_all_but_the_first_are_disabled_and_masked() -> None:
    bus = Interconnect()
    first, second = (LocalApic(Processor(), PicPair(), bus, n) for n in range(2))
    assert first.read(0xF0, 4, 0) == 0x1FF
    assert second.read(0xF0, 4, 0) == 0xFF
    assert second.read(0x350, 4, 0) == 1 << 16
    assert (first.read(0x20, 4, 0), second.read(0x20, 4, 0)) == (0, 1 << 24)


def test_x2apic_ids_are_clusters_of_sixteen() -> None:
    machine = Machine(18)
    for apic in machine.apics:
        assert apic.write_msr(0x1B, apic.base | X2APIC, 0, 0)
    assert machine.apics[17].read_msr(0x802, 0) == 17
    assert machine.apics[17].read_msr(0x80D, 0) == 0x1_0002
    assert machine.apics[3].write_msr(0x830, 0x1_0003 << 32 | LOGICAL | 0x44, 0, 0)
    assert [n for n, apic in enumerate(machine.apics) if apic.pending()] == [16, 17]
    assert machine.apics[3].write_msr(0x830, 5 << 32 | 0x55, 0, 0)
    assert machine.apics[5].pending()


def test_a_level_interrupt_ends_where_it_was_taken() -> None:
    machine = Machine()
    for index, value in ((0x11 + 6, 2 << 24), (0x10 + 6, 1 << 15 | 0x44)):
        machine.io.write(0, 4, index, 0)
        machine.io.write(0x10, 4, value, 0)
    machine.io.set_line(3, True)
    assert [apic.pending() for apic in machine.apics] == [False, False, True, False]
    assert machine.apics[2].acknowledge() == 0x44
    machine.io.set_line(3, False)
    machine.apics[2].write(0xB0, 4, 0, 0)
    machine.io.set_line(3, True)
    assert machine.apics[2].pending()
    machine.io.write(0, 4, 0, 0)
    assert machine.io.read(0x10, 4, 0) == 4 << 24
