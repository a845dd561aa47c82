"""The 8042 keyboard controller and port 92h: keys, a mouse, A20 and reset.

The controller answers its self-tests, and keyboard and mouse acknowledge every command, so that a
guest's probe ends at once. Keys come as a keyboard of scan code set 2 sends them, translated
to set 1 unless the guest turns that off (IBM PS/2 Technical Reference, "Keyboard and
Auxiliary Device Controller").
"""

from collections import deque
from collections.abc import Callable

from trapgate.instructions import polled_ports as polled
from trapgate.vmm.devices.bus import EventSink, Line, MachineEvent, MachineEventKind, UntimedDevice
from trapgate.vmm.devices.polled import PolledPorts
from trapgate.vmm.devices.scancodes import set_1

_OUTPUT_FULL = 0x01
_SYSTEM = 0x04
_COMMAND = 0x08
_UNLOCKED = 0x10
_FROM_MOUSE = 0x20

_KEYBOARD_INTERRUPT = 0x01
_MOUSE_INTERRUPT = 0x02
_KEYBOARD_DISABLED = 0x10
_MOUSE_DISABLED = 0x20

_ACKNOWLEDGE = 0xFA
_WITH_ARGUMENT = frozenset((0xED, 0xF0, 0xF3))
_KEYBOARD_ANSWERS = {
    0xEE: (0xEE,),
    0xF2: (_ACKNOWLEDGE, 0xAB, 0x83),
    0xFF: (_ACKNOWLEDGE, 0xAA),
}
_MOUSE_WITH_ARGUMENT = frozenset((0xE8, 0xF3))
_MOUSE_ANSWERS = {
    0xE9: (_ACKNOWLEDGE, 0x00, 0x02, 0x64),
    0xEB: (_ACKNOWLEDGE, 0x08, 0x00, 0x00),
    0xF2: (_ACKNOWLEDGE, 0x00),
    0xFF: (_ACKNOWLEDGE, 0xAA, 0x00),
}
_MOUSE_SWITCHES = {0xF4: True, 0xF5: False, 0xF6: False, 0xFF: False}
"""Whether the mouse reports what it does from then on."""
_QUEUE_LIMIT = 16
_KEYS_LIMIT = 4096
_MOUSE = 0x100
"""Marks what comes from the mouse, in the queue."""


