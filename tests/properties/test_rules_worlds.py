"""One rule, many interpreters: every scheme agrees with plain Python in all of them.

`reference` imports nothing from the code under test.
"""

import operator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trapgate.decision.rules import SCHEMES

COMPARISONS = {
    "equal": operator.eq,
    "not-equal": operator.ne,
    "less": operator.lt,
    "less-or-equal": operator.le,
    "greater": operator.gt,
    "greater-or-equal": operator.ge,
}


def reference(name: str, control: bool, has_code: bool, code: int, *, fields: list[int]) -> bool:
    if not has_code:
        return control
    if name in COMPARISONS:
        return bool(COMPARISONS[name](code, fields[0]))
    if name == "member":
        return any(fields[0] >> n & 1 and code == fields[1 + n] for n in range(8))
    if name == "figure-3":
        return control if code & fields[0] == fields[1] else not control
    if name == "exchanged":
        return control if code & fields[0] != fields[1] else not control
    if name == "no-control":
        return code & fields[0] != fields[1]
    if name == "match-exits":
        return code & fields[0] == fields[1]
    if name == "figure-4":
        return code & fields[0] == fields[1] or code & fields[2] == fields[3]
    satisfied = bool(code & fields[0]) or code & fields[1] == fields[2]
    if name == "any-or-match":
        return satisfied
    assert name == "figure-5"
    return control if satisfied else not control


# Small numbers meet often, large ones find signs and overflows.
words = st.one_of(
    st.integers(0, 31),
    st.integers(0, 0xFFFFFFFF),
    st.sampled_from([0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF]),
)
codes = st.lists(st.tuples(st.booleans(), st.booleans(), words), min_size=1, max_size=12)


def worlds(name: str) -> Any:
    count = len(SCHEMES[name].fields)
    return st.tuples(codes, st.lists(words, min_size=count, max_size=count))


every_scheme = pytest.mark.parametrize("name", list(SCHEMES))


@every_scheme
@settings(max_examples=150)
@given(data=st.data())
def test_int_and_numpy(name: str, data: st.DataObject) -> None:
    rows, fields = data.draw(worlds(name))
    rule = SCHEMES[name].function
    expected = [reference(name, *row, fields=fields) for row in rows]
    assert [bool(rule(*row, *fields)) for row in rows] == expected
    assert all(type(rule(*row, *fields)) is bool for row in rows)
    control, has_code, code = (np.array(column) for column in zip(*rows, strict=True))
    code = np.where(has_code, code, -1).astype(np.int64)
    got = rule(control, has_code, code, *fields)
    assert got.dtype == np.bool_
    assert got.tolist() == expected


@every_scheme
@settings(max_examples=30)
@given(data=st.data())
def test_polars(name: str, data: st.DataObject) -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    rows, fields = data.draw(worlds(name))
    for kind in (polars.Int64, polars.UInt32):
        frame = polars.DataFrame(
            {
                "control": [row[0] for row in rows],
                "has_code": [row[1] for row in rows],
                # A fault without an error code has null there, as a trace does.
                "code": [row[2] if row[1] else None for row in rows],
            },
            schema={"control": polars.Boolean, "has_code": polars.Boolean, "code": kind},
        )
        column = polars.col
        rule = SCHEMES[name].function(
            column("control"), column("has_code"), column("code"), *fields
        )
        got = frame.select(exits=rule)["exits"].to_list()
        assert got == [reference(name, *row, fields=fields) for row in rows], kind


@every_scheme
@settings(max_examples=20)
@given(data=st.data())
def test_z3_values(name: str, data: st.DataObject) -> None:
    z3 = pytest.importorskip("z3", reason="z3-solver is not installed")
    rows, fields = data.draw(worlds(name))
    for control, has_code, code in rows:
        term = SCHEMES[name].function(
            z3.BoolVal(control),
            z3.BoolVal(has_code),
            z3.BitVecVal(code, 32),
            *(z3.BitVecVal(field, 32) for field in fields),
        )
        value = z3.simplify(term)
        assert z3.is_true(value) or z3.is_false(value)
        assert z3.is_true(value) == reference(name, control, has_code, code, fields=fields)


def z3_reference(z3: Any, name: str, control: Any, code: Any, fields: list[Any]) -> Any:
    order = {
        "equal": lambda a, b: a == b,
        "not-equal": lambda a, b: a != b,
        "less": z3.ULT,
        "less-or-equal": z3.ULE,
        "greater": z3.UGT,
        "greater-or-equal": z3.UGE,
    }
    if name in order:
        return order[name](code, fields[0])
    if name == "member":
        used = [z3.Extract(n, n, fields[0]) == 1 for n in range(8)]
        return z3.Or([z3.And(used[n], code == fields[1 + n]) for n in range(8)])
    first = (code & fields[0]) == fields[1]
    if name == "figure-3":
        return z3.If(first, control, z3.Not(control))
    if name == "exchanged":
        return z3.If(first, z3.Not(control), control)
    if name == "no-control":
        return z3.Not(first)
    if name == "match-exits":
        return first
    if name == "figure-4":
        return z3.Or(first, (code & fields[2]) == fields[3])
    satisfied = z3.Or((code & fields[0]) != 0, (code & fields[1]) == fields[2])
    return satisfied if name == "any-or-match" else z3.If(satisfied, control, z3.Not(control))


@every_scheme
def test_z3_proves_each_rule_for_all_values(name: str) -> None:
    z3 = pytest.importorskip("z3", reason="z3-solver is not installed")
    control, has_code = z3.Bools("control has_code")
    code = z3.BitVec("code", 32)
    fields = [z3.BitVec(f"field{n}", 32) for n in range(len(SCHEMES[name].fields))]
    rule = SCHEMES[name].function(control, has_code, code, *fields)
    wanted = z3.If(has_code, z3_reference(z3, name, control, code, fields), control)
    solver = z3.Solver()
    solver.add(rule != wanted)
    assert solver.check() == z3.unsat


@every_scheme
def test_plain_integers_for_fields_work_in_z3(name: str) -> None:
    z3 = pytest.importorskip("z3", reason="z3-solver is not installed")
    code = z3.BitVec("code", 32)
    fields = [5] * len(SCHEMES[name].fields)
    term = SCHEMES[name].function(False, True, code, *fields)
    solver = z3.Solver()
    solver.add(code == 5, term != reference(name, False, True, 5, fields=fields))
    assert solver.check() == z3.unsat


@pytest.fixture(scope="module")
def compiled_rules() -> dict[str, Any]:
    from trapgate.compiler.program import alone

    return {name: alone(scheme.function) for name, scheme in SCHEMES.items()}


@settings(max_examples=60)
@given(data=st.data())
def test_machine_code(compiled_rules: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(SCHEMES)))
    rows, fields = data.draw(worlds(name))
    for row in rows:
        assert compiled_rules[name](*row, *fields) == reference(name, *row, fields=fields)
