"""The dialect of the core: compiled, it means what Python means by it, modulo 2**64."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trapgate.compiler import program, raw
from trapgate.compiler.dialect import Cells, Memory, Rows
from trapgate.compiler.program import alone, alone_together

_NUMBERS = np.arange(7, dtype=np.int64) * 3
_MASK = (1 << 40) - 1
_MOST = (1 << 63) - 1


def arithmetic(a: int, b: int) -> int:
    return (a + b) * (a - b) ^ (a & ~b | b & _MASK)


def shifts(a: int, b: int) -> int:
    return (a << (b & 63)) ^ (a >> (b & 63)) ^ (a << 63) ^ (a >> 63)


def comparisons(a: int, b: int) -> int:
    found = 0
    for n in range(6):
        held = (
            (n == 0 and a < b)
            or (n == 1 and a <= b)
            or (n == 2 and a == b)
            or (n == 3 and not a != b)  # noqa: SIM202
            or (n == 4 and a > b)
            or (n == 5 and -5 <= a < b)
        )
        if held:
            found |= 1 << n
    return found


def values_of_and_and_or(a: int, b: int) -> int:
    one = a & 3 and b & 5
    other = a & 3 or b & 5 or a > b
    return one * 1000 + other * 10 + (a > 0 or b > 0) + (7 if a & 1 else b > 3)


def remainder(a: int, b: int) -> int:
    return a % b if b != 0 else 0


def quotient(a: int, b: int) -> int:
    return a // b if b != 0 else 0


def loops(a: int, b: int) -> int:
    total = 0
    n = 0
    for n in range(a & 7, b & 15):
        if n == 3:
            continue
        total += n
        if total > 20:
            break
    while n < 20:
        n += 1
        if n & 1:
            continue
        if total > 1000:
            break
        total += total ^ n
    for number in (a, b, total):
        if number == 5:
            continue
        if number == 7:
            break
        total = total * 3 + number
    return total + n


def members(a: int, b: int) -> int:
    return (a in (1, 2, b)) * 2 + (a not in (3, b)) + min(a, b, 9) - max(a, b)


def several(a: int, b: int) -> tuple[int, bool, int]:
    return a, a == b, True


def several_of_them(a: int, b: int) -> int:
    first, same, _ = several(a, b) if a > 0 else (0, b == 0, 0)
    first = second = first + several(b, a)[0]
    return first + (second if same else 1) + int(_NUMBERS[a & 3]) - len(_NUMBERS)


@pytest.mark.parametrize(
    "function",
    [
        arithmetic,
        shifts,
        comparisons,
        values_of_and_and_or,
        remainder,
        quotient,
        loops,
        members,
        several_of_them,
    ],
)
def test_numbers(function: Any) -> None:
    machine_code = alone(function, several)
    small = st.integers(-20, 20)
    any_number = st.one_of(small, st.integers(-(1 << 63), (1 << 63) - 1))

    @settings(max_examples=300)
    @given(any_number, any_number)
    def same(a: int, b: int) -> None:
        expected = (int(function(a, b)) + (1 << 63)) % (1 << 64) - (1 << 63)
        assert machine_code(a, b) == expected

    same()


def test_results_keep_their_types() -> None:
    assert [type(part) for part in alone(several)(3, 4)] == [int, bool, int]


def change(v: Cells, rows: Rows, n: int) -> bool:
    v[n] += 2
    v[0] ^= v[n] << 1
    rest = v[n:]
    rest[1] = len(rest)
    row = rows[n]
    row[1] = rest[0]
    rows[0][2] |= 8
    return bool(v[n] == 2)


def test_arrays() -> None:
    def arrays() -> tuple[Any, Any]:
        return np.arange(5, dtype=np.int64), np.arange(12, dtype=np.int64).reshape(4, 3)

    expected, found = arrays(), arrays()
    assert alone(change)(*found, 2) == change(*expected, 2)
    assert all(np.array_equal(*pair) for pair in zip(expected, found, strict=True))


def address(v: Cells, n: int) -> int:
    return v[n:].ctypes.data


def test_where_an_array_is() -> None:
    v = np.arange(5, dtype=np.int64)
    assert alone(address)(v, 2) == address(v, 2) == v.ctypes.data + 16


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((np.zeros(3, np.int64), np.zeros((3, 3), np.int64)), TypeError),
        ((np.zeros(3, np.int32), np.zeros((3, 3), np.int64), 0), TypeError),
        ((np.zeros(6, np.int64)[::2], np.zeros((3, 3), np.int64), 0), TypeError),
        ((np.zeros(3, np.int64), np.zeros(3, np.int64), 0), TypeError),
        (([0, 0, 0], np.zeros((3, 3), np.int64), 0), TypeError),
        ((np.zeros(3, np.int64), np.zeros((3, 3), np.int64), 1.0), TypeError),
        ((np.zeros(3, np.int64), np.zeros((3, 3), np.int64), 1 << 63), OverflowError),
    ],
)
def test_arguments_of_other_types(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        alone(change)(*arguments)


def test_minus_one_and_numbers_of_numpy() -> None:
    assert alone(arithmetic)(-1, np.int64(-1)) == arithmetic(-1, -1)


def folded(a: int) -> int:
    return a + (_MOST * 4 + 9) ^ (_MOST + 1)


def test_constants_wrap_too() -> None:
    assert alone(folded)(0) == 5 ^ -(1 << 63)


def either(a: Any, b: Any) -> Any:
    return a | b


def test_a_function_of_any_type_is_compiled_for_each_mix() -> None:
    machine_code = alone(either)
    assert [machine_code(*pair) for pair in ((5, 2), (False, True), (False, 2))] == [7, True, 2]
    assert type(machine_code(True, False)) is bool
    assert type(machine_code(True, 0)) is int


def test_functions_that_are_made_at_once() -> None:
    made = alone_together([arithmetic, loops])  # type: ignore[list-item]
    assert [one(3, 4) for one in made] == [arithmetic(3, 4), loops(3, 4)]


def doubles(a: int, b: int) -> tuple[int, int, int, int]:
    return (
        raw.add_doubles(a, b),
        raw.subtract_doubles(a, b),
        raw.multiply_doubles(a, b),
        raw.divide_doubles(a, b),
    )


def singles(a: int, b: int) -> tuple[int, int, int, int]:
    return (
        raw.add_singles(a, b),
        raw.subtract_singles(a, b),
        raw.multiply_singles(a, b),
        raw.divide_singles(a, b),
    )


@pytest.mark.parametrize(("function", "kind"), [(doubles, np.float64), (singles, np.float32)])
def test_floating_point_numbers(function: Any, kind: type[np.floating[Any]]) -> None:
    machine_code = alone(function)
    integers = np.dtype(f"i{np.dtype(kind).itemsize}")
    for first, second in ((1.0, 3.0), (0.1, -7e30), (1e-30, 1e-9), (-2.5, 0.3)):
        a, b = kind(first), kind(second)
        found = machine_code(int(a.view(integers)), int(b.view(integers)))
        mask = (1 << 8 * integers.itemsize) - 1
        expected = [int(one.view(integers)) & mask for one in (a + b, a - b, a * b, a / b)]
        assert [one & ((1 << 64) - 1) for one in found] == expected


def bits_in(mem: Memory, n: int) -> tuple[int, int, int, int]:
    return (
        raw.peek_in(mem, n, 8),
        raw.peek_in(mem, n, 16),
        raw.peek_in(mem, n, 32),
        raw.peek_in(mem, n, 64),
    )


def put_bits_in(mem: Memory, n: int, value: int) -> int:
    raw.poke_in(mem, n, 8, value)
    raw.poke_in(mem, n + 1, 16, value)
    raw.poke_in(mem, n + 3, 32, value)
    return 0


def test_bits_of_memory_at_any_place() -> None:
    data = bytes(range(0x80, 0x90)) * 2
    compiled, put = alone(bits_in), alone(put_bits_in)
    for n in (0, 3, 8, 21):
        memory = np.frombuffer(data, np.int64).copy()
        sizes = ((1, False), (2, False), (4, False), (8, True))
        wanted = [
            int.from_bytes(data[n : n + size], "little", signed=signed) for size, signed in sizes
        ]
        assert list(compiled(memory, n)) == wanted
        assert put(memory, n, 0x11223344_55667788) == 0
        written = bytes.fromhex("88 8877 88776655")
        assert memory.tobytes() == data[:n] + written + data[n + 7 :]


def test_whether_the_core_is_kept() -> None:
    assert program.is_kept() is program.LIBRARY.is_kept
