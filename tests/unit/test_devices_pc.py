"""The bus, the small devices, the real-time clock, and all of them as a PC."""

import ast
import copy
import inspect
import pickle
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from trapgate.instructions import polled_ports as polled
from trapgate.vmm.devices import Bus, MachineEvent, MachineEventKind, Pc, VirtualClock
from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.debug import PostPort
from trapgate.vmm.devices.keyboard import KeyboardController
from trapgate.vmm.devices.pc import NoProcessor
from trapgate.vmm.devices.polled import PolledPorts, Wired
from trapgate.vmm.devices.rtc import CmosRtc

CLOCK = VirtualClock()
SECOND = CLOCK.hertz
EPOCH = datetime(2023, 12, 31, 23, 59, 58, tzinfo=UTC)


class Wire:
    def __init__(self) -> None:
        self.level = False
        self.edges = 0

    def set(self, level: bool) -> None:
        self.edges += level and not self.level
        self.level = level


def cell(rtc: CmosRtc, index: int, now: int = 0) -> int:
    rtc.write(0x70, 1, index, now)
    return rtc.read(0x71, 1, now)


def put(rtc: CmosRtc, index: int, value: int, now: int = 0) -> None:
    rtc.write(0x70, 1, index, now)
    rtc.write(0x71, 1, value, now)


def clock_face(rtc: CmosRtc, now: int) -> list[int]:
    return [cell(rtc, index, now) for index in (0x32, 9, 8, 7, 6, 4, 2, 0)]


def test_unclaimed_ports_float() -> None:
    bus = Bus()
    assert bus.read(0x1234, 1, 0) == 0xFF
    assert bus.read(0x1234, 2, 0) == 0xFFFF
    assert bus.read(0xFFFE, 4, 0) == 0xFFFFFFFF
    bus.write(0x1234, 4, 0xDEADBEEF, 0)
    assert bus.event is None


def test_wide_accesses_are_split() -> None:
    bus = Bus()
    bus.attach(PostPort(lambda microseconds: None))
    bus.write(0x7F, 2, 0xAB00, 0)
    assert bus.read(0x80, 1, 0) == 0xAB
    assert bus.read(0x7E, 4, 0) == 0xFFABFFFF


def test_a_write_to_port_80h_waits_a_microsecond() -> None:
    waited: list[int] = []
    port = PostPort(waited.append)
    port.write(0x80, 1, 0x5A, 0)
    assert (port.read(0x80, 1, 0), waited) == (0x5A, [1])


def test_polling_a_clock_takes_a_microsecond_each_time() -> None:
    waited: list[int] = []

    class Waiting(NoProcessor):
        def wait(self, microseconds: int) -> None:
            waited.append(microseconds)

    pc = Pc(1 << 24, lambda byte: None, processor=Waiting())
    for port in (0x40, 0x61, 0x71, 0x608):
        pc.read(port, 1, 0)
    pc.write(0x70, 1, 0, 0)
    assert waited == [1] * 5
    assert pc.read(0x3FD, 1, 0) & 0x60 == 0x60
    assert waited == [1] * 5


def test_two_devices_at_one_port_are_refused() -> None:
    bus = Bus()
    bus.attach(PostPort(lambda microseconds: None))
    with pytest.raises(ValueError, match="0x80"):
        bus.attach(PostPort(lambda microseconds: None))


def test_virtual_clock_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        VirtualClock(0)


@pytest.mark.parametrize(
    ("port", "size", "value", "event"),
    [
        (0xF4, 1, 0x10, MachineEvent(MachineEventKind.DEBUG_EXIT, "debug exit port 0xf4", 0x21)),
        (0xF4, 4, 0, MachineEvent(MachineEventKind.DEBUG_EXIT, "debug exit port 0xf4", 1)),
        (0x64, 1, 0xFE, MachineEvent(MachineEventKind.RESET, "8042 port 64h")),
        (0x92, 1, 0x01, MachineEvent(MachineEventKind.RESET, "port 92h")),
        (0xCF9, 1, 0x06, MachineEvent(MachineEventKind.RESET, "reset port cf9h")),
    ],
)
def test_machine_events(port: int, size: int, value: int, event: MachineEvent) -> None:
    pc = Pc(1 << 24, lambda byte: None)
    pc.write(port, size, value, 0)
    assert pc.bus.event == event
    pc.write(0x64, 1, 0xFE, 0)
    assert pc.bus.event == event  # the first one counts


