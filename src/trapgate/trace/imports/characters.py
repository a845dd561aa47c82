"""Words and numbers in text that is an array with a byte in each cell; compiled."""

from typing import Final

from trapgate.compiler.dialect import Cells
from trapgate.compiler.library import Library

LIBRARY: Final = Library("imports", whole="trapgate.trace.imports.importer")
"""What readers of recordings have compiled."""


def digest(word: str) -> int:
    """The number that the scanner makes of a word (FNV-1a, 32 bits)."""
    value = 2166136261
    for byte in word.encode():
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return value


@LIBRARY.inside
def is_blank(byte: int) -> bool:
    """Whether a byte separates words: a space, a tab, or the end of a line of another system."""
    return byte in (32, 9, 13)


@LIBRARY.inside
def is_digit(byte: int) -> bool:
    """0 to 9."""
    return 48 <= byte <= 57


@LIBRARY.inside
def is_lower(byte: int) -> bool:
    """What names of events are made of."""
    return 97 <= byte <= 122 or byte == 95 or is_digit(byte)


@LIBRARY.inside
def hexadecimal(byte: int) -> int:
    """The value of a hexadecimal digit; -1 for another byte."""
    if 48 <= byte <= 57:
        return byte - 48
    if 97 <= byte <= 102:
        return byte - 87
    if 65 <= byte <= 70:
        return byte - 55
    return -1


@LIBRARY.inside
def separates(byte: int) -> bool:
    """Whether a byte separates names and values in the fields of an event."""
    return byte in (32, 9, 13, 44, 58, 61, 60, 62, 40, 41, 91, 93)


@LIBRARY.inside
def word_at(text: Cells, at: int, end: int) -> tuple[int, int, int]:
    """The next word of the fields: (where it begins, where it ends, its digest).

    It begins where it ends if there is none.
    """
    while at < end and separates(text[at]):
        at += 1
    begin = at
    value = 2166136261
    while at < end and not separates(text[at]):
        value = (value ^ text[at]) * 16777619 & 0xFFFFFFFF
        at += 1
    return begin, at, value


@LIBRARY.inside
def hex_number(text: Cells, at: int, end: int) -> tuple[bool, int]:
    """(whether that is a hexadecimal number of at most 16 digits, with or without 0x; it)."""
    if end - at > 2 and text[at] == 48 and text[at + 1] in (120, 88):
        at += 2
    if at >= end or end - at > 16:
        return False, 0
    high = 0
    low = 0
    while at < end:
        digit = hexadecimal(text[at])
        if digit < 0:
            return False, 0
        high = (high << 4 | low >> 28) & 0xFFFFFFFF
        low = (low << 4 | digit) & 0xFFFFFFFF
        at += 1
    return True, ((high ^ 0x80000000) - 0x80000000) << 32 | low


@LIBRARY.inside
def decimal_number(text: Cells, at: int, end: int, digits: int) -> int:
    """A decimal number of at most so many digits (18); -1 if it is none."""
    if at >= end or end - at > digits:
        return -1
    value = 0
    while at < end:
        if not is_digit(text[at]):
            return -1
        value = value * 10 + text[at] - 48
        at += 1
    return value


@LIBRARY.inside
def raw_number(text: Cells, at: int, end: int) -> tuple[bool, int]:
    """(whether it is a number as tools print it that know an event's layout only; it)."""
    if end - at > 2 and text[at + 1] == 120:
        return hex_number(text, at, end)
    number = decimal_number(text, at, end, 18)
    return number >= 0, number
