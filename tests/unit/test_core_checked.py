"""The checked build: what is out of range ends the process, with file, line and function."""

import faulthandler
import os
import signal
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trapgate.compiler import raw
from trapgate.compiler.dialect import Cells, Memory, Rows
from trapgate.compiler.library import CHECKED
from trapgate.compiler.program import alone
from trapgate.compiler.target import IS_LINUX_X86_64

pytestmark = pytest.mark.skipif(not IS_LINUX_X86_64, reason="elsewhere it ends without a word")


def load(v: Cells, n: int) -> int:
    return int(v[n])


def store(v: Cells, n: int) -> int:
    v[n] = 1
    return 0


def change(v: Cells, n: int) -> int:
    v[n] += 1
    return 0


def rest(v: Cells, n: int) -> int:
    return len(v[n:])


def row(rows: Rows, n: int) -> int:
    return int(rows[n][1])


def in_row(rows: Rows, n: int) -> int:
    return int(rows[1][n])


def shift(n: int) -> int:
    return 1 << n


def modulo(n: int) -> int:
    return 5 % n


def divide(n: int) -> int:
    return 5 // n


def half_word(mem: Memory, n: int) -> int:
    return raw.peek_in(mem, n, 32)


def put_half_word(mem: Memory, n: int) -> int:
    raw.poke_in(mem, n, 32, 1)
    return 0


V = np.arange(3, dtype=np.int64)
ROWS = np.arange(6, dtype=np.int64).reshape(3, 2)


def _ended(call: Callable[[], object]) -> tuple[int, str]:
    """The status of a process that does nothing but this, and its standard error."""
    out, into = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads may be there
        child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()
            os.dup2(into, 2)
            call()
            os._exit(0)
        finally:
            os._exit(1)
    os.close(into)
    with os.fdopen(out) as errors:
        said = errors.read()
    return os.waitpid(child, 0)[1], said


@pytest.mark.parametrize(
    ("function", "arguments", "what"),
    [
        (load, (V, 3), "index out of range: v[n]"),
        (load, (V, -1), "index out of range: v[n]"),
        (store, (V, 1 << 62), "index out of range: v[n]"),
        (change, (V, 3), "index out of range: v[n]"),
        (rest, (V, 4), "index out of range: v[n:]"),
        (row, (ROWS, 3), "index out of range: rows[n]"),
        (in_row, (ROWS, 2), "index out of range: rows[1][n]"),
        (half_word, (V, -1), "index out of range: raw.peek_in(mem, n, 32)"),
        (half_word, (V, 21), "index out of range: raw.peek_in(mem, n, 32)"),
        (put_half_word, (V, 24), "index out of range: raw.poke_in(mem, n, 32, 1)"),
        (shift, (64,), "shift count out of range: 1 << n"),
        (shift, (-1,), "shift count out of range: 1 << n"),
        (modulo, (0,), "modulo 0: 5 % n"),
        (divide, (0,), "modulo 0: 5 // n"),
    ],
)
def test_out_of_range(
    monkeypatch: pytest.MonkeyPatch, function: Any, arguments: tuple[Any, ...], what: str
) -> None:
    monkeypatch.setenv(CHECKED, "1")
    machine_code: Any = alone(function)
    assert machine_code.built_in
    status, said = _ended(lambda: machine_code(*arguments))
    assert os.WIFSIGNALED(status), "it went on"
    assert os.WTERMSIG(status) in (signal.SIGILL, signal.SIGTRAP)
    place = f"{__file__}:{function.__code__.co_firstlineno + 1}"
    words = f"trapgate: checked build: {place}: {function.__name__}: {what}\n"
    assert said == words


@pytest.mark.parametrize(
    ("function", "arguments", "result"),
    [
        (load, (V, 2), 2),
        (store, (V.copy(), 0), 0),
        (half_word, (V, 16), 2),
        (half_word, (V, 20), 0),
        (put_half_word, (V.copy(), 20), 0),
        (change, (V.copy(), 2), 0),
        (rest, (V, 3), 0),
        (row, (ROWS, 2), 5),
        (in_row, (ROWS, 1), 3),
        (shift, (63,), -(1 << 63)),
        (modulo, (-3,), -1),
    ],
)
def test_in_range(
    monkeypatch: pytest.MonkeyPatch, function: Any, arguments: tuple[Any, ...], result: int
) -> None:
    monkeypatch.setenv(CHECKED, "1")
    machine_code = alone(function)
    assert _ended(lambda: machine_code(*arguments)) == (0, "")
    assert machine_code(*arguments) == result