def test_what_test_guests_look_for() -> None:
    plain = Pc(1 << 24, lambda byte: None)
    plain.write(0xE0, 4, 0x44332211, 0)
    assert plain.read(0xE0, 4, 0) == 0xFFFFFFFF
    assert 0xFF000 not in plain.pages
    plain.write(0x2005, 4, 1, 0)
    assert plain.pic.master.lines >> 5 & 1 == 0
    pc = Pc(1 << 24, lambda byte: None, board=Board(testdev=True))
    pc.write(0xE0, 4, 0x44332211, 0)
    pc.write(0xE1, 1, 0xAA, 0)
    assert [pc.read(0xE0 + n, 2, 0) for n in range(4)] == [0xAA11, 0x33AA, 0x4433, 0x44]
    assert 0xFF000 in pc.pages
    pc.store(0xFF00_0008, 8, 0x1122_3344_5566_7788, 0)
    pc.store(0xFF00_0009, 1, 0xAA, 0)
    assert pc.load(0xFF00_0008, 8, 0) == 0x1122_3344_5566_AA88
    pc.write(0x21, 1, 0, 0)
    for level in (1, 0):
        pc.write(0x2005, 4, level, 0)
        assert pc.pic.master.lines >> 5 & 1 == level


def test_the_bridges_of_an_i440fx() -> None:
    pc = Pc(1 << 24, lambda byte: None)

    def configuration(device: int, function: int, at: int) -> int:
        pc.write(0xCF8, 4, 1 << 31 | device << 11 | function << 8 | at, 0)
        return pc.read(0xCFC, 4, 0)

    assert configuration(0, 0, 0) == 0x1237_8086
    assert configuration(1, 0, 0) == 0x7000_8086
    assert configuration(1, 0, 12) >> 16 & 0xFF == 0x80
    assert configuration(1, 1, 0) == configuration(2, 0, 0) == 0xFFFFFFFF
    pc.write(0xCF8, 4, 1 << 31 | 1 << 16, 0)
    assert pc.read(0xCFC, 4, 0) == 0xFFFFFFFF  # another bus
    pc.write(0xCF8, 4, 0, 0)
    assert pc.read(0xCFC, 4, 0) == 0xFFFFFFFF  # not enabled
    pc.write(0xCF9, 2, 0x0606, 0)
    assert pc.bus.event is None


def test_serial_and_debug_console_reach_their_sinks() -> None:
    serial, debug = bytearray(), bytearray()
    pc = Pc(1 << 24, serial.append, debug_emit=debug.append)
    assert pc.read(0xE9, 1, 0) == 0xE9
    for byte in b"dbg":
        pc.write(0xE9, 1, byte, 0)
    for byte in b"tty":
        pc.write(0x3F8, 1, byte, 0)
    assert bytes(serial) == b"tty"
    assert bytes(debug) == b"dbg"


def test_timer_interrupt_through_the_whole_pc() -> None:
    pc = Pc(1 << 24, lambda byte: None)
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xFE)):
        pc.write(port, 1, value, 0)
    for port, value in ((0x43, 0x34), (0x40, 0x9C), (0x40, 0x2E)):
        pc.write(port, 1, value, 0)
    assert pc.acknowledge() == 0x20  # OUT rose when the mode was set
    pc.write(0x20, 1, 0x20, 0)
    taken = []
    now = 0
    while now < SECOND // 10:
        deadline = pc.next_deadline(now)
        assert deadline is not None
        now = deadline
        pc.advance(now)
        assert pc.pending()
        taken.append(pc.acknowledge())
        pc.write(0x20, 1, 0x20, now)
    assert taken == [0x20] * 10  # 11932 ticks are a hundredth of a second


def test_the_machine_can_be_copied_and_stored() -> None:
    sent: list[int] = []
    pc = Pc(1 << 24, sent.append)
    pc.write(0x43, 1, 0x36, 0)
    pc.write(0x40, 1, 0, 0)
    pc.write(0x40, 1, 0x10, 0)
    for twin in (copy.deepcopy(pc), pickle.loads(pickle.dumps(pc))):
        assert twin.next_deadline(77) == pc.next_deadline(77)
        twin.write(0x21, 1, 0x55, 0)
        assert twin.read(0x21, 1, 0) == 0x55
        assert twin.pic.read(0x21, 1, 0) == 0x55
    assert pc.read(0x21, 1, 0) == 0xFF


