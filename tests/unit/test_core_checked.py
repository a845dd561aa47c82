"""The checked build: what is out of range ends the process, with file, line and function."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trapgate.compiler.library import CHECKED
from trapgate.compiler.target import IS_LINUX_X86_64

pytestmark = pytest.mark.skipif(not IS_LINUX_X86_64, reason="elsewhere it ends without a word")

_PROGRAM = """
import numpy as np
from trapgate.compiler.dialect import Cells, Rows
from trapgate.compiler.program import alone


def load(v: Cells, n: int) -> int:
    return v[n]


def store(v: Cells, n: int) -> int:
    v[n] = 1
    return 0


def change(v: Cells, n: int) -> int:
    v[n] += 1
    return 0


def rest(v: Cells, n: int) -> int:
    return len(v[n:])


def row(rows: Rows, n: int) -> int:
    return rows[n][1]


def shift(n: int) -> int:
    return 1 << n


def modulo(n: int) -> int:
    return 5 % n


def divide(n: int) -> int:
    return 5 // n


v = np.arange(3, dtype=np.int64)
rows = np.arange(6, dtype=np.int64).reshape(3, 2)
print({call})
"""
_LINES = {
    name: number
    for number, line in enumerate(_PROGRAM.splitlines(), 1)
    if line.startswith("def ")
    for name in [line[4 : line.index("(")]]
}


def _run(tmp_path: Path, call: str) -> tuple[int, str, str]:
    file = tmp_path / "checked_program.py"
    file.write_text(_PROGRAM.replace("{call}", call))
    done = subprocess.run(
        [sys.executable, str(file)],
        env={**os.environ, CHECKED: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "call", "what"),
    [
        ("load", "alone(load)(v, 3)", "index out of range: v[n]"),
        ("load", "alone(load)(v, -1)", "index out of range: v[n]"),
        ("store", "alone(store)(v, 1 << 62)", "index out of range: v[n]"),
        ("change", "alone(change)(v, 3)", "index out of range: v[n]"),
        ("rest", "alone(rest)(v, 4)", "index out of range: v[n:]"),
        ("row", "alone(row)(rows, 3)", "index out of range: rows[n]"),
        ("shift", "alone(shift)(64)", "shift count out of range: 1 << n"),
        ("shift", "alone(shift)(-1)", "shift count out of range: 1 << n"),
        ("modulo", "alone(modulo)(0)", "modulo 0: 5 % n"),
        ("divide", "alone(divide)(0)", "modulo 0: 5 // n"),
    ],
)
def test_out_of_range(tmp_path: Path, name: str, call: str, what: str) -> None:
    status, _, errors = _run(tmp_path, call)
    assert status < 0, "it went on"
    place = f"{tmp_path / 'checked_program.py'}:{_LINES[name] + 1}"
    assert errors.splitlines()[0] == f"trapgate: checked build: {place}: {name}: {what}"


def test_in_range(tmp_path: Path) -> None:
    call = (
        "alone(load)(v, 2), alone(store)(v, 0), alone(change)(v, 2), alone(rest)(v, 3), "
        "alone(row)(rows, 2), alone(shift)(63), alone(modulo)(-3)"
    )
    status, out, errors = _run(tmp_path, call)
    assert (status, errors) == (0, "")
    assert out == "2 0 0 0 5 -9223372036854775808 -1\n"
