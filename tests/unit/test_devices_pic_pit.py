"""The interrupt controllers and the timer."""

from trapgate.vmm.devices.clock import PIT_HERTZ, VirtualClock
from trapgate.vmm.devices.pic import IrqLine, PicPair
from trapgate.vmm.devices.pit import Pit8254

CLOCK = VirtualClock()


class Wire:
    """A line that remembers its rising edges."""

    def __init__(self) -> None:
        self.level = False
        self.edges = 0

    def set(self, level: bool) -> None:
        self.edges += level and not self.level
        self.level = level


def initialised(*, icw4: int = 0x01, mask: int = 0) -> PicPair:
    pic = PicPair()
    for command, data, base, cascade in ((0x20, 0x21, 0x20, 4), (0xA0, 0xA1, 0x28, 2)):
        pic.write(command, 1, 0x11, 0)
        for value in (base, cascade, icw4, mask):
            pic.write(data, 1, value, 0)
    return pic


def requests(pic: PicPair, *lines: int) -> None:
    for line in lines:
        pic.set_line(line, True)


def test_a_pic_nobody_initialised_asks_for_nothing() -> None:
    pic = PicPair()
    requests(pic, 0, 4, 8)
    assert not pic.pending()


def test_priorities_and_nesting() -> None:
    pic = initialised()
    requests(pic, 4, 1)
    assert pic.pending()
    assert pic.acknowledge() == 0x21
    assert not pic.pending()  # line 4 waits behind line 1
    pic.set_line(0, True)
    assert pic.pending()  # line 0 does not
    assert pic.acknowledge() == 0x20
    pic.write(0x20, 1, 0x20, 0)
    pic.write(0x20, 1, 0x20, 0)
    assert pic.acknowledge() == 0x24


def test_an_edge_is_one_request_and_a_level_asks_again() -> None:
    pic = initialised()
    pic.set_line(4, True)
    assert pic.acknowledge() == 0x24
    pic.write(0x20, 1, 0x64, 0)
    assert not pic.pending()
    pic.write(0x4D0, 1, 0x10, 0)
    assert pic.read(0x4D0, 1, 0) == 0x10
    assert pic.pending()  # the line is still high
    pic.set_line(4, False)
    pic.write(0x4D0, 1, 0xFF, 0)
    assert pic.read(0x4D0, 1, 0) == 0xF8  # timer, keyboard and cascade stay edge triggered


def test_level_triggered_line_asks_until_it_drops() -> None:
    pic = initialised()
    pic.write(0x4D1, 1, 0x08, 0)
    pic.set_line(11, True)
    assert pic.acknowledge() == 0x2B
    assert not pic.pending()
    pic.write(0xA0, 1, 0x20, 0)
    pic.write(0x20, 1, 0x20, 0)
    assert pic.pending()
    pic.set_line(11, False)
    assert not pic.pending()


def test_cascade_serves_two_slave_lines_one_after_the_other() -> None:
    pic = initialised()
    requests(pic, 8, 12)
    assert pic.acknowledge() == 0x28
    assert not pic.pending()
    pic.write(0xA0, 1, 0x20, 0)
    assert not pic.pending()  # the master still serves line 2
    pic.write(0x20, 1, 0x62, 0)
    assert pic.pending()
    assert pic.acknowledge() == 0x2C


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself() -> None:
    pic = initialised(icw4=0x11)
    pic.set_line(12, True)
    assert pic.acknowledge() == 0x2C
    pic.set_line(8, True)
    assert pic.pending()
    assert pic.acknowledge() == 0x28


def test_spurious_vectors_of_both_chips() -> None:
    pic = initialised()
    pic.set_line(4, True)
    assert pic.pending()
    pic.set_line(4, False)
    assert not pic.pending()
    assert pic.acknowledge() == 0x27
    pic.write(0x20, 1, 0x0B, 0)
    assert pic.read(0x20, 1, 0) == 0  # a spurious interrupt is not in service
    pic.set_line(9, True)
    pic.slave.mask = 0xFF  # the request goes between the cascade and the acknowledge
    assert pic.acknowledge() == 0x2F
    assert pic.read(0x20, 1, 0) == 0x04  # but the master serves the cascade


def test_mask_and_request_register() -> None:
    pic = initialised(mask=0xFF)
    pic.set_line(3, True)
    assert not pic.pending()
    assert pic.read(0x21, 1, 0) == 0xFF
    pic.write(0x20, 1, 0x0A, 0)
    assert pic.read(0x20, 1, 0) == 0x08
    pic.write(0x21, 1, 0xF7, 0)
    assert pic.acknowledge() == 0x23