class Events:
    def __init__(self) -> None:
        self.seen: list[MachineEvent] = []

    def signal(self, event: MachineEvent) -> None:
        self.seen.append(event)


def drain(keyboard: KeyboardController) -> bytes:
    answers = bytearray()
    while keyboard.read(0x64, 1, 0) & 1:
        answers.append(keyboard.read(0x60, 1, 0))
    return bytes(answers)


def test_linux_probe_of_the_keyboard_controller() -> None:
    wire = Wire()
    keyboard = KeyboardController(wire, Wire(), Events())
    assert drain(keyboard) == b""
    keyboard.write(0x64, 1, 0x20, 0)
    assert drain(keyboard) == b"\x65"
    keyboard.write(0x64, 1, 0x60, 0)
    keyboard.write(0x60, 1, 0x74, 0)
    keyboard.write(0x64, 1, 0x20, 0)
    assert drain(keyboard) == b"\x74"
    for command, answer in ((0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x00)):
        keyboard.write(0x64, 1, command, 0)
        assert drain(keyboard) == bytes([answer])
    keyboard.write(0x64, 1, 0xD3, 0)
    keyboard.write(0x60, 1, 0x5A, 0)
    assert keyboard.read(0x64, 1, 0) & 0x21 == 0x21  # as if from the mouse
    assert drain(keyboard) == b"\x5a"
    assert wire.edges == 1  # the first answer's: the interrupt is off since


def test_the_mouse_answers_and_stays_at_rest() -> None:
    wire, mouse_wire = Wire(), Wire()
    keyboard = KeyboardController(wire, mouse_wire, Events())
    keyboard.write(0x64, 1, 0x60, 0)
    keyboard.write(0x60, 1, 0x47, 0)  # both interrupts
    exchanges = ((0xFF, b"\xfa\xaa\0"), (0xF3, b"\xfa"), (0xE9, b"\xfa"), (0xF4, b"\xfa"))
    for byte, answer in exchanges:
        keyboard.write(0x64, 1, 0xD4, 0)
        keyboard.write(0x60, 1, byte, 0)
        assert keyboard.read(0x64, 1, 0) & 0x21 == 0x21
        assert drain(keyboard) == answer
    assert wire.edges == 0
    assert mouse_wire.edges == 6


def test_keys_come_one_by_one_as_they_are_read() -> None:
    wire = Wire()
    keyboard = KeyboardController(wire, Wire(), Events())
    keyboard.type("aB\n")
    assert wire.level
    assert drain(keyboard) == bytes.fromhex("1e9e 2a30b0aa 1c9c")
    assert wire.edges == 8
    keyboard.write(0x64, 1, 0xAD, 0)
    keyboard.type("x")
    assert drain(keyboard) == b""
    keyboard.write(0x64, 1, 0xAE, 0)
    assert drain(keyboard) == bytes.fromhex("2dad")
    keyboard.type("x" * 9999)
    assert len(drain(keyboard)) == 4096


def test_the_gate_of_address_line_20() -> None:
    told: list[bool] = []
    keyboard = KeyboardController(Wire(), Wire(), Events(), lambda *, low: told.append(low))
    keyboard.write(0x92, 1, 0, 0)
    keyboard.write(0x92, 1, 0, 0)
    keyboard.write(0x92, 1, 2, 0)
    for byte in (0xDD, 0xDF):
        keyboard.write(0x64, 1, byte, 0)
    keyboard.write(0x64, 1, 0xD1, 0)
    keyboard.write(0x60, 1, 0x01, 0)
    assert told == [True, False, True, False, True]


def test_keyboard_acknowledges_with_an_interrupt_a_byte() -> None:
    wire = Wire()
    keyboard = KeyboardController(wire, Wire(), Events())
    keyboard.write(0x60, 1, 0xF2, 0)
    assert drain(keyboard) == b"\xfa\xab\x83"
    assert wire.edges == 3
    assert not wire.level
    keyboard.write(0x60, 1, 0xFF, 0)
    assert drain(keyboard) == b"\xfa\xaa"
    keyboard.write(0x60, 1, 0xED, 0)
    keyboard.write(0x60, 1, 0xF2, 0)  # the argument, not a command
    assert drain(keyboard) == b"\xfa\xfa"


