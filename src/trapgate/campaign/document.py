"""Tables of a plan, read key by key: every value has a type, and every key has a reader."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from trapgate.campaign.errors import PlanError
from trapgate.errors import suggestion

_SIZE = re.compile(r"(\d{1,9})([KMG]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_LARGEST = 1 << 62

T = TypeVar("T")


class Table:
    """A table of a TOML document: `field` is what it is called, `path` its file.

    Every getter takes a key away; `done` refuses what is left.
    """

    def __init__(self, values: Mapping[str, Any], field: str, path: str) -> None:
        self._values = dict(values)
        self._known: list[str] = []
        self.field = field
        self.path = path

    def error(self, problem: str, key: str = "") -> PlanError:
        """The error for `key` of this table."""
        return PlanError(problem, ".".join(part for part in (self.field, key) if part), self.path)

    @property
    def values(self) -> dict[str, Any]:
        """What nobody has asked for yet."""
        return dict(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def _take(self, key: str) -> Any:
        self._known.append(key)
        return self._values.pop(key, None)

    def _of(self, key: str, kind: type[T], default: T, what: str) -> T:
        value = self._take(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"{value!r} is not {what}", key)
        return value

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        return self._of(key, str, default, 'text; write it in "quotes"')

    def flag(self, key: str, *, default: bool = False) -> bool:
        """True or false."""
        return self._of(key, bool, default, "true or false")

    def number(
        self, key: str, default: int | None = None, *, low: int = 0, high: int = _LARGEST
    ) -> int | None:
        """An integer from `low` to `high`."""
        value = self._of(key, int, -1, "a whole number") if key in self else self._take(key)
        if value is None:
            return default
        if not low <= value <= high:
            raise self.error(f"{value} is out of range; choose from {low} to {high}", key)
        return value

    def fraction(self, key: str, default: float | None, low: float, high: float) -> float | None:
        """A number between `low` and `high`, both left out."""
        value = self._take(key)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not low < value < high:
            raise self.error(f"{value!r} is not a number between {low} and {high}", key)
        return float(value)

    def size(self, key: str, default: str) -> int:
        """Bytes, written as 16M or 1G."""
        text = self.text(key, default)
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise self.error(f"{text!r} is not a size; write it as 16M or 1G", key)
        return int(match[1]) * _UNITS[match[2].upper()] & ~0xFFF

    def choice(self, key: str, names: Sequence[str], default: str) -> str:
        """One of `names`."""
        value = self.text(key, default)
        if value not in names:
            raise self.error(
                f"{value!r} is none of them; {suggestion(value, filter(None, names))}", key
            )
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A string, or a list of them; none if the key is not there."""
        value = self._take(key)
        if value is None:
            return ()
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise self.error(f"{value!r} is neither text nor a list of texts", key)
        return tuple(found)

    def patterns(self, key: str) -> tuple[re.Pattern[bytes], ...]:
        """Regular expressions over bytes."""
        return tuple(self._pattern(text, key) for text in self.texts(key))

    def _pattern(self, text: str, key: str) -> re.Pattern[bytes]:
        try:
            return re.compile(text.encode())
        except re.error as error:
            raise self.error(f"{text!r} is not a regular expression: {error}", key) from None

    def span(self, key: str, default: tuple[int, int], width: int) -> tuple[int, int]:
        """FIRST-LAST, or one number, of `width` bits: first, and last + 1."""
        value = self._take(key)
        if value is None:
            return default
        words = [str(value)] if isinstance(value, int) else str(value).split("-")
        try:
            numbers = [int(word, 0) for word in words]
        except ValueError:
            numbers = []
        if len(numbers) not in {1, 2} or not 0 <= numbers[0] <= numbers[-1] < 1 << width:
            raise self.error(f'{value!r} is not a range; write it as "FIRST-LAST"', key)
        return numbers[0], numbers[-1] + 1

    def table(self, key: str) -> Table:
        """A table within; an empty one if it is not there."""
        value = self._take(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(f"{value!r} is not a table; write it as [{key}]", key)
        return Table(value or {}, ".".join(p for p in (self.field, key) if p), self.path)

    def tables(self, key: str) -> list[Table]:
        """The tables of an array."""
        value = self._take(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self.error(f"is no list of tables; write each as [[{key}]]", key)
        return [Table(one, f"{key}[{n}]", self.path) for n, one in enumerate(value, 1)]

    def parsed(self, key: str, read: Callable[[str], T], text: str) -> T:
        """`read(text)`, whose ValueError is this key's fault."""
        try:
            return read(text)
        except ValueError as error:
            raise self.error(str(error), key) from None

    def refuse_unknown_keys(self) -> None:
        """Refuse keys that nobody has asked for."""
        for key in self._values:
            raise self.error(f"unknown key; {suggestion(key, self._known)}", key)
