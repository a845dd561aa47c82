"""The 8042 keyboard controller and port 92h: A20, reset and a keyboard nobody touches.

The controller answers its self-tests and the keyboard acknowledges every command, so
that a guest's probe ends at once. There is no mouse: the auxiliary port fails its test.
"""

from collections import deque

from trapgate.vmm.devices.bus import EventSink, Line, MachineEvent, MachineEventKind, UntimedDevice

_OUTPUT_FULL = 0x01
_SYSTEM = 0x04
_COMMAND = 0x08
_UNLOCKED = 0x10

_INTERRUPT = 0x01
_KEYBOARD_DISABLED = 0x10

_ACKNOWLEDGE = 0xFA
_WITH_ARGUMENT = frozenset((0xED, 0xF0, 0xF3))
_ANSWERS = {
    0xEE: (0xEE,),
    0xF2: (_ACKNOWLEDGE, 0xAB, 0x83),
    0xFF: (_ACKNOWLEDGE, 0xAA),
}
_QUEUE_LIMIT = 16


class KeyboardController(UntimedDevice):
    """The 8042 at ports 60h and 64h and the fast A20 and reset port 92h."""

    ports = (0x60, 0x64, 0x92)

    def __init__(self, line: Line, events: EventSink) -> None:
        self.a20 = True
        self._line = line
        self._events = events
        self._output: deque[int] = deque()
        self._memory = bytearray(32)
        self._memory[0] = 0x65  # translation on, auxiliary port off, interrupt and system flag on
        self._last_was_command = False
        self._expects: int | None = None
        self._keyboard_argument: int | None = None

    def read(self, port: int, size: int, now: int) -> int:
        """Read data (60h), status (64h) or the A20 gate (92h)."""
        if port == 0x64:
            status = _UNLOCKED | (self._memory[0] & _SYSTEM)
            if self._output:
                status |= _OUTPUT_FULL
            if self._last_was_command:
                status |= _COMMAND
            return status
        if port == 0x92:
            return 0x02 if self.a20 else 0
        if not self._output:
            return 0
        value = self._output.popleft()
        self._line.set(False)
        self._update()
        return value

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Write data (60h), a command (64h) or A20 and reset (92h)."""
        if port == 0x92:
            self.a20 = bool(value & 0x02)
            if value & 0x01:
                self._reset("port 92h")
        elif port == 0x64:
            self._last_was_command = True
            self._command(value)
        else:
            self._last_was_command = False
            self._data(value)
        self._update()

    def _command(self, value: int) -> None:
        self._expects = None
        if 0x20 <= value <= 0x3F:
            self._answer(self._memory[value & 0x1F])
        elif 0x60 <= value <= 0x7F or value in (0xD1, 0xD2, 0xD3, 0xD4):
            self._expects = value
        elif value == 0xA7:
            self._memory[0] |= 0x20
        elif value == 0xA8:
            self._memory[0] &= ~0x20
        elif value == 0xA9:
            self._answer(0x03)  # the auxiliary data line is stuck: no port there
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
        elif value >= 0xF0 and not value & 0x01:
            self._reset("8042 port 64h")  # pulses the reset line, bit 0 of the output port

    def _data(self, value: int) -> None:
        expects, self._expects = self._expects, None
        if expects is None:
            self._keyboard(value)
        elif expects <= 0x7F:
            self._memory[expects & 0x1F] = value
        elif expects == 0xD1:
            self.a20 = bool(value & 0x02)
            if not value & 0x01:
                self._reset("8042 output port")
        elif expects in (0xD2, 0xD3):
            # Looped back without the auxiliary mark, which says that there is no such port.
            self._answer(value)
        # D4h: a byte for the mouse that is not there.

    def _keyboard(self, value: int) -> None:
        self._memory[0] &= ~_KEYBOARD_DISABLED
        argument_of, self._keyboard_argument = self._keyboard_argument, None
        if argument_of is not None:
            answers: tuple[int, ...] = (_ACKNOWLEDGE,)
            if argument_of == 0xF0 and value == 0:
                answers = (_ACKNOWLEDGE, 0x02)  # scan code set 2
        else:
            answers = _ANSWERS.get(value, (_ACKNOWLEDGE,))
            if value in _WITH_ARGUMENT:
                self._keyboard_argument = value
        for answer in answers:
            self._answer(answer)

    def _answer(self, value: int) -> None:
        if len(self._output) < _QUEUE_LIMIT:
            self._output.append(value)

    def _update(self) -> None:
        self._line.set(bool(self._output) and bool(self._memory[0] & _INTERRUPT))

    def _reset(self, source: str) -> None:
        self._events.signal(MachineEvent(MachineEventKind.RESET, source))
