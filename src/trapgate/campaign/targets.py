"""From a plan's [[target]] tables to numbered faults, made when they are asked for."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final

from trapgate.campaign.document import Table
from trapgate.campaign.faults import FLIP, SET_0, SET_1, Event, Fault, Flip, Skip
from trapgate.campaign.places import (
    LEVELS,
    TABLES,
    Byte,
    Descriptor,
    InstructionByte,
    LinearPage,
    Place,
    TableEntry,
    field_of_vmcs,
    general,
)
from trapgate.campaign.uses import FLAGS, MOST_FLAGS
from trapgate.errors import UnknownFieldError, suggestion
from trapgate.sdm.fields import Field
from trapgate.sdm.registers import GENERAL
from trapgate.vmcs.file import field_named
from trapgate.vmm.injection import InjectionError, parse_injection

_MOST = 1 << 40
"""Faults of a plan: more are a mistake in it."""
MOST_PAGES: Final = 4096
"""Linear pages of a target that can be pruned."""
_MODES: Final = {
    "flip": (FLIP, False),
    "set 0": (SET_0, False),
    "set 1": (SET_1, False),
    "stuck 0": (SET_0, True),
    "stuck 1": (SET_1, True),
}
"""Words of a plan: what becomes of a bit, and whether it stays."""
ENTRY_FIELDS: Final = {
    "P": ((0, 1),),
    "R/W": ((1, 2),),
    "U/S": ((2, 3),),
    "A": ((5, 6),),
    "D": ((6, 7),),
    "PS": ((7, 8),),
    "G": ((8, 9),),
    "frame": ((12, 40),),
    "XD": ((63, 64),),
}
"""Fields of page-table entries: the ranges of bits (SDM, "Paging")."""
_FRAME_32 = 12, 32
_CONTROL_REGISTERS: Final = {"CR0": Field.GUEST_CR0, "CR3": Field.GUEST_CR3, "CR4": Field.GUEST_CR4}
_LIVED_ON: Final = frozenset({Field.PIN_BASED_CONTROLS, Field.VMX_PREEMPTION_TIMER_VALUE})
"""Fields without which the VMM does not get the processor back."""


@dataclass(frozen=True)
class Part:
    """What has definitions and uses: a bit of the masks of `uses`, or a byte of memory.

    That is at a physical address or, if it has a `page`, so many bytes after its beginning.
    """

    register: int = -1
    address: int = -1
    page: LinearPage | None = None


@dataclass(frozen=True)
class Target:
    """Some faults of a kind: `count`, and how the n-th is made.

    Those that flip bits of parts have `part`, which gives the n-th; each of `bits` faults is one's.
    `memory` is where its bytes are, if it is memory by physical addresses: first, and last + 1;
    `pages` are those of memory by linear addresses.
    """

    count: int
    make: Callable[[int], Fault]
    part: Callable[[int], Part] | None = None
    bits: int = 0
    memory: tuple[int, int] | None = None
    pages: Sequence[LinearPage] = ()


class Faults(Sequence[Fault]):
    """All faults of a plan, in its order. `prunable` is whether all are flips in parts."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = tuple(targets)
        self.ends = list(accumulate(one.count for one in targets))
        """Of each target the number after its last fault."""
        self.prunable = all(one.part is not None for one in targets)
        self._made = lru_cache(1 << 16)(self._make)

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, number: Any) -> Any:
        return self._made(int(number))

    @property
    def parts(self) -> Iterator[tuple[int, int, Part]]:
        """The parts of flips: number of the first fault, how many there are, the part."""
        number = 0
        while number < len(self):
            first, bits, part = self.part_of(number)
            yield first, bits, part
            number += bits

    def part_of(self, number: int) -> tuple[int, int, Part]:
        """The same of the part that a fault flips a bit in; all faults must be such flips."""
        which = bisect_right(self.ends, number)
        target = self._targets[which]
        begin = self.ends[which] - target.count
        n = (number - begin) // target.bits
        assert target.part is not None
        return begin + n * target.bits, target.bits, target.part(n)

    @property
    def memory(self) -> list[tuple[int, int]]:
        """Physical addresses that are changed: first, and last + 1, of each target."""
        return [one.memory for one in self._targets if one.memory is not None]

    @property
    def pages(self) -> list[LinearPage]:
        """The linear pages that are flipped in."""
        return [page for one in self._targets for page in one.pages]

    def _make(self, number: int) -> Fault:
        which = bisect_right(self.ends, number)
        return self._targets[which].make(number - (self.ends[which - 1] if which else 0))


