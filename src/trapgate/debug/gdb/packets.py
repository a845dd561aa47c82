"""Packets of gdb's remote protocol: `$data#checksum`, acknowledgements, Ctrl-C.

A reader is fed whatever arrives, and gives what is whole; garbage between packets is dropped.
"""

import re
from collections.abc import Iterator

INTERRUPT = b"\x03"
"""Stands for Ctrl-C among packets."""
NOT_UNDERSTOOD = b"-"
"""Stands for a packet whose checksum is wrong."""
_BEGIN = re.compile(b"[$\x03]")
LONGEST = 0x10000
"""Bytes of a packet; what is longer is dropped."""


class PacketReader:
    """Cuts a stream into packets."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` makes whole: packets' contents, INTERRUPT and NOT_UNDERSTOOD."""
        self._buffer += data
        while self._buffer:
            first = self._buffer[:1]
            if first == b"$":
                end = self._buffer.find(b"#")
                if end < 0 or end + 3 > len(self._buffer):
                    if len(self._buffer) > LONGEST:
                        self._buffer.clear()
                        yield NOT_UNDERSTOOD
                    return
                body, digits = bytes(self._buffer[1:end]), bytes(self._buffer[end + 1 : end + 3])
                del self._buffer[: end + 3]
                try:
                    right = int(digits, 16) == sum(body) & 0xFF
                except ValueError:
                    right = False
                yield _unescaped(body) if right else NOT_UNDERSTOOD
            elif first == INTERRUPT:
                del self._buffer[:1]
                yield INTERRUPT
            else:
                begin = _BEGIN.search(self._buffer)
                del self._buffer[: begin.start() if begin else len(self._buffer)]


def _unescaped(body: bytes) -> bytes:
    if b"}" not in body:
        return body
    result = bytearray()
    escaped = False
    for byte in body:
        if escaped:
            result.append(byte ^ 0x20)
            escaped = False
        elif byte == ord("}"):
            escaped = True
        else:
            result.append(byte)
    return bytes(result)


def framed(body: bytes) -> bytes:
    """A packet of `body`, escaped as it must be."""
    escaped = bytearray()
    for byte in body:
        if byte in b"#$}*":
            escaped += bytes((ord("}"), byte ^ 0x20))
        else:
            escaped.append(byte)
    return b"$" + bytes(escaped) + b"#%02x" % (sum(escaped) & 0xFF)
