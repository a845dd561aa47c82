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


def _letters() -> dict[str, bytes]:
    return {
        f"Digit{one}" if one.isdigit() else f"Key{one.upper()}": bytes((key,))
        for one, (key, shifted) in KEYS.items()
        if one.isalnum() and not shifted
    }


_EXTENDED = 0xE0
_OTHER_KEYS = {
    "Escape": 0x01,
    "Minus": 0x0C,
    "Equal": 0x0D,
    "Backspace": 0x0E,
    "Tab": 0x0F,
    "BracketLeft": 0x1A,
    "BracketRight": 0x1B,
    "Enter": 0x1C,
    "ControlLeft": 0x1D,
    "Semicolon": 0x27,
    "Quote": 0x28,
    "Backquote": 0x29,
    "ShiftLeft": 0x2A,
    "Backslash": 0x2B,
    "Comma": 0x33,
    "Period": 0x34,
    "Slash": 0x35,
    "ShiftRight": 0x36,
    "AltLeft": 0x38,
    "Space": 0x39,
    "CapsLock": 0x3A,
    **{f"F{n}": 0x3A + n for n in range(1, 11)},
    "F11": 0x57,
    "F12": 0x58,
}
_EXTENDED_KEYS = {
    "ControlRight": 0x1D,
    "AltRight": 0x38,
    "Home": 0x47,
    "ArrowUp": 0x48,
    "PageUp": 0x49,
    "ArrowLeft": 0x4B,
    "ArrowRight": 0x4D,
    "End": 0x4F,
    "ArrowDown": 0x50,
    "PageDown": 0x51,
    "Insert": 0x52,
    "Delete": 0x53,
}
BROWSER_KEYS = {
    **_letters(),
    **{name: bytes((key,)) for name, key in _OTHER_KEYS.items()},
    **{name: bytes((_EXTENDED, key)) for name, key in _EXTENDED_KEYS.items()},
}
"""Scan codes of set 1 by the names that browsers have for keys (W3C, "UI Events", `code`)."""


def pressed(name: str, *, down: bool) -> bytes:
    """What a key sends when it goes down or up; nothing for one that is not on the keyboard."""
    codes = BROWSER_KEYS.get(name, b"")
    return codes if down or not codes else codes[:-1] + bytes((codes[-1] | _RELEASED,))