class KeyboardController(UntimedDevice):
    """The 8042 at ports 60h and 64h and the fast A20 and reset port 92h.

    `line` is IRQ 1, `mouse_line` IRQ 12. `hold_a20` is told when the gate of address line 20
    changes: whether it is held low.
    """

    ports = (0x60, 0x64, 0x92)

    def __init__(
        self,
        line: Line,
        mouse_line: Line,
        events: EventSink,
        hold_a20: Callable[..., None] | None = None,
        ports: PolledPorts | None = None,
        wake: Callable[[], None] | None = None,
    ) -> None:
        self.a20 = True
        self._wake = wake
        self._hold_a20 = hold_a20
        self._line = line
        self._mouse_line = mouse_line
        self._events = events
        self._output: deque[int] = deque()
        self._keys: deque[int] = deque()
        self._memory = bytearray(32)
        self._memory[0] = 0x65  # translation, mouse off, interrupt and system flag on
        self._last_was_command = False
        self._expects: int | None = None
        self._keyboard_argument: int | None = None
        self._mouse_argument = False
        self._mouse_reports = False
        ports = PolledPorts() if ports is None else ports
        self._status = ports.slot(0x64, is_in=True, kind=polled.LATCH)
        self._update_slots()

    def _update_slots(self) -> None:
        """Say what the next read of the status will find."""
        status = _UNLOCKED | (self._memory[0] & _SYSTEM)
        if self._output:
            status |= _OUTPUT_FULL
            if self._output[0] & _MOUSE:
                status |= _FROM_MOUSE
        if self._last_was_command:
            status |= _COMMAND
        self._status[polled.VALUE] = status

    def press(self, codes: bytes) -> None:
        """Press keys: scan codes of set 1, as a guest with translation reads them."""
        self._keys.extend(codes[: _KEYS_LIMIT - len(self._keys)])
        if codes and self._wake is not None:
            self._wake()
        self._next_key()
        self._update()

    def type(self, text: str) -> None:
        """Type text on a keyboard of the American layout; other characters are left out."""
        self.press(set_1(text))

    def move(self, right: int, down: int, buttons: int) -> None:
        """Report a movement of the mouse (-255 to 255 counts) and its buttons, if enabled.

        Of `buttons` bit 0 is the left one, bit 1 the right one, bit 2 the middle one. What the
        guest has no room for is lost, as on a slow PC.
        """
        if not self._mouse_reports or len(self._output) + 3 > _QUEUE_LIMIT:
            return
        right, up = max(-255, min(255, right)), max(-255, min(255, -down))
        first = 8 | buttons & 7 | (right < 0) << 4 | (up < 0) << 5
        for byte in (first, right & 0xFF, up & 0xFF):
            self._answer(byte | _MOUSE)
        self._update()

    def _next_key(self) -> None:
        """A key comes once the guest has read what was there."""
        if self._keys and not self._output and not self._memory[0] & _KEYBOARD_DISABLED:
            self._output.append(self._keys.popleft())

    def read(self, port: int, size: int, now: int) -> int:
        """Read data (60h), status (64h) or the A20 gate (92h)."""
        if port == 0x64:
            return self._status[polled.VALUE]
        if port == 0x92:
            return 0x02 if self.a20 else 0
        if not self._output:
            return 0
        value = self._output.popleft() & 0xFF
        self._line.set(False)
        self._mouse_line.set(False)
        self._next_key()
        self._update()
        return value

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Write data (60h), a command (64h) or A20 and reset (92h)."""
        if port == 0x92:
            self._gate_a20(bool(value & 0x02))
            if value & 0x01:
                self._reset("port 92h")
        elif port == 0x64:
            self._last_was_command = True
            self._command(value)
        else:
            self._last_was_command = False
            self._data(value)
        self._next_key()
        self._update()

    def _gate_a20(self, opened: bool) -> None:
        if opened != self.a20:
            self.a20 = opened
            if self._hold_a20 is not None:
                self._hold_a20(low=not opened)

    def _command(self, value: int) -> None:
        self._expects = None
        if 0x20 <= value <= 0x3F:
            self._answer(self._memory[value & 0x1F])
        elif 0x60 <= value <= 0x7F or value in (0xD1, 0xD2, 0xD3, 0xD4):
            self._expects = value
        elif value == 0xA7:
            self._memory[0] |= _MOUSE_DISABLED
        elif value == 0xA8:
            self._memory[0] &= ~_MOUSE_DISABLED
        elif value == 0xA9:
            self._answer(0x00)
        elif value == 0xAA:
            self._memory[0] |= _SYSTEM
            self._answer(0x55)
        elif value == 0xAB:
            self._answer(0x00)
        elif value == 0xAD:
            self._memory[0] |= _KEYBOARD_DISABLED
        elif value == 0xAE:
            self._memory[0] &= ~_KEYBOARD_DISABLED
        elif value == 0xC0:
            self._answer(0x80)
        elif value == 0xD0:
            self._answer(0x01 | self.a20 << 1)
        elif value == 0xDD:
            self._gate_a20(False)
        elif value == 0xDF:
            self._gate_a20(True)
        elif value >= 0xF0 and not value & 0x01:
            self._reset("8042 port 64h")  # pulses the reset line, bit 0 of the output port

    def _data(self, value: int) -> None:
        expects, self._expects = self._expects, None
        if expects is None:
            self._keyboard(value)
        elif expects <= 0x7F:
            self._memory[expects & 0x1F] = value
        elif expects == 0xD1:
            self._gate_a20(bool(value & 0x02))
            if not value & 0x01:
                self._reset("8042 output port")
        elif expects == 0xD2:
            self._answer(value)
        elif expects == 0xD3:
            self._answer(value | _MOUSE)
        else:
            self._mouse(value)

    def _keyboard(self, value: int) -> None:
        self._memory[0] &= ~_KEYBOARD_DISABLED
        argument_of, self._keyboard_argument = self._keyboard_argument, None
        if argument_of is not None:
            answers: tuple[int, ...] = (_ACKNOWLEDGE,)
            if argument_of == 0xF0 and value == 0:
                answers = (_ACKNOWLEDGE, 0x02)  # scan code set 2
        else:
            answers = _KEYBOARD_ANSWERS.get(value, (_ACKNOWLEDGE,))
            if value in _WITH_ARGUMENT:
                self._keyboard_argument = value
        for answer in answers:
            self._answer(answer)

    def _mouse(self, value: int) -> None:
        argument, self._mouse_argument = self._mouse_argument, False
        answers: tuple[int, ...] = (_ACKNOWLEDGE,)
        if not argument:
            answers = _MOUSE_ANSWERS.get(value, answers)
            self._mouse_argument = value in _MOUSE_WITH_ARGUMENT
            if value in _MOUSE_SWITCHES:
                self._mouse_reports = _MOUSE_SWITCHES[value]
        for answer in answers:
            self._answer(answer | _MOUSE)

    def _answer(self, value: int) -> None:
        if len(self._output) < _QUEUE_LIMIT:
            self._output.append(value)

    def _update(self) -> None:
        waiting = bool(self._output)
        mouse = waiting and bool(self._output[0] & _MOUSE)
        enabled = self._memory[0]
        self._line.set(waiting and not mouse and bool(enabled & _KEYBOARD_INTERRUPT))
        self._mouse_line.set(mouse and bool(enabled & _MOUSE_INTERRUPT))
        self._update_slots()

    def _reset(self, source: str) -> None:
        self._events.signal(MachineEvent(MachineEventKind.RESET, source))
