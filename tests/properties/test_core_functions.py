"""Every core function, interpreted and compiled, on random cells: results and cells agree."""

import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import trapgate.engine.program  # noqa: F401 -- marks all core functions
from tests.properties.core_interpreter import (
    Array,
    UndefinedError,
    Word,
    begin,
    counted,
    wrapped,
)
from trapgate.compiler.dialect import CORE, Cells, Memory, Rows
from trapgate.compiler.program import alone_together
from trapgate.events.journal import HEAD_CAPACITY, HEAD_LENGTH, ROW_WIDTH
from trapgate.instructions import polled_ports
from trapgate.instructions.x87 import transcendental, wide_numbers
from trapgate.paging.memory import watch_length
from trapgate.sdm import cells, registers, vmx
from trapgate.vmcs.vmcs import Vmcs

_ROWS = 8
_MEMORY = 512 * 24
"""Cells of memory: 24 pages."""
_LENGTHS = {
    "v": len(cells.ENCODINGS),
    "n": len(cells.ENCODINGS),
    "host": len(cells.ENCODINGS),
    "source": len(cells.ENCODINGS),
    "target": len(cells.ENCODINGS),
    "r": len(registers.NAMES),
    "x": vmx.LENGTH,
    "mem": _MEMORY,
    "head": HEAD_LENGTH,
    "p": polled_ports.LENGTH,
    "watch": watch_length(_MEMORY // 512),
}
_WIDE = (
    *("number", "other", "divisor", "into", "coefficients", "argument", "angle"),
    *("copied", "work", "w"),
)
"""Numbers of `instructions.x87.wide_numbers`."""
_LENGTHS |= dict.fromkeys(_WIDE, transcendental.WORK)
_COMPARED, _TRIALS = 40, 400
"""How many inputs are compared, and among how many those are looked for that mean something."""


def _parameters(function: Any) -> dict[str, Any]:
    return {name: kind for name, kind in function.__annotations__.items() if name != "return"}


_FUNCTIONS = {
    name: function
    for name, function in sorted(CORE.items())
    if function.__module__.startswith("trapgate.")
    and all(kind in (int, bool, Cells, Memory, Rows) for kind in _parameters(function).values())
}
_RESETS = [Vmcs(), Vmcs()]
_RESETS[1].set_flat_segments(64)


def _number(chance: random.Random) -> int:
    """A number as they occur: small, a bit, a page's address, an edge, or anything."""
    match chance.randrange(8):
        case 0:
            return 0
        case 1:
            return chance.randrange(32)
        case 2:
            return wrapped(1 << chance.randrange(64))
        case 3:
            return chance.randrange(_MEMORY // 512) << 12 | chance.choice((0, 7, 0x67, 0x80, 0x87))
        case 4:
            return wrapped(chance.choice((-1, 1 << 63, 1 << 31, 0xFFFF_FFFF, 1 << 47, -(1 << 47))))
        case 5:
            return chance.randrange(_MEMORY * 8)
        case 6:
            return chance.getrandbits(32)
        case _:
            return wrapped(chance.getrandbits(64))


def _cells(name: str, chance: random.Random) -> list[int]:
    length = _LENGTHS[name]
    if name in _WIDE:
        limbs = [chance.getrandbits(wide_numbers.BITS) for _ in range(length)]
        limbs[:: wide_numbers.LIMBS] = [1] * (length // wide_numbers.LIMBS)
        return limbs
    if name in ("v", "n", "host", "source", "target") and chance.random() < 0.8:
        found = [int(cell) for cell in chance.choice(_RESETS).cells]
        changes = chance.choice((0, 3, 30))
    else:
        found = [0] * length
        changes = chance.choice((0, length // 20 + 3, length))
    for _ in range(min(changes, 2000)):
        found[chance.randrange(length)] = _number(chance)
    if name == "head":
        found[HEAD_CAPACITY] = _ROWS
    if name == "mem":
        # Entries of page tables here and there, so that walks get somewhere.
        for _ in range(chance.choice((0, 600))):
            found[chance.randrange(length)] = chance.randrange(length // 512) << 12 | 7
    return found


def _given(name: str, kind: Any, chance: random.Random) -> Any:
    if kind is Rows:
        return [[_number(chance) for _ in range(ROW_WIDTH)] for _ in range(_ROWS)]
    if kind in (Cells, Memory):
        return _cells(name, chance)
    if name == "opcode" and chance.random() < 0.5:
        return chance.randrange(256)
    return chance.random() < 0.5 if kind is bool else _number(chance)


def _for_python(given: Any) -> Any:
    match given:
        case [[*_], *_]:
            return Array([Array(list(row)) for row in given])
        case [*_]:
            return Array(list(given))
        case bool():
            return given
        case _:
            return Word(given)


def _for_machine(given: Any) -> Any:
    return np.array(given, np.int64) if isinstance(given, list) else given


def _plain(found: Any) -> Any:
    """Results and cells in a form that can be compared: integers that wrap."""
    match found:
        case Array():
            return [one.cells if isinstance(one, Array) else one for one in found.cells]
        case np.ndarray():
            return found.tolist()
        case tuple():
            return [_plain(part) for part in found]
        case None:
            return None
        case _:
            return wrapped(found)


def test_nothing_is_left_out() -> None:
    anything = {name for name, function in CORE.items() if Any in _parameters(function).values()}
    ours = {name for name, function in CORE.items() if function.__module__.startswith("trapgate.")}
    assert set(_FUNCTIONS) == ours - anything
    assert len(_FUNCTIONS) > 200
    for function in _FUNCTIONS.values():
        for name, kind in _parameters(function).items():
            assert kind not in (Cells, Memory) or name in _LENGTHS, (
                f"{function}: {name} has no length"
            )


@pytest.fixture(scope="module")
def compiled() -> Iterator[dict[str, Callable[..., Any]]]:
    """Machine code of all; from then on Python's loops and constant arrays are ours, too."""
    made = alone_together(_FUNCTIONS.values())
    assert callable(made[0].built_in)
    with pytest.MonkeyPatch.context() as patch:
        for module in {function.__module__ for function in _FUNCTIONS.values()}:
            scope = vars(sys.modules[module])
            patch.setitem(scope, "range", counted)
            for name, constant in list(scope.items()):
                if isinstance(constant, np.ndarray):
                    patch.setitem(scope, name, Array(constant.tolist()))
        yield dict(zip(_FUNCTIONS, made, strict=True))


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_interpreted_and_compiled(name: str, compiled: dict[str, Callable[..., Any]]) -> None:
    function = _FUNCTIONS[name]
    chance = random.Random(name)
    compared = 0
    for _ in range(_TRIALS):
        given = [_given(*parameter, chance) for parameter in _parameters(function).items()]
        begin()
        expected_in = [_for_python(one) for one in given]
        try:
            expected = function(*expected_in)
        except UndefinedError:
            continue
        found_in = [_for_machine(one) for one in given]
        found = compiled[name](*found_in)
        assert _plain(found) == _plain(expected)
        for one, other in zip(found_in, expected_in, strict=True):
            assert _plain(one) == _plain(other)
        compared += 1
        if compared == _COMPARED:
            return
    assert compared > 0, "no input means anything"