def test_automatic_end_of_interrupt_with_rotation() -> None:
    pic = initialised(icw4=0x03)
    pic.write(0x20, 1, 0x80, 0)  # rotate on automatic EOI
    requests(pic, 0, 1)
    assert pic.acknowledge() == 0x20
    pic.set_line(0, False)
    pic.set_line(0, True)
    assert pic.acknowledge() == 0x21  # line 0 is the lowest now
    assert pic.acknowledge() == 0x20


def test_rotation_on_specific_eoi_and_set_priority() -> None:
    pic = initialised()
    pic.write(0x20, 1, 0xC3, 0)  # line 3 is lowest, line 4 highest
    requests(pic, 0, 5)
    assert pic.acknowledge() == 0x25
    pic.write(0x20, 1, 0xE5, 0)  # end line 5, which becomes the lowest
    requests(pic, 6)
    assert pic.acknowledge() == 0x26
    pic.write(0x20, 1, 0xA0, 0)  # non-specific with rotation: line 6 is lowest
    requests(pic, 7)
    assert pic.acknowledge() == 0x27


def test_special_mask_mode_opens_lower_priorities() -> None:
    pic = initialised()
    requests(pic, 1, 5)
    assert pic.acknowledge() == 0x21
    pic.write(0x21, 1, 0x02, 0)
    assert not pic.pending()
    pic.write(0x20, 1, 0x68, 0)
    assert pic.pending()
    assert pic.acknowledge() == 0x25
    pic.write(0x20, 1, 0x48, 0)
    requests(pic, 3)
    assert not pic.pending()


def test_poll_answers_the_line_and_takes_it_into_service() -> None:
    pic = initialised()
    pic.write(0x20, 1, 0x0C, 0)
    assert pic.read(0x20, 1, 0) == 0
    pic.set_line(6, True)
    pic.write(0x20, 1, 0x0C, 0)
    assert pic.read(0x20, 1, 0) == 0x86
    assert not pic.pending()
    pic.write(0x20, 1, 0x0B, 0)
    assert pic.read(0x20, 1, 0) == 0x40


def test_nothing_is_pending_during_initialisation() -> None:
    pic = initialised()
    pic.write(0x20, 1, 0x11, 0)
    pic.set_line(0, True)
    assert not pic.pending()
    for value in (0x40, 4, 1):
        pic.write(0x21, 1, value, 0)
    assert pic.acknowledge() == 0x40


def test_irq_line_drives_only_changes() -> None:
    pic = initialised()
    line = IrqLine(pic, 4)
    line.set(True)
    assert pic.acknowledge() == 0x24
    pic.write(0x20, 1, 0x20, 0)
    line.set(True)
    assert not pic.pending()
    line.set(False)
    line.set(True)
    assert pic.pending()


def tick(count: int) -> int:
    """The first instruction at which `count` ticks have passed."""
    return CLOCK.instant(count, PIT_HERTZ)


def program(pit: Pit8254, channel: int, mode: int, count: int, now: int = 0) -> None:
    pit.write(0x43, 1, channel << 6 | 0x30 | mode << 1, now)
    pit.write(0x40 + channel, 1, count & 0xFF, now)
    pit.write(0x40 + channel, 1, count >> 8, now)


def counter(pit: Pit8254, channel: int, now: int) -> int:
    low = pit.read(0x40 + channel, 1, now)
    return pit.read(0x40 + channel, 1, now) << 8 | low


def test_clock_round_trip() -> None:
    for count in (0, 1, 2, 999, 1_193_182, 10**9 + 7):
        assert CLOCK.ticks(tick(count), PIT_HERTZ) == count
        if count:
            assert CLOCK.ticks(tick(count) - 1, PIT_HERTZ) == count - 1
    assert CLOCK.ticks(CLOCK.hertz, PIT_HERTZ) == PIT_HERTZ


def test_rate_generator_gives_one_edge_a_period() -> None:
    wire = Wire()
    pit = Pit8254(wire, CLOCK)
    program(pit, 0, 2, 11932)
    wire.edges = 0
    now = 0
    for period in range(1, 6):
        deadline = pit.next_deadline(now)
        assert deadline == tick(11932 * period)
        pit.advance(deadline - 1)
        assert wire.edges == period - 1
        pit.advance(deadline)
        assert wire.edges == period
        now = deadline
    pit.advance(tick(11932 * 50))
    assert wire.edges == 6  # edges nobody saw are one


def test_square_wave_level_and_count() -> None:
    wire = Wire()
    pit = Pit8254(wire, CLOCK)
    program(pit, 0, 3, 1000)
    assert counter(pit, 0, tick(10)) == 980
    pit.advance(tick(499))
    assert wire.level
    pit.advance(tick(500))
    assert not wire.level
    assert counter(pit, 0, tick(510)) == 980
    pit.advance(tick(1000))
    assert wire.level


