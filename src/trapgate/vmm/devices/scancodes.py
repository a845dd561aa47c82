"""Text as the scan codes of a keyboard of the American layout, set 1."""

_SHIFT, _RELEASED = 0x2A, 0x80
_ROWS = (
    (0x02, "1234567890-=\b", "!@#$%^&*()_+\0"),
    (0x0F, "\tqwertyuiop[]\n", "\0QWERTYUIOP{}\0"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", "\0"),
    (0x01, "\x1b", "\0"),
)
KEYS = {
    character: (first + n, shifted)
    for first, *cases in _ROWS
    for shifted, row in enumerate(cases)
    for n, character in enumerate(row)
    if character != "\0"
}

CHARACTERS = {
    first + n: (plain[n].replace("\n", "\r"), shifted[n])
    for first, plain, shifted in _ROWS
    for n in range(len(plain))
}
"""What each key gives by itself and with shift; NUL for nothing. Enter gives a return."""


def set_1(text: str) -> bytes:
    """The codes of pressing and releasing the keys of `text`; other characters are left out."""
    codes = bytearray()
    for character in text.replace("\r", "\n"):
        if character not in KEYS:
            continue
        key, shifted = KEYS[character]
        pressed = bytes((key, key | _RELEASED))
        codes += bytes((_SHIFT,)) + pressed + bytes((_SHIFT | _RELEASED,)) if shifted else pressed
    return bytes(codes)
