"""Wishes: which faults must exit, which must be delivered, which are free (¶87, block 902).

```toml
scheme = "vt-x"                 # optional, as are the next four
bits = "sdm"                    # a page fault's: "sdm", "seed", a list of names, or 1 to 16
impossible = "free"             # codes that the processor cannot raise; or "kept"
others = "deliver"              # what vectors do that are not named here
name = "tracker"                # who wishes, for messages

[PF]                            # a vector: a mnemonic, or a number
exit = ["write and present and not user", 0x1F]
deliver = ["not present"]
free = ["fetch"]
default = "free"                # codes that no wish names

[vectors]                       # whole vectors, in short
BP = "exit"
GP = "deliver"
```

A string is a condition (`condition.py`), an integer an error code, a table
`{from = 4, to = 7}` a range. A code that is both `free` and something else is the
other thing; one that must both exit and be delivered is a contradiction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trapgate.criteria.errors import ContradictionError, SpecError, listed
from trapgate.criteria.problems.codes import (
    SEED_BITS,
    CodeBit,
    Codes,
    Layout,
    demand_within,
    has_error_code,
    layout_of,
    narrowed,
    plain_layout,
    vector_label,
    vector_named,
)
from trapgate.criteria.wishes.condition import Condition, condition
from trapgate.criteria.wishes.lines import lines_of
from trapgate.errors import suggestion
from trapgate.sdm.vectors import PF, Vector
from trapgate.tomlfile import demand_known, parse_toml, read_toml

Goal = Literal["exit", "deliver", "free"]
GOALS: tuple[Goal, ...] = ("exit", "deliver", "free")

FREE, EXIT, DELIVER = 0, 1, 2
"""What is wished for one code, as arrays hold it."""

_MOST_WISHES = 5_000

_KEYS = ("scheme", "bits", "impossible", "others", "name", "vectors")


@dataclass(frozen=True)
class Wish:
    """One wish: a goal for the codes that `what` names; `line` is where it stands."""

    goal: Goal
    what: Condition | tuple[int, int]
    line: int

    def names(self, codes: Codes) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of `codes` it is about."""
        if isinstance(self.what, Condition):
            return self.what.holds(codes)
        low, high = self.what
        return (codes >= low) & (codes <= high)

    @property
    def text(self) -> str:
        """As it was written."""
        if isinstance(self.what, Condition):
            return self.what.text
        low, high = self.what
        return f"{low:#x}" if low == high else f"{low:#x} to {high:#x}"


@dataclass(frozen=True)
class VectorWishes:
    """All wishes about one vector. `layout` is None for one without an error code.

    `default` is the goal of codes that no wish names, `keep_impossible` whether wishes
    count for codes that the processor cannot raise.
    """

    vector: int
    layout: Layout | None
    wishes: tuple[Wish, ...]
    default: Goal
    keep_impossible: bool = False

    def goals(self) -> tuple[Codes, np.ndarray[Any, np.dtype[np.uint8]]]:
        """Every code (ascending) and what is wished for it: FREE, EXIT or DELIVER."""
        assert self.layout is not None
        codes = self.layout.codes()
        goals = np.full(len(codes), GOAL_NUMBERS[self.default], dtype=np.uint8)
        for goal in ("free", "deliver", "exit"):
            for wish in self.wishes:
                if wish.goal == goal:
                    goals[wish.names(codes)] = GOAL_NUMBERS[goal]
        if not self.keep_impossible:
            goals[~np.asarray(self.layout.occurs(codes), dtype=np.bool_)] = FREE
        return codes, goals


GOAL_NUMBERS: dict[Goal, int] = {"free": FREE, "exit": EXIT, "deliver": DELIVER}


@dataclass(frozen=True)
class Spec:
    """What somebody wishes of the control-transfer criteria.

    `vectors` holds the wishes by vector, `others` is what vectors do that are not named,
    `scheme` the one asked for (empty: none), `path` the file, for messages.
    """

    vectors: Mapping[int, VectorWishes]
    others: Literal["exit", "deliver"] = "deliver"
    scheme: str = ""
    name: str = ""
    path: str = ""


