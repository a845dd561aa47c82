"""A few words of ACPI Machine Language, enough to name devices and where they are.

ACPI Specification, "ACPI Machine Language (AML) Specification". Each function gives
the bytes of one term.
"""


def integer(value: int) -> bytes:
    """The shortest constant of `value`, up to 32 bits."""
    if value < 2:
        return bytes((value,))
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4)):
        if value < 1 << 8 * size:
            return bytes((prefix,)) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} is wider than 32 bits")


def name(path: str, value: bytes) -> bytes:
    """Name(path, value); `path` is one segment of four characters."""
    return b"\x08" + path.encode("ascii") + value


def package(*elements: bytes) -> bytes:
    """A package of constants."""
    return b"\x12" + _sized(bytes((len(elements),)) + b"".join(elements))


def scope(path: str, *terms: bytes) -> bytes:
    """Scope of a segment at the root."""
    return b"\x10" + _sized(b"\\" + path.encode("ascii") + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """A device with what belongs to it."""
    return b"\x5b\x82" + _sized(path.encode("ascii") + b"".join(terms))


def hardware_id(text: str) -> bytes:
    """_HID of an EISA identifier like PNP0501."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | ord(letter) - 0x40
    number = letters.to_bytes(2, "big") + int(text[3:], 16).to_bytes(2, "big")
    return name("_HID", b"\x0c" + number)


def resources(*descriptors: bytes) -> bytes:
    """_CRS: what the device occupies."""
    data = b"".join(descriptors) + b"\x79\x00"
    return name("_CRS", b"\x11" + _sized(integer(len(data)) + data))


def ports(start: int, count: int) -> bytes:
    """I/O ports `start` to `start + count - 1`, decoded with 16 bits."""
    word = start.to_bytes(2, "little")
    return b"\x47\x01" + word + word + bytes((1, count))


def irq(number: int) -> bytes:
    """An ISA interrupt line: edge-triggered, active high, not shared."""
    return b"\x22" + (1 << number).to_bytes(2, "little")


def buses(low: int, high: int) -> bytes:
    """The buses that a bridge leads to."""
    return _window(2, 0, low, high)


def port_window(low: int, high: int) -> bytes:
    """I/O ports that a bridge forwards."""
    return _window(1, 3, low, high)


def memory_window(low: int, high: int) -> bytes:
    """Physical addresses, of 32 bits, that a bridge forwards."""
    body = (0).to_bytes(4, "little") + b"".join(
        value.to_bytes(4, "little") for value in (low, high, 0, high - low + 1)
    )
    return b"\x87\x17\x00\x00\x0c\x01" + body


def _window(kind: int, flags: int, low: int, high: int) -> bytes:
    body = b"".join(
        value.to_bytes(2, "little") for value in (0, low, high, 0, (high - low + 1) & 0xFFFF)
    )
    return bytes((0x88, 13, 0, kind, 0x0C, flags)) + body


def _sized(body: bytes) -> bytes:
    """`body` with the package length, which counts itself, in front."""
    if len(body) + 1 < 0x40:
        return bytes((len(body) + 1,)) + body
    for extra in (1, 2, 3):
        length = len(body) + 1 + extra
        if length < 1 << 4 + 8 * extra:
            return (
                bytes((extra << 6 | length & 0xF,)) + (length >> 4).to_bytes(extra, "little") + body
            )
    raise ValueError(f"{len(body)} bytes are too many for one AML package")
