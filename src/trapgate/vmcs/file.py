"""VMCS settings in TOML, read into plain values and written from them.

```toml
profile = "vt-x"                       # or "extended", which has the extensions too

[controls]                             # bits by name; a "-" in front turns one off
pin = ["NMI_EXITING"]
primary = ["HLT_EXITING", "-RDTSC_EXITING"]
exceptions = ["PF", "GP"]              # bits of EXCEPTION_BITMAP

[fields]                               # whole fields, after the controls
PAGE_FAULT_ERROR_CODE_MASK = 0xF
FAULT_FILTER = "figure-8"              # some values have names
GUEST_CR3 = "0xFFFF800000000000"       # a string where TOML's integers end

[[rules]]                              # the criteria table; the first rule that matches decides
when = "vector == PF and cpl == 3 and below_stack <= 64"
then = "deliver"                       # or "exit", "complete", "next"

[bitmaps]                              # sets of numbers: page in bitmap("mine")
mine = [0x1000, 0x1001, 0x1008]
```
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal

from trapgate.decision.condition_rules import condition_text, rules_for
from trapgate.decision.conditions import AllOf, ConditionError, Names, parse
from trapgate.decision.criteria_rules import Action, CriteriaTableError, Operator, Rule, encode
from trapgate.decision.criteria_table import TABLE_BYTES
from trapgate.decision.fault_filters import FILTERS, ORDERS, SPAN
from trapgate.errors import (
    FieldValueError,
    TrapgateError,
    UnknownFieldError,
    VmcsFileError,
    suggestion,
)
from trapgate.sdm.controls import (
    EntryControl,
    ExitControl,
    PinControl,
    PrimaryControl,
    SecondaryControl,
)
from trapgate.sdm.fields import Field
from trapgate.sdm.vectors import Vector
from trapgate.tomlfile import demand_known, parse_toml, read_toml
from trapgate.vmcs.intercepts import Intercepts, parse_intercepts

Profile = Literal["extended", "vt-x"]
"""What a processor has: all extensions, or only what Intel ships."""

PROFILES: Final[tuple[Profile, ...]] = ("extended", "vt-x")

_TABLES: dict[str, tuple[Field, Mapping[str, int]]] = {
    "pin": (Field.PIN_BASED_CONTROLS, {bit.name or "": bit.value for bit in PinControl}),
    "primary": (
        Field.PRIMARY_PROCESSOR_BASED_CONTROLS,
        {bit.name or "": bit.value for bit in PrimaryControl},
    ),
    "secondary": (
        Field.SECONDARY_PROCESSOR_BASED_CONTROLS,
        {bit.name or "": bit.value for bit in SecondaryControl},
    ),
    "exit": (Field.VM_EXIT_CONTROLS, {bit.name or "": bit.value for bit in ExitControl}),
    "entry": (Field.VM_ENTRY_CONTROLS, {bit.name or "": bit.value for bit in EntryControl}),
    "exceptions": (
        Field.EXCEPTION_BITMAP,
        {vector.name: 1 << vector for vector in Vector if vector is not Vector.NMI},
    ),
}

_WORDS: dict[Field, Mapping[str, int]] = {
    Field.FAULT_FILTER: FILTERS,
    Field.FAULT_FILTER_ORDER: ORDERS,
}
"""Fields whose values have names, and these."""


@dataclass(frozen=True)
class Settings:
    """What a VMCS file asks for.

    `bits` holds for each field the bits to turn on and those to turn off; `fields`
    whole values, which come after. `profile` is empty if the file names none. `rules` is
    the criteria table, `intercepts` what bitmaps and EPT entries hold, None if the file says
    nothing of them.
    """

    profile: str
    bits: Mapping[Field, tuple[int, int]]
    fields: Mapping[Field, int]
    path: str = ""
    rules: tuple[Rule, ...] | None = None
    intercepts: Intercepts | None = None


def field_named(name: str, path: str = "") -> Field:
    """The field called `name`; UnknownFieldError with the nearest name if there is none."""
    try:
        return Field[name]
    except KeyError:
        raise UnknownFieldError(
            f"no such VMCS field; {suggestion(name, Field.__members__)}", field=name, path=path
        ) from None


def read_settings(path: Path, names: Names | None = None) -> Settings:
    """The settings in the file `path`; `names` are for its conditions, beside its own bitmaps.

    Raises:
        VmcsFileError: it cannot be read, or is not TOML, or not laid out as it should be.
        UnknownFieldError: a name in it is not known.
        FieldValueError: a value does not fit.
    """
    text = read_toml(path, partial(VmcsFileError, path=str(path)))
    return parse_settings(text, str(path), names)


def parse_settings(text: str, path: str = "", names: Names | None = None) -> Settings:
    """The settings in TOML `text`; `path` is only for messages. As `read_settings`."""
    document = parse_toml(text, partial(VmcsFileError, path=path))
    demand_known(
        document,
        ("profile", "controls", "fields", "rules", "bitmaps", "intercepts"),
        partial(VmcsFileError, path=path),
    )
    profile = document.get("profile", "")
    if profile not in ("", *PROFILES):
        raise VmcsFileError(
            f"{profile!r} is not a profile; use one of {', '.join(PROFILES)}",
            field="profile",
            path=path,
        )
    bits = _bits(_table(document, "controls", path), path)
    fields = _fields(_table(document, "fields", path), path)
    given = names or Names()
    own = _bitmaps(_table(document, "bitmaps", path), path)
    known = replace(given, bitmaps={**given.bitmaps, **own})
    rules = _rules(document["rules"], known, path) if "rules" in document else None
    intercepts = None
    if "intercepts" in document:
        intercepts = parse_intercepts(_table(document, "intercepts", path), path)
    return Settings(profile, bits, fields, path, rules, intercepts)


def _table(document: Mapping[str, object], key: str, path: str) -> Mapping[str, object]:
    table = document.get(key, {})
    if not isinstance(table, dict):
        raise VmcsFileError(f"must be a table; write [{key}]", field=key, path=path)
    return table


def _bits(table: Mapping[str, object], path: str) -> dict[Field, tuple[int, int]]:
    result = {}
    for key, names in table.items():
        if key not in _TABLES:
            raise UnknownFieldError(
                f"no such group of controls; use one of {', '.join(_TABLES)}",
                field=f"controls.{key}",
                path=path,
            )
        field, known = _TABLES[key]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise VmcsFileError(
                "must be a list of names in quotes", field=f"controls.{key}", path=path
            )
        on = off = 0
        for name in names:
            bare = name.removeprefix("-")
            if bare not in known:
                raise UnknownFieldError(
                    f"no control {bare!r}; {suggestion(bare, known)}",
                    field=f"controls.{key}",
                    path=path,
                )
            if bare == name:
                on |= known[bare]
            else:
                off |= known[bare]
        if on & off:
            raise FieldValueError(
                "a control is both on and off; keep one of the two",
                field=f"controls.{key}",
                path=path,
            )
        result[field] = (on, off)
    return result


def _fields(table: Mapping[str, object], path: str) -> dict[Field, int]:
    result = {}
    for name, raw in table.items():
        field = field_named(name, path)
        value: object = raw
        words = _WORDS.get(field, {})
        if isinstance(raw, str):
            try:
                value = words[raw] if raw in words else int(raw, 0)
            except ValueError:
                value = None
        if isinstance(value, bool) or not isinstance(value, int):
            problem = "is not an integer; write 123, 0x7B or a string of one"
            if words:
                problem = f"is unknown; use one of {', '.join(words)}"
            raise FieldValueError(f"{raw!r} {problem}", field=name, path=path)
        if words and value not in words.values():
            raise FieldValueError(
                f"{value} has no meaning; use one of {', '.join(words)}", field=name, path=path
            )
        if field is Field.PTBASE and value & SPAN:
            raise FieldValueError(
                f"{value:#x} is not 4 MB aligned; give the self-mapped tables' linear address",
                field=name,
                path=path,
            )
        check_width(field, value, path)
        result[field] = value
    return result


def _bitmaps(table: Mapping[str, object], path: str) -> dict[str, bytes]:
    found = {}
    for name, numbers in table.items():
        if not isinstance(numbers, list) or not all(
            type(number) is int and 0 <= number < _MOST_BITS for number in numbers
        ):
            raise VmcsFileError(
                f"must be a list of integers from 0 to {_MOST_BITS - 1}",
                field=f"bitmaps.{name}",
                path=path,
            )
        bits = bytearray((max(numbers, default=0) >> 3) + 1)
        for number in numbers:
            bits[number >> 3] |= 1 << (number & 7)
        found[name] = bytes(bits)
    return found


_MOST_BITS = 8 * TABLE_BYTES
_ACTIONS = {action.name.lower(): action for action in Action}


def rules_of(
    entries: object,
    field: str,
    names: Names | None,
    actions: Mapping[str, Action],
    wrong: Callable[[str, str], TrapgateError],
) -> list[Rule]:
    """Rules from tables with `when` and `then`: in their order, one or several for each.

    `field` is what the file calls them, `actions` what `then` may say. What is wrong is raised
    as `wrong` makes it of words and the place.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise wrong(f"must be a list of tables; write [[{field}]]", field)
    rules: list[Rule] = []
    for number, entry in enumerate(entries):
        where = f"{field}[{number}]"
        demand_known(entry, ("when", "then"), wrong)
        when, then = entry.get("when", "all"), entry.get("then")
        if then not in actions:
            raise wrong(f"{then!r}: {suggestion(str(then), actions)}", f"{where}.then")
        if not isinstance(when, str):
            raise wrong(f"{when!r} is not a condition in quotes", f"{where}.when")
        try:
            rules += rules_for(parse(when, names), actions[then])
        except ConditionError as error:
            raise wrong(str(error), f"{where}.when") from None
    return rules