def test_keyboard_answers_are_bounded() -> None:
    keyboard = KeyboardController(Wire(), Wire(), Events())
    for _ in range(1000):
        keyboard.write(0x64, 1, 0xAA, 0)
    assert len(drain(keyboard)) <= 16


def test_a20_gate_three_ways() -> None:
    events = Events()
    keyboard = KeyboardController(Wire(), Wire(), events)
    keyboard.write(0x92, 1, 0, 0)
    assert not keyboard.a20
    keyboard.write(0x64, 1, 0xD1, 0)
    keyboard.write(0x60, 1, 0xDF, 0)
    assert keyboard.read(0x92, 1, 0) == 0x02
    keyboard.write(0x64, 1, 0xD0, 0)
    assert drain(keyboard) == b"\x03"
    assert events.seen == []
    keyboard.write(0x64, 1, 0xD1, 0)
    keyboard.write(0x60, 1, 0xDE, 0)
    assert [event.kind for event in events.seen] == [MachineEventKind.RESET]


def test_calendar_runs_on_virtual_time() -> None:
    rtc = CmosRtc(Wire(), CLOCK, 1 << 24, EPOCH)
    assert clock_face(rtc, 0) == [0x20, 0x23, 0x12, 0x31, 1, 0x23, 0x59, 0x58]
    assert clock_face(rtc, 2 * SECOND) == [0x20, 0x24, 0x01, 0x01, 2, 0, 0, 0]
    assert cell(rtc, 0x0D) == 0x80