def faults_of(targets: Sequence[dict[str, Any]], path: str, *, wide: bool) -> Faults:
    """The faults of a plan's targets. `wide` is whether registers have 64 bits.

    Raises PlanError for targets that there are not.
    """
    found: list[Target] = []
    for number, values in enumerate(targets, 1):
        table = Table(values, f"target[{number}]", path)
        kinds = [kind for kind in _READERS if kind in table]
        if len(kinds) != 1:
            given = ", ".join(values) or "nothing"
            raise table.error(f"has {given}; give one of {', '.join(_READERS)}")
        found += _READERS[kinds[0]](table, wide)
        table.refuse_unknown_keys()
    faults = Faults(found)
    if not 0 < sum(one.count for one in found) < _MOST:
        raise Table({}, "target", path).error("no fault is left of it; widen its ranges")
    return faults


def _listed(faults: Sequence[Fault]) -> Target:
    return Target(len(faults), faults.__getitem__)


def _events(table: Table, wide: bool) -> list[Target]:
    found: list[Fault] = []
    for text in table.texts("event"):
        if "@" in text:
            why = f"{text!r}: leave out @ and what follows; [when] says when"
            raise table.error(why, "event")
        try:
            one = parse_injection(f"{text}@0")
        except InjectionError as error:
            # A plan's events have no moments of their own, not even in examples.
            raise table.error(re.sub(r"@\d+", "", str(error)), "event") from None
        found.append(Event(one.event, one.address))
    return [_listed(found)]


def _vectors(table: Table, wide: bool) -> list[Target]:
    """Any interruption information: vectors by types, whether VM entry takes them or not."""
    from trapgate.decision.faults import Interruption
    from trapgate.sdm.interruption import InterruptionType

    first, last = table.span("vectors", (0, 256), 8)
    names = {one.name.lower().replace("_", " "): one for one in InterruptionType}
    wanted = table.texts("type") or ("hardware exception",)
    for name in wanted:
        if name not in names:
            raise table.error(f"no type {name!r}; {suggestion(name, list(names))}", "type")
    code = table.number("code", high=(1 << 32) - 1)
    address = table.number("cr2", high=(1 << 63) - 1)
    length = table.number("length", 0, high=15) or 0
    return [
        _listed(
            [
                Event(Interruption(vector, names[name], code), address, length)
                for name in wanted
                for vector in range(first, last)
            ]
        )
    ]


def _flips(
    table: Table,
    places: Sequence[Place],
    bits: tuple[int, int],
    numbers: Mapping[str, int] | None = None,
) -> list[Target]:
    """The bits from `bits[0]` to before `bits[1]` of each place that has them."""
    mode, holds = _MODES[table.choice("mode", tuple(_MODES), "flip")]
    found = []
    for place in places:
        first, last = bits[0], min(bits[1], place.width)
        if first < last:
            make = _flip_maker(place, first, mode, holds=holds)
            part = None
            if numbers is not None and mode == FLIP:
                part = _always(Part(register=numbers[place.name]))
            found.append(Target(last - first, make, part, last - first))
    return found


def _always(part: Part) -> Callable[[int], Part]:
    return lambda _: part


def _flip_maker(place: Place, first: int, mode: str, *, holds: bool) -> Callable[[int], Fault]:
    return lambda n: Flip(place, first + n, mode, holds)


def _bits(table: Table) -> tuple[int, int]:
    return table.span("bits", (0, 64), 6)


def _registers(table: Table, wide: bool) -> list[Target]:
    known = general(wide)
    short = {
        name: f"R{name[1:]}" for name in ("EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI")
    }
    names: list[str] = []
    for word in table.texts("register"):
        name = short.get(word.upper(), word.upper())
        if name == "GENERAL":
            names += known
        elif name in known:
            names.append(name)
        else:
            names_here = list(known if wide else short)
            raise table.error(f"no register {word!r}; {suggestion(word, names_here)}", "register")
    numbers = {name: number for number, name in enumerate(GENERAL)}
    return _flips(table, [known[one] for one in names], _bits(table), numbers)


def _flags(table: Table, wide: bool) -> list[Target]:
    table.flag("flags")
    first, last = _bits(table)
    place = field_of_vmcs(Field.GUEST_RFLAGS)
    (target,) = _flips(table, [place], (first, last), {place.name: FLAGS})
    if target.part is None:
        return [target]

    def part(n: int) -> Part:
        return Part(register=FLAGS + min(first + n, MOST_FLAGS - 1))

    return [replace(target, part=part, bits=1)]