def _rules(entries: object, names: Names, path: str) -> tuple[Rule, ...]:
    """The criteria table of a file."""
    rules = rules_of(entries, "rules", names, _ACTIONS, partial(VmcsFileError, path=path))
    try:
        encode(rules)
    except CriteriaTableError as error:
        raise VmcsFileError(str(error), field="rules", path=path) from None
    return tuple(rules)


def check_width(field: Field, value: int, path: str = "") -> None:
    """Raise FieldValueError unless `value` is an unsigned number of the field's width."""
    if not 0 <= value < 1 << field.width:
        raise FieldValueError(
            f"{value:#x} does not fit; give an unsigned number of {field.width} bits",
            field=field.name,
            path=path,
        )


def write_settings(profile: str, values: Mapping[Field, int], rules: Sequence[Rule] = ()) -> str:
    """TOML text of whole fields and rules that `parse_settings` reads back to the same."""
    lines = [f'profile = "{profile}"', "", "[fields]"]
    for field, value in values.items():
        number = f"0x{value:X}"
        lines.append(f"{field.name} = {number if value < 1 << 63 else repr(number)}")
    bitmaps: dict[bytes, str] = {}
    for rule in rules:
        for clause in rule.clauses:
            if clause.operator is Operator.IN_BITMAP:
                bitmaps.setdefault(clause.bitmap, f"numbers_{len(bitmaps)}")
        when = condition_text(AllOf(rule.clauses), bitmaps).replace('"', "'")
        lines += ["", "[[rules]]", f'when = "{when}"', f'then = "{rule.action.name.lower()}"']
    if bitmaps:
        lines += ["", "[bitmaps]"]
    for bits, name in bitmaps.items():
        numbers = [n for n in range(8 * len(bits)) if bits[n >> 3] >> (n & 7) & 1]
        lines.append(f"{name} = {numbers}")
    return "\n".join(lines) + "\n"