def read_spec(path: Path) -> Spec:
    """The wishes in a file; raises SpecError as `parse_spec`, or if it cannot be read."""
    return parse_spec(read_toml(path, partial(SpecError, path=str(path))), str(path))


def parse_spec(text: str, path: str = "") -> Spec:
    """The wishes in TOML `text`; `path` is for messages.

    Raises:
        SpecError: it is not TOML, or names what is not known, or a number does not fit.
        ContradictionError: codes are both to exit and to be delivered.
    """
    document = parse_toml(text, partial(SpecError, path=path))
    return _Reader(document, lines_of(text.replace("\r\n", "\n")), path).spec()


class _Reader:
    def __init__(
        self, document: Mapping[str, Any], lines: Mapping[tuple[str | int, ...], int], path: str
    ) -> None:
        self._document = document
        self._lines = lines
        self._path = path

    def _wrong(self, problem: str, *where: str | int) -> SpecError:
        field = ".".join(str(part) for part in where if isinstance(part, str))
        return SpecError(problem, path=self._path, line=self._line(*where), field=field)

    def _line(self, *where: str | int) -> int:
        while where and where not in self._lines:
            where = where[:-1]
        return self._lines.get(where, 0)

    def _one_of(self, value: object, known: tuple[str, ...], *where: str) -> str:
        if value not in known:
            raise self._wrong(f"{value!r} is not known; {suggestion(str(value), known)}", *where)
        return str(value)

    def spec(self) -> Spec:
        document = self._document
        impossible = self._one_of(
            document.get("impossible", "free"), ("free", "kept"), "impossible"
        )
        others = self._one_of(document.get("others", "deliver"), ("deliver", "exit"), "others")
        for key in ("scheme", "name"):
            if not isinstance(document.get(key, ""), str):
                raise self._wrong("must be text in quotes", key)
        vectors: dict[int, VectorWishes] = {}
        for key, value in document.items():
            if key in _KEYS:
                continue
            if not isinstance(value, dict | str) and key not in Vector.__members__:
                known = (*_KEYS, *Vector.__members__)
                raise self._wrong(f"unknown key; {suggestion(key, known)}", key)
            self._add(vectors, value, impossible == "kept", key)
        short = document.get("vectors", {})
        if not isinstance(short, dict):
            raise self._wrong("must be a table; write [vectors]", "vectors")
        for key, value in short.items():
            self._add(vectors, value, impossible == "kept", "vectors", key)
        if not vectors:
            raise SpecError("wishes nothing; add a table like [PF]", path=self._path)
        return Spec(
            vectors,
            "exit" if others == "exit" else "deliver",
            str(document.get("scheme", "")),
            str(document.get("name", "")),
            self._path,
        )

    def _add(
        self, vectors: dict[int, VectorWishes], value: object, keep: bool, *where: str
    ) -> None:
        vector = vector_named(where[-1], self._path, self._line(*where))
        if vector in vectors:
            raise self._wrong(f"{vector_label(vector)} has wishes already; join them", *where)
        layout = self._layout(vector, *where) if has_error_code(vector) else None
        if isinstance(value, str):
            goal = self._goal(value, *where)
            vectors[vector] = VectorWishes(vector, layout, (), goal, keep)
            return
        if not isinstance(value, dict):
            raise self._wrong('must be a table, or one of "exit", "deliver", "free"', *where)
        if layout is None and set(value) - {"default"}:
            raise self._wrong(
                f'{vector_label(vector)} has no error code; write it as {where[-1]} = "exit"',
                *where,
            )
        demand_known(
            value, (*GOALS, "default"), lambda problem, key: self._wrong(problem, *where, key)
        )
        default = self._goal(value.get("default", "free"), *where, "default")
        wishes = tuple(
            wish
            for goal in GOALS
            if goal in value and layout is not None
            for wish in self._wishes(goal, value[goal], layout, *where)
        )
        vectors[vector] = VectorWishes(vector, layout, wishes, default, keep)
        self._agree(vectors[vector], where)

    def _goal(self, value: object, *where: str) -> Goal:
        for goal in GOALS:
            if value == goal:
                return goal
        raise self._wrong(f"{value!r} is not a goal; {suggestion(str(value), GOALS)}", *where)

    def _layout(self, vector: int, *where: str) -> Layout:
        layout = layout_of(vector)
        bits = self._document.get("bits", "sdm")
        if vector != PF or bits == "sdm":
            return layout
        line = self._line("bits")
        if bits == "seed":
            kept: tuple[CodeBit, ...] = SEED_BITS
            return Layout(kept, layout.occurs)
        if type(bits) is int:
            return plain_layout(bits, self._path, line)
        if isinstance(bits, list) and all(isinstance(name, str) for name in bits):
            return narrowed(layout, bits, self._path, line)
        raise self._wrong(
            f'{bits!r} is not known; use "sdm", "seed", a list of names or 1 to 16', "bits"
        )

    def _wishes(self, goal: Goal, value: object, layout: Layout, *where: str) -> list[Wish]:
        items = value if isinstance(value, list) else [value]
        if len(items) > _MOST_WISHES:
            raise self._wrong(
                f"has {len(items)} wishes, more than {_MOST_WISHES}; use conditions or ranges",
                *where,
                goal,
            )
        wishes = []
        for number, item in enumerate(items):
            line = self._line(*where, goal, number)
            field = ".".join((*where, goal))
            what: Condition | tuple[int, int]
            if isinstance(item, str):
                what = condition(item, layout, self._path, line, field)
            elif type(item) is int:
                demand_within(layout, item, self._path, line, field)
                what = (item, item)
            elif isinstance(item, dict) and set(item) == {"from", "to"}:
                if not all(type(end) is int for end in item.values()):
                    raise self._wrong("a range is {from = 4, to = 7}", *where, goal, number)
                low, high = item["from"], item["to"]
                if not 0 <= low <= high <= layout.window:
                    raise self._wrong(
                        f"no code lies from {low:#x} to {high:#x}; codes go up to "
                        f"{layout.window:#x}",
                        *where,
                        goal,
                        number,
                    )
                what = (low, high)
            else:
                raise self._wrong(
                    f"{item!r} is not a wish; write a condition in quotes, a code, or a range",
                    *where,
                    goal,
                    number,
                )
            wishes.append(Wish(goal, what, line))
        return wishes

    def _agree(self, wishes: VectorWishes, where: tuple[str, ...]) -> None:
        assert wishes.layout is not None or not wishes.wishes
        if wishes.layout is None:
            return
        codes = wishes.layout.codes()
        if not wishes.keep_impossible:
            codes = codes[np.asarray(wishes.layout.occurs(codes), dtype=np.bool_)]
        exits, delivers = (
            [(wish, wish.names(codes)) for wish in wishes.wishes if wish.goal == goal]
            for goal in ("exit", "deliver")
        )
        both = np.logical_and(
            *(
                np.logical_or.reduce([named for _, named in told], axis=0, initial=False)
                for told in (exits, delivers)
            )
        )
        if not np.any(both):
            return
        clash = [int(code) for code in codes[both]]
        first = int(np.argmax(both))
        one, other = (
            next(wish for wish, named in told if named[first]) for told in (exits, delivers)
        )
        lines = sorted({wish.line for wish, named in exits + delivers if (named & both).any()})
        more = [str(line) for line in lines if line not in {one.line, other.line}]
        also = f" (more in line {', '.join(more[:8])}{', ...' if len(more) > 8 else ''})"
        raise ContradictionError(
            f"contradiction about {listed(clash)} ({wishes.layout.describe(clash[0])}): "
            f"exit {one.text!r} (line {one.line}) and deliver {other.text!r} "
            f"(line {other.line}){also if more else ''}; change one of these wishes",
            clash,
            lines,
            path=self._path,
            line=one.line,
            field=".".join(where),
        )