def test_one_shot_by_interrupt_on_terminal_count() -> None:
    wire = Wire()
    pit = Pit8254(wire, CLOCK)
    program(pit, 0, 0, 300)
    assert not wire.level
    assert pit.next_deadline(0) == tick(300)
    pit.advance(tick(300))
    assert wire.level
    assert pit.next_deadline(tick(300)) is None
    assert counter(pit, 0, tick(301)) == 0xFFFF


def test_software_strobe_as_linux_one_shot() -> None:
    wire = Wire()
    pit = Pit8254(wire, CLOCK)
    program(pit, 0, 4, 1000)
    wire.edges = 0
    deadline = pit.next_deadline(0)
    assert deadline == tick(1001)
    pit.advance(deadline)
    assert wire.edges == 1
    assert pit.next_deadline(deadline) is None
    program(pit, 0, 4, 50, deadline)
    assert pit.next_deadline(deadline) == tick(1001 + 51)


def test_new_count_waits_for_the_end_of_the_cycle() -> None:
    wire = Wire()
    pit = Pit8254(wire, CLOCK)
    program(pit, 0, 2, 100)
    wire.edges = 0
    pit.write(0x40, 1, 40, tick(150))
    pit.write(0x40, 1, 0, tick(150))
    assert wire.edges == 1
    edges = []
    now = tick(150)
    for _ in range(3):
        deadline = pit.next_deadline(now)
        assert deadline is not None
        pit.advance(deadline)
        edges.append(CLOCK.ticks(deadline, PIT_HERTZ))
        now = deadline
    assert edges == [200, 240, 280]
    assert wire.edges == 4


def test_latch_and_read_back() -> None:
    pit = Pit8254(Wire(), CLOCK)
    program(pit, 0, 2, 5000)
    pit.write(0x43, 1, 0x00, tick(100))
    assert counter(pit, 0, tick(3000)) == 4900
    assert counter(pit, 0, tick(3000)) == 2000
    pit.write(0x43, 1, 0xC2, tick(200))  # status and count of channel 0
    assert pit.read(0x40, 1, tick(900)) == 0xB4  # OUT high, low then high byte, mode 2
    assert counter(pit, 0, tick(900)) == 4800
    pit.write(0x43, 1, 0x34, tick(901))
    pit.write(0x43, 1, 0xE2, tick(902))
    assert pit.read(0x40, 1, tick(902)) & 0x40  # no count yet


def test_binary_coded_decimal() -> None:
    pit = Pit8254(Wire(), CLOCK)
    pit.write(0x43, 1, 0x35, 0)
    pit.write(0x40, 1, 0x00, 0)
    pit.write(0x40, 1, 0x10, 0)  # 1000
    assert counter(pit, 0, tick(1)) == 0x0999


def test_channel_2_calibration_through_port_61h() -> None:
    pit = Pit8254(Wire(), CLOCK)
    pit.write(0x61, 1, 0x01, 0)
    pit.write(0x43, 1, 0xB0, 0)  # mode 0, as Linux calibrates the time-stamp counter
    pit.write(0x42, 1, 0xFF, 0)
    pit.write(0x42, 1, 0xFF, 0)
    assert not pit.read(0x61, 1, tick(65534)) & 0x20
    assert pit.read(0x61, 1, tick(65535)) & 0x20
    pit.write(0x43, 1, 0xB0, tick(70000))
    pit.write(0x42, 1, 0x00, tick(70000))
    pit.write(0x42, 1, 0x10, tick(70000))
    pit.write(0x61, 1, 0x00, tick(70100))  # the gate stops the count
    assert counter(pit, 2, tick(90000)) == 0x1000 - 100
    pit.write(0x61, 1, 0x01, tick(90000))
    assert counter(pit, 2, tick(90010)) == 0x1000 - 110
    levels = {pit.read(0x61, 1, tick(n)) & 0x10 for n in range(100_000, 100_040)}
    assert levels == {0, 0x10}


def test_gate_triggers_the_hardware_modes() -> None:
    pit = Pit8254(Wire(), CLOCK)
    for mode, out_while_counting in ((1, 0), (5, 0x20)):
        pit.write(0x61, 1, 0, 0)
        program(pit, 2, mode, 100)
        assert pit.read(0x61, 1, tick(500)) & 0x20
        pit.write(0x61, 1, 1, tick(1000))
        assert pit.read(0x61, 1, tick(1050)) & 0x20 == out_while_counting
        assert pit.read(0x61, 1, tick(1150)) & 0x20
        pit = Pit8254(Wire(), CLOCK)


def test_deadlines_lie_in_the_future_whatever_is_programmed() -> None:
    for mode in range(8):
        for count in (0, 1, 2, 3, 0xFFFF):
            pit = Pit8254(Wire(), CLOCK)
            program(pit, 0, mode, count)
            now = 0
            for _ in range(20):
                deadline = pit.next_deadline(now)
                if deadline is None:
                    break
                assert deadline > now
                pit.advance(deadline)
                now = deadline
