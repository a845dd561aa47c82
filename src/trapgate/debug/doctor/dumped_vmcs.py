"""The VMCS that a dump shows: the fields it contains, and no more."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from trapgate.debug.doctor.fields import width


class NotInDumpError(LookupError):
    """A check asked for a field that the dump does not have; `what` names it."""

    def __init__(self, what: str) -> None:
        """`what` is the name of the field."""
        self.what = what
        super().__init__(what)


@dataclass(frozen=True)
class DumpedVmcs:
    """Fields by their SDM names, unsigned.

    `form` says whose dump it was; `assumed` names fields that the dump does not have, but that
    follow from whose it is; `notes` what else was learned from it; `unread` are its lines that
    were not understood.
    """

    values: Mapping[str, int]
    form: str = "fields"
    assumed: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = field(default=(), repr=False)

    def __getitem__(self, name: str) -> int:
        """The field's value. Raises NotInDumpError."""
        try:
            return self.values[name]
        except KeyError:
            raise NotInDumpError(name) from None

    def __contains__(self, name: str) -> bool:
        """Whether the dump has the field."""
        return name in self.values

    def changed(self, changes: Mapping[str, int]) -> Self:
        """The same with other values in some fields."""
        return replace(self, values={**self.values, **changes})

    def differing(self, other: "DumpedVmcs") -> Iterator[tuple[str, int | None, int | None]]:
        """Fields that the two do not have alike: name, value here, value there (None: absent)."""
        for name in _in_order({*self.values, *other.values}):
            here, there = self.values.get(name), other.values.get(name)
            if here != there:
                yield name, here, there


def _in_order(names: Iterable[str]) -> list[str]:
    from trapgate.debug.doctor.fields import FIELDS

    return sorted(names, key=lambda name: FIELDS[name])


def fits(name: str, value: int) -> bool:
    """Whether the value is an unsigned number of the field's width."""
    return 0 <= value < 1 << width(name)
