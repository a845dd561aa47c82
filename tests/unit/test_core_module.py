"""What LLVM is given: which calls and loops are left, and how values are passed."""

import re
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import pytest

from trapgate.compiler import raw
from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.kinds import INT, INT64, integer
from trapgate.compiler.module import Module
from trapgate.compiler.routine import routine
from trapgate.compiler.text import Code


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


def _eight(n: int) -> int:
    return n * 3 * 5 * 7 * 9 * 11 * 13 * 15


def _nine(n: int) -> int:
    return n * 3 * 5 * 7 * 9 * 11 * 13 * 15 * 17


def _once_and_large(n: int) -> int:
    return n * 3 * 5 * 7 * 9 * 11 * 13 * 15 * 17


@inlined
def _inlined(n: int) -> int:
    return n * 3 * 5 * 7 * 9 * 11 * 13 * 15 * 17


def _calls_marked_ones(n: int) -> int:
    return _eight(_eight(n)) + _nine(_nine(n)) + _inlined(_inlined(_once_and_large(n)))


def _translated(*functions: Callable[..., Any], caller: Callable[[int], int], **how: Any) -> str:
    module = Module(lambda function: function in functions, **how)
    assert isinstance(caller, FunctionType)
    module.for_c(routine(caller), "caller", INT64, [INT64])
    return module.text()


def _attributes(text: str) -> dict[str, str]:
    """The attributes of each function."""
    return dict(re.findall(r'^define .*@".*?(\w+)"\(.*\) (#\d) \{', text, re.MULTILINE))


def test_what_is_called_from_one_place_or_is_small_is_to_be_inlined() -> None:
    heads = _attributes(_translated(_once, _small, _large, caller=_caller))
    assert heads["_once"] == heads["_small"] == heads["_caller"] == "#3"
    assert heads["_large"] == "#0"


def test_marks_and_the_size_decide_what_is_inlined() -> None:
    called = _eight, _nine, _once_and_large, _inlined
    text = _translated(*called, caller=_calls_marked_ones)
    heads = _attributes(text)
    assert [heads[one.__name__] for one in called] == ["#3", "#0", "#3", "#3"]


def test_what_is_not_hot_is_cold_and_stays_out_of_what_is() -> None:
    called = _eight, _nine, _once_and_large, _inlined
    hot = [f"{__name__}._calls_marked_ones", f"{__name__}._nine"]
    heads = _attributes(_translated(*called, caller=_calls_marked_ones, hot=hot))
    assert [heads[one.__name__] for one in called] == ["#3", "#0", "#2", "#3"]
    assert heads["_calls_marked_ones"] == "#3"
    assert heads["caller"] == "#0"


def test_what_is_hot_stays_out_of_what_is_not() -> None:
    called = _eight, _nine, _once_and_large, _inlined
    hot = [f"{__name__}._once_and_large"]
    heads = _attributes(_translated(*called, caller=_calls_marked_ones, hot=hot))
    assert [heads[one.__name__] for one in called] == ["#3", "#2", "#0", "#3"]
    assert heads["_calls_marked_ones"] == "#3"
    assert heads["caller"] == "#2"


def test_each_function_stands_alone_for_a_profile() -> None:
    called = _eight, _nine, _once_and_large, _inlined
    heads = _attributes(_translated(*called, caller=_calls_marked_ones, each_alone=True))
    assert set(heads.values()) == {"#0"}


def test_the_size_leaves_out_variables_and_plain_jumps() -> None:
    code = Code()
    slot = code.slot(INT)
    code.store(integer(1), slot)
    value = code.load(slot)
    onward = code.name()
    code.label(onward)
    more = code.let(f"add i64 {value.text}, 2")
    code.end(f"ret i64 {more.text}")
    assert len(code.lines) == 6
    assert code.size == 2


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


def _one_round(n: int) -> int:
    for k in range(3, 4):
        n <<= k
    return n


def _as_long_as_may_be(n: int) -> int:
    for _ in range(24):
        n <<= 1
        n <<= 1
        n <<= 1
        n <<= 1
        n <<= 1
    return n


def _one_round_too_long(n: int) -> int:
    for _ in range(25):
        n <<= 1
        n <<= 1
        n <<= 1
        n <<= 1
        n <<= 1
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
        (_one_round, False, 1),
        (_as_long_as_may_be, False, 120),
        (_one_round_too_long, True, 5),
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


def _two_ways_out(n: int) -> tuple[int, bool]:
    if n > 3:
        return n, False
    return 3, n == 0


def _first_of_two(n: int) -> int:
    return _two_ways_out(n)[0]


def test_a_result_of_several_values_is_put_together_in_one_place() -> None:
    text = _translated(_two_ways_out, caller=_first_of_two)
    assert text.count("ret {i64, i1}") == 1
    assert text.count("insertvalue") == 2


def _conditions(n: int) -> int:
    if (n > 3 and not (n == 5 or n & 8)) or 0 < n < 3:
        return 1
    return 0


def test_conditions_branch_as_soon_as_they_are_decided() -> None:
    text = _translated(caller=_conditions)
    assert "alloca" not in text
    assert text.count("icmp") == text.count("br i1") == 5


def _uses_numbers(n: int) -> int:
    return int(_NUMBERS[n & 1]) + len(_NUMBERS)


_NUMBERS = np.arange(2, dtype=np.int64)


def test_a_constant_array_stands_once() -> None:
    text = _translated(caller=_uses_numbers)
    assert text.count("unnamed_addr constant") == 1
