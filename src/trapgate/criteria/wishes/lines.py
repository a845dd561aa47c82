"""On which line of a TOML text each value stands; Python's reader does not tell.

The text has been accepted by `tomllib` before, so this walk need not look for errors,
only find its way: it knows tables, keys, strings, arrays, inline tables and comments.
"""

import re
from bisect import bisect_left

Path = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^\s,\]}#]+")


def lines_of(text: str) -> dict[Path, int]:
    """Line numbers, from 1, by path: ("PF", "exit", 0) is the first item of PF's `exit`."""
    return _Walk(text).document()


class _Walk:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._found: dict[Path, int] = {}
        self._ends = [match.start() for match in re.finditer("\n", text)]

    def document(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip():
            if self._text[self._at] == "[":
                double = self._text.startswith("[[", self._at)
                self._at += 1 + double
                table = self._key()
                self._skip()
                self._at += 1 + double
                self._found.setdefault(table, self._line())
            else:
                self._pair(table)
        return self._found

    def _line(self) -> int:
        return bisect_left(self._ends, self._at) + 1

    def _skip(self) -> bool:
        """Go past blanks, line ends and comments; False at the end of the text."""
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif character.isspace():
                self._at += 1
            else:
                return True
        return False

    def _key(self) -> Path:
        parts: list[str | int] = []
        while True:
            self._skip()
            if self._text[self._at] in "\"'":
                parts.append(self._string())
            else:
                bare = _BARE.match(self._text, self._at)
                assert bare is not None
                parts.append(bare[0])
                self._at = bare.end()
            self._skip()
            if self._text[self._at] != ".":
                return tuple(parts)
            self._at += 1

    def _pair(self, table: Path) -> None:
        path = (*table, *self._key())
        self._found.setdefault(path, self._line())
        self._skip()
        self._at += 1  # the equals sign
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip()
        self._found.setdefault(path, self._line())
        opening = self._text[self._at]
        if opening in "\"'":
            self._string()
        elif opening in "[{":
            self._at += 1
            closing = "]" if opening == "[" else "}"
            number = 0
            while self._skip() and self._text[self._at] != closing:
                if self._text[self._at] == ",":
                    self._at += 1
                    number += 1
                elif opening == "[":
                    self._value((*path, number))
                else:
                    self._pair(path)
            self._at += 1
        else:
            scalar = _SCALAR.match(self._text, self._at)
            assert scalar is not None
            self._at = scalar.end()

    def _string(self) -> str:
        quote = self._text[self._at]
        start = self._at + 1
        if self._text.startswith(quote * 3, self._at):
            start += 2
            end = start
            while not self._text.startswith(quote * 3, end):
                end += 2 if self._text[end] == "\\" and quote == '"' else 1
            self._at = end + 3
            # Up to two quotes may stand right before the closing three.
            while self._text.startswith(quote, self._at):
                self._at += 1
        else:
            end = start
            while self._text[end] != quote:
                end += 2 if self._text[end] == "\\" and quote == '"' else 1
            self._at = end + 1
        return self._text[start:end]