def test_update_in_progress_precedes_the_second() -> None:
    rtc = CmosRtc(Wire(), CLOCK, 1 << 24, EPOCH)
    assert cell(rtc, 0x0A, SECOND // 2) == 0x26
    assert cell(rtc, 0x0A, SECOND - 1000) == 0xA6
    assert cell(rtc, 0x0A, SECOND) == 0x26


def test_guest_sets_the_clock_in_binary_twelve_hour_format() -> None:
    rtc = CmosRtc(Wire(), CLOCK, 1 << 24, EPOCH)
    put(rtc, 0x0B, 0x84)
    for index, value in ((0, 30), (2, 15), (4, 0x80 | 3), (7, 9), (8, 5), (9, 31), (0x32, 20)):
        put(rtc, index, value, 10 * SECOND)
    assert cell(rtc, 0, 20 * SECOND) == 30  # halted while SET is on
    put(rtc, 0x0B, 0x04, 20 * SECOND)
    assert clock_face(rtc, 31 * SECOND)[:4] == [20, 31, 5, 9]
    assert clock_face(rtc, 31 * SECOND)[5:] == [0x83, 15, 41]
    put(rtc, 8, 77, 31 * SECOND)  # no such month: the clock goes on
    assert clock_face(rtc, 32 * SECOND)[:4] == [20, 31, 5, 9]


def test_memory_size_cells() -> None:
    rtc = CmosRtc(Wire(), CLOCK, 128 << 20, EPOCH)
    assert cell(rtc, 0x15) | cell(rtc, 0x16) << 8 == 640
    assert cell(rtc, 0x17) | cell(rtc, 0x18) << 8 == 0xFFFF
    assert cell(rtc, 0x34) | cell(rtc, 0x35) << 8 == (128 - 16) * 16
    big = CmosRtc(Wire(), CLOCK, 6 << 30, EPOCH)
    assert sum(cell(big, 0x5B + i) << (8 * i) for i in range(3)) == 2 << 14


def test_periodic_interrupt_at_1024_hertz() -> None:
    wire = Wire()
    rtc = CmosRtc(wire, CLOCK, 1 << 24, EPOCH)
    assert rtc.next_deadline(0) is None
    put(rtc, 0x0B, 0x42)
    now = 0
    for count in range(1, 1025):
        deadline = rtc.next_deadline(now)
        assert deadline is not None
        rtc.advance(deadline)
        assert wire.edges == count
        assert rtc.next_deadline(deadline) is None  # waits for register C
        assert cell(rtc, 0x0C, deadline) & 0xC0 == 0xC0
        assert not wire.level
        now = deadline
    assert now == SECOND


def test_alarm_and_update_interrupts() -> None:
    wire = Wire()
    rtc = CmosRtc(wire, CLOCK, 1 << 24, EPOCH)
    for index, value in ((1, 0x05), (3, 0x00), (5, 0xC0)):
        put(rtc, index, value)
    put(rtc, 0x0B, 0x22)
    assert rtc.next_deadline(0) == 7 * SECOND  # 00:00:05, five seconds after midnight
    rtc.advance(7 * SECOND - 1)
    assert not wire.level
    rtc.advance(7 * SECOND)
    assert wire.level
    assert cell(rtc, 0x0C, 7 * SECOND) & 0xB0 == 0xB0
    assert rtc.next_deadline(7 * SECOND) == 3607 * SECOND
    put(rtc, 0x0B, 0x12, 8 * SECOND)
    assert wire.level  # the second that has passed was flagged already
    cell(rtc, 0x0C, 8 * SECOND)
    assert rtc.next_deadline(8 * SECOND) == 9 * SECOND
    put(rtc, 1, 0x77, 9 * SECOND)  # a second that never comes
    put(rtc, 0x0B, 0x22, 9 * SECOND)
    cell(rtc, 0x0C, 9 * SECOND)
    assert rtc.next_deadline(9 * SECOND) is None


def test_seconds_that_were_read_need_no_vmm_until_they_change() -> None:
    """Nor does register A, while the guest has not stopped the clock."""
    ports = PolledPorts()
    rtc = CmosRtc(Wire(), CLOCK, 1 << 24, EPOCH, ports)
    access = polled.access(0x71, 1, True)

    def answered(now: int) -> int | None:
        at = polled.slot_of(ports.cells, access, now, 0)
        return None if at < 0 else polled.load(ports.cells, at, now)

    rtc.write(0x70, 1, 0x80, 0)
    assert answered(10) is None
    assert rtc.read(0x71, 1, 10) == 0x58
    assert [answered(11), answered(SECOND - 1), answered(SECOND)] == [0x58, 0x58, None]
    assert rtc.read(0x71, 1, SECOND) == 0x59
    assert answered(SECOND + 1) == 0x59
    put(rtc, 0, 0x30, SECOND + 2)
    assert answered(SECOND + 3) is None
    assert rtc.read(0x71, 1, SECOND + 3) == 0x30
    put(rtc, 0x0B, 0x82, SECOND + 4)
    rtc.write(0x70, 1, 0, SECOND + 4)
    assert answered(SECOND + 5) is None
    rtc.write(0x70, 1, 0x0A, SECOND + 5)
    assert answered(2 * SECOND - 1) is None
    put(rtc, 0x0B, 0x02, SECOND + 6)
    rtc.write(0x70, 1, 0x0A, SECOND + 7)
    assert answered(2 * SECOND - 1) == 0xA6
    rtc.write(0x70, 1, 2, SECOND + 7)
    assert answered(SECOND + 8) is None


def test_nmi_mask_is_bit_7_of_the_index() -> None:
    rtc = CmosRtc(Wire(), CLOCK, 1 << 24, EPOCH)
    rtc.write(0x70, 1, 0x8D, 0)
    assert rtc.nmi_masked
    assert rtc.read(0x71, 1, 0) == 0x80
    assert rtc.read(0x70, 1, 0) == 0xFF


def test_wired_parts_are_given_their_attributes_once() -> None:
    # Snapshots do not look at them (`vmm.snapshots.state`).
    for kind in _subclasses(Wired):
        for method in vars(kind).values():
            if inspect.isfunction(method) and method.__name__ not in _MAKERS:
                tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
                changed = [
                    ast.unparse(node)
                    for node in ast.walk(tree)
                    if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load)
                ]
                assert changed == [], f"{kind.__name__}.{method.__name__}"


_MAKERS = {"__init__", "_keep", "__setstate__", "select"}
"""The last follows whose turn it is, to which a snapshot goes back itself."""


def _subclasses(kind: type) -> Iterator[type]:
    one: type
    for one in kind.__subclasses__():
        yield one
        yield from _subclasses(one)
