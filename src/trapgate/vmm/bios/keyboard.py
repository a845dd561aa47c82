"""INT 9 and INT 16H: from scan codes to characters, and the buffer between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from trapgate.vmm.bios.call import ZERO, Call
from trapgate.vmm.devices.scancodes import CHARACTERS, KEYS

_FLAGS, _HEAD, _TAIL, _START, _END = 0x417, 0x41A, 0x41C, 0x480, 0x482
_SEGMENT: Final = 0x400
_RELEASED = 0x80
_SHIFTS: Final = {0x2A: 0x02, 0x36: 0x01, 0x1D: 0x04, 0x38: 0x08}
_CONTROL, _ANY_SHIFT = 0x04, 0x03
_LOOK_MICROSECONDS = 10
"""How long a look for a key takes if there is none: programs look again and again until one comes,
or a time has passed."""


class Keyboard:
    """The services. `scan` reads port 60H; `typed` are bytes that came in at COM1.

    `wait` lets microseconds pass.
    """

    def __init__(
        self, scan: Callable[[], int], typed: deque[int], wait: Callable[[int], None]
    ) -> None:
        self._scan = scan
        self._typed = typed
        self._wait = wait

    def interrupt(self, call: Call) -> None:
        """INT 9: a key was pressed or released."""
        code = self._scan()
        key = code & 0x7F
        flags = call.word(_FLAGS, 1)
        if key in _SHIFTS:
            bit = _SHIFTS[key]
            call.put_word(_FLAGS, flags & ~bit if code & _RELEASED else flags | bit, 1)
        elif not code & _RELEASED:
            plain, shifted = CHARACTERS.get(key, ("\0", "\0"))
            character = ord(shifted if flags & _ANY_SHIFT and shifted != "\0" else plain)
            if flags & _CONTROL:
                character &= 0x1F
            self._store(call, key << 8 | character)

    def _store(self, call: Call, word: int) -> None:
        tail = call.word(_TAIL)
        following = tail + 2 if tail + 2 < call.word(_END) else call.word(_START)
        if following != call.word(_HEAD):
            call.put_word(_SEGMENT + tail, word)
            call.put_word(_TAIL, following)

    def _fill(self, call: Call) -> None:
        """What was typed at the serial console counts as keys when there are no others."""
        while self._typed and call.word(_HEAD) == call.word(_TAIL):
            character = chr(self._typed.popleft())
            key = KEYS.get("\n" if character == "\r" else character)
            code = ord("\r" if character == "\n" else character)
            self._store(call, (key[0] if key else 0) << 8 | code)

    def call(self, call: Call) -> None:
        """INT 16H: read a key (waiting for it), look for one, shift flags."""
        function = call.high("ax")
        call.wait(on=False)
        if function in (0x02, 0x12):
            call.put_low("ax", call.word(_FLAGS, 1))
            return
        if function == 0x05:
            self._store(call, call.get("cx") & 0xFFFF)
            call.put_low("ax", 0)
            return
        if function not in (0x00, 0x01, 0x10, 0x11):
            return
        self._fill(call)
        head = call.word(_HEAD)
        empty = head == call.word(_TAIL)
        if function in (0x01, 0x11):
            call.flag(ZERO, on=empty)
            if empty:
                self._wait(_LOOK_MICROSECONDS)
        elif empty:
            call.wait(on=True)
            return
        else:
            following = head + 2 if head + 2 < call.word(_END) else call.word(_START)
            call.put_word(_HEAD, following)
        if not empty:
            call.put("ax", call.word(_SEGMENT + head))