def _control(table: Table, wide: bool) -> list[Target]:
    names = table.texts("control")
    for name in names:
        if name not in _CONTROL_REGISTERS:
            raise table.error(f"no control register {name!r}; use CR0, CR3 or CR4", "control")
    places = [field_of_vmcs(_CONTROL_REGISTERS[name]) for name in names]
    return _flips(table, places, _bits(table))


def _vmcs(table: Table, wide: bool) -> list[Target]:
    places = []
    for name in table.texts("vmcs"):
        try:
            field = field_named(name, table.path)
        except UnknownFieldError as error:
            raise table.error(error.problem, f"vmcs.{name[:80]}") from None
        if field.read_only or field in _LIVED_ON or field.kind == "host state":
            raise table.error(
                f"{name} cannot be a target: the processor writes it, or the VMM lives on it",
                "vmcs",
            )
        places.append(field_of_vmcs(field))
    return _flips(table, places, _bits(table))


def _memory(kind: str, *, linear: bool) -> Callable[[Table, bool], list[Target]]:
    def read(table: Table, wide: bool) -> list[Target]:
        first, last = table.span(kind, (0, 0), 64 if linear else 40)
        low, high = table.span("bits", (0, 8), 3)
        mode, holds = _MODES[table.choice("mode", tuple(_MODES), "flip")]
        width = high - low

        def make(n: int) -> Fault:
            byte, bit = divmod(n, width)
            return Flip(Byte(first + byte, linear), low + bit, mode, holds)

        count = (last - first) * width
        if mode != FLIP:
            return [Target(count, make, memory=None if linear else (first, last))]
        if not linear:

            def part(n: int) -> Part:
                return Part(address=first + n)

            return [Target(count, make, part, width, memory=(first, last))]
        if last - first > MOST_PAGES << 12:
            return [Target(count, make)]
        pages = [LinearPage(page << 12) for page in range(first >> 12, (last - 1 >> 12) + 1)]

        def part_of_page(n: int) -> Part:
            address = first + n
            return Part(address=address & 0xFFF, page=pages[(address >> 12) - (first >> 12)])

        return [Target(count, make, part_of_page, width, pages=pages)]

    return read


def _entries(table: Table, wide: bool) -> list[Target]:
    first, last = table.span("entries", (0, 0), 64)
    level = table.number("level", 1, low=1, high=4) or 1
    names = table.texts("field") or tuple(ENTRY_FIELDS)
    mode, holds = _MODES[table.choice("mode", tuple(_MODES), "flip")]
    bits: list[int] = []
    for name in names:
        if name not in ENTRY_FIELDS:
            raise table.error(
                f"entries have no field {name!r}; {suggestion(name, list(ENTRY_FIELDS))}", "field"
            )
        for low, high in ENTRY_FIELDS[name]:
            bits += range(low, min(high, 64 if wide or name != "frame" else _FRAME_32[1]))
    step = 12 + (9 if wide else 10) * (level - 1)
    start, count = first >> step, ((last - 1) >> step) - (first >> step) + 1

    def make(n: int) -> Fault:
        entry, bit = divmod(n, len(bits))
        return Flip(TableEntry(start + entry << step, level), bits[bit], mode, holds)

    assert level in LEVELS
    return [Target(count * len(bits), make)]


def _descriptors(table: Table, wide: bool) -> list[Target]:
    names = table.texts("descriptor")
    for name in names:
        if name not in TABLES:
            raise table.error(f"no table {name!r}; use {' or '.join(TABLES)}", "descriptor")
    first, last = table.span("index", (0, 8), 13)
    places = [Descriptor(name, index) for name in names for index in range(first, last)]
    return _flips(table, places, _bits(table))


def _instruction(table: Table, wide: bool) -> list[Target]:
    first, last = table.span("instruction_bytes", (0, 15), 4)
    places = [InstructionByte(offset) for offset in range(first, min(last, 15))]
    return _flips(table, places, table.span("bits", (0, 8), 3))


def _skip(table: Table, wide: bool) -> list[Target]:
    table.flag("skip")
    return [_listed([Skip()])]


_READERS: Final[dict[str, Callable[[Table, bool], list[Target]]]] = {
    "event": _events,
    "vectors": _vectors,
    "register": _registers,
    "flags": _flags,
    "control": _control,
    "vmcs": _vmcs,
    "memory": _memory("memory", linear=False),
    "linear": _memory("linear", linear=True),
    "entries": _entries,
    "descriptor": _descriptors,
    "instruction_bytes": _instruction,
    "skip": _skip,
}
"""What a target can be, by the key that says so."""
