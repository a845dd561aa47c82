"""What LLVM is given: which calls and loops are left, and how values are passed."""

import re
from collections.abc import Callable
from types import FunctionType

import pytest

from trapgate.compiler import raw
from trapgate.compiler.dialect import Cells
from trapgate.compiler.kinds import INT64
from trapgate.compiler.module import Module
from trapgate.compiler.routine import routine


def _once(n: int) -> int:
    return n + 1


def _small(n: int) -> int:
    return n - 1


def _large(n: int) -> int:
    m = n * 3 ^ n
    m = m * 5 ^ m
    m = m * 7 ^ m
    m = m * 9 ^ m
    return m + n


def _caller(n: int) -> int:
    return _once(_small(_small(_large(_large(n)))))


def _translated(*functions: Callable[..., int], caller: Callable[[int], int]) -> str:
    module = Module(lambda function: function in functions)
    assert isinstance(caller, FunctionType)
    module.for_c(routine(caller), "caller", INT64, [INT64])
    return module.text()


def test_what_is_called_from_one_place_or_is_small_is_to_be_inlined() -> None:
    text = _translated(_once, _small, _large, caller=_caller)
    heads = dict(re.findall(r'^define .*@".*?(\w+)"\(.*\) (#\d) \{', text, re.MULTILINE))
    assert heads["_once"] == heads["_small"] == heads["_caller"] == "#3"
    assert heads["_large"] == "#0"


def _short_loop(n: int) -> int:
    for k in range(1, 33):
        n ^= n << k
    return n


def _empty_loop(n: int) -> int:
    for _ in range(3, 3):
        n += 1
    return n


def _many_rounds(n: int) -> int:
    for _ in range(33):
        n += 1
    return n


def _long_body(n: int) -> int:
    for k in range(30):
        n = (n << 1 ^ k) + (n >> 3 ^ k) * (n << 5 ^ k) - (n >> 7 ^ k)
    return n


@pytest.mark.parametrize(
    ("function", "is_loop", "shifts"),
    [
        (_short_loop, False, 32),
        (_empty_loop, True, 0),
        (_many_rounds, True, 0),
        (_long_body, True, 2),
    ],
)
def test_short_loops_are_written_out(
    function: Callable[[int], int], is_loop: bool, shifts: int
) -> None:
    text = _translated(caller=function)
    assert ("icmp slt" in text) == is_loop
    assert text.count("shl i64") == shifts


def _array_of(v: Cells) -> int:
    return int(v[0])


def _passes_an_array_on(n: int) -> int:
    v = raw.cells(n, 7)
    return _array_of(v) + _array_of(v)


def test_an_array_is_two_operands() -> None:
    text = _translated(_array_of, caller=_passes_an_array_on)
    assert re.search(r'@"[\w.]+_array_of"\(ptr %a0, i64 %a1\)', text)
    assert "insertvalue" not in text
