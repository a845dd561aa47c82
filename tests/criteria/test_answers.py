"""What define, check, explain, merge and learn answer."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import z3

from trapgate.criteria import (
    CriteriaError,
    Filter,
    InexpressibleError,
    MissingSolverError,
    Party,
    ProofError,
    UndecidedError,
    UnknownSchemeError,
    check,
    compare,
    define,
    explain,
    filter_in,
    learn,
    merge,
    parse_spec,
    scheme_names,
    solvers,
    weights_in,
)
from trapgate.criteria import proof as proofs
from trapgate.criteria.codes import layout_of, plain_layout
from trapgate.criteria.problem import NEVER, Deadline, problem
from trapgate.criteria.proof import Claim, prove, wished
from trapgate.criteria.schemes import FILTER_SCHEMES, best, limits_of
from trapgate.decide import DELIVER, EXIT, decide_fault
from trapgate.sdm.fields import Field
from trapgate.sdm.vectors import VECTORS_WITH_ERROR_CODE
from trapgate.trace import TraceWriter
from trapgate.vmcs import Vmcs

SPEC = """
[PF]
exit = ["write and present and not user", "fetch and user and not present"]
default = "deliver"

[TS]
exit = ["index == 5 and not idt"]
default = "deliver"

[vectors]
BP = "exit"
UD = "deliver"
"""


def vmcs(bitmap: int = 0, mask: int = 0, match: int = 0, **fields: int) -> Vmcs:
    made = Vmcs()
    for name, value in {
        "EXCEPTION_BITMAP": bitmap,
        "PAGE_FAULT_ERROR_CODE_MASK": mask,
        "PAGE_FAULT_ERROR_CODE_MATCH": match,
        **fields,
    }.items():
        made[name] = value
    return made


UNSOUND = {"equal", "membership"}
"""Schemes that cannot make so many codes exit."""


@pytest.mark.parametrize("scheme", [name for name in scheme_names() if name not in UNSOUND])
def test_definitions_do_what_they_say_in_the_processor(scheme: str) -> None:
    spec = parse_spec(SPEC)
    definition = define(spec, scheme)
    loaded = Vmcs.from_toml(definition.toml(), profile=None)
    assert loaded.profile == definition.profile
    for answer in definition.answers:
        wishes = spec.vectors[answer.vector]
        if wishes.layout is None:
            expected = EXIT if wishes.default == "exit" else DELIVER
            assert decide_fault(loaded.cells, answer.vector, 3, -1)[0] == expected
            continue
        codes, goals = wishes.goals()
        needless = set(answer.needless)
        for code, goal in list(zip(codes.tolist(), goals.tolist(), strict=True))[::3]:
            disposition = decide_fault(loaded.cells, answer.vector, 3, code)[0]
            if goal == 1 or code in needless:
                assert disposition == EXIT
            elif goal == 2:
                assert disposition == DELIVER
        assert answer.proof is not None
        assert answer.proof.z3
        assert answer.proof.exhaustive


def test_filters_are_read_as_the_processor_reads_them() -> None:
    random = np.random.default_rng(5)
    for _ in range(60):
        made = Vmcs()
        for field in (
            Field.EXCEPTION_BITMAP,
            Field.PAGE_FAULT_ERROR_CODE_MASK,
            Field.PAGE_FAULT_ERROR_CODE_MATCH,
            Field.SECOND_ERROR_CODE_MASK,
            Field.SECOND_ERROR_CODE_MATCH,
            Field.ANY_BIT_MASK,
            Field.COMPARISON_VALUE,
            Field.VECTOR_13_ERROR_CODE_MASK,
            Field.VECTOR_13_ERROR_CODE_MATCH,
            Field.MEMBER_0,
            Field.MEMBER_1,
        ):
            made[field] = int(random.integers(0, 32)) | int(random.integers(0, 2)) << 14
        made["TRANSFER_CRITERION"] = int(random.integers(0, 8))
        made["COMPARISON_OPERATOR"] = int(random.integers(0, 6))
        made["TRANSFER_CRITERION_VECTORS"] = int(random.integers(0, 4)) << 13
        made["MEMBERS_USED"] = int(random.integers(0, 4))
        made["ERROR_CODE_FIELD_WIDTH"] = int(random.integers(0, 5))
        made["ERROR_CODE_FIELD_SHIFT"] = int(random.integers(0, 3))
        for vector in VECTORS_WITH_ERROR_CODE:
            rule = filter_in(made, vector)
            codes = np.arange(40)
            expected = [decide_fault(made.cells, vector, 3, int(code))[0] == EXIT for code in codes]
            assert rule.exits(codes).tolist() == expected
            assert [rule.exits_one(int(code)) for code in codes] == expected


def test_forms_of_the_answer() -> None:
    definition = define(parse_spec(SPEC), "vt-x")
    bitmap = definition.fields[Field.EXCEPTION_BITMAP]
    assert f"{{ 0x4004, 0x{bitmap:08X} }}, /* EXCEPTION_BITMAP */" in definition.c()
    assert f"vmwrite 4004H, {bitmap:08X}H  ; EXCEPTION_BITMAP" in definition.vmwrites()
    document = json.loads(json.dumps(definition.document()))
    assert document["fields"][1]["encoding"] == "0x4006"
    assert not document["exact"]
    page_faults = next(one for one in document["vectors"] if one["vector"] == 14)
    assert page_faults["needless_count"] == len(page_faults["needless"]) > 0
    assert page_faults["why_not_exact"]["exits"]
    assert {remedy["scheme"] for remedy in page_faults["exact_with"]} >= {"figure-4"}
    assert define(parse_spec(SPEC.replace("[TS]", "[NP]")), "auto").profile == "seed"


def test_weights_choose_what_needless_exits_cost_least() -> None:
    wishes = parse_spec('bits = "seed"\n[PF]\nexit = [3, 4]\ndefault = "deliver"\n')
    light = define(wishes, weights={14: {0: 1000, 2: 1000, 6: 1000}})
    heavy = define(wishes, weights={14: {1: 1000, 5: 1000, 7: 1000}})
    assert light.answers[0].needless != heavy.answers[0].needless
    assert light.weight == 0 or light.weight < 3000
    for one in (light, heavy):
        exits = one.answers[0].filter.exits(np.arange(16))
        assert exits[[3, 4]].all()


def test_why_not_exact_is_irreducible() -> None:
    spec = parse_spec(SPEC)
    definition = define(spec, "vt-x")
    answer = next(one for one in definition.answers if one.vector == 14)
    assert answer.why_not is not None
    layout = layout_of(14)
    codes = layout.codes()

    def exact(exits: set[int], delivers: set[int]) -> bool:
        must, spare = np.isin(codes, list(exits)), np.isin(codes, list(delivers))
        asked = problem(layout.positions, must, spare)
        (found,) = best([asked], FILTER_SCHEMES["vt-x"])
        return found is not None and found.cost == 0

    exits, delivers = set(answer.why_not.exits), set(answer.why_not.delivers)
    assert not exact(exits, delivers)
    assert all(exact(exits - {code}, delivers) for code in exits)
    assert all(exact(exits, delivers - {code}) for code in delivers)


def test_names_that_are_not_known() -> None:
    spec = parse_spec(SPEC)
    with pytest.raises(UnknownSchemeError, match="figure-8: no such scheme; did you mean figure-"):
        define(spec, "figure-8")
    with pytest.raises(UnknownSchemeError, match="mach: no such operator; did you mean match"):
        define(spec, "auto", operators=["mach"])
    with pytest.raises(CriteriaError, match="at least 1 field"):
        limits_of(0, None)
    with pytest.raises(CriteriaError, match="needs 3 fields and any-bit, invert, match"):
        define(spec, "figure-5", fields=2)


def test_what_a_scheme_cannot_say() -> None:
    spec = parse_spec('[PF]\nexit = [0, 3, 5]\ndefault = "deliver"')
    with pytest.raises(InexpressibleError) as caught:
        define(spec, "equal")
    assert len(caught.value.core) == 2
    assert "cannot make #PF 0x" in str(caught.value)
    assert "(not-present page, read, supervisor)" in str(caught.value)
    with pytest.raises(InexpressibleError, match="0x0") as caught:
        define(spec, "greater")
    assert caught.value.core == (0,)
    many = parse_spec('[PF]\nexit = ["reserved"]\ndefault = "deliver"')
    with pytest.raises(InexpressibleError) as caught:
        define(many, "membership")
    assert len(caught.value.core) == 9
    with pytest.raises(InexpressibleError, match="no scheme has at most 1 fields"):
        define(spec, "auto", fields=1, operators=["match"])


def test_out_of_time_is_unknown_not_a_guess() -> None:
    deadline = Deadline(0.0)
    with pytest.raises(UndecidedError, match="unknown: no answer within 0 s"):
        deadline.check()
    random = np.random.default_rng(0)
    must = random.random(1 << 16) < 0.1
    asked = problem(range(16), must, ~must)
    for name in ("vt-x", "figure-4", "figure-5"):
        with pytest.raises(UndecidedError, match="unknown"):
            best([asked], FILTER_SCHEMES[name], deadline=Deadline(0.0))


def test_a_solver_that_gives_up_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Solver:
        def add(self, *_: object) -> None: ...
        def set(self, *_: object) -> None: ...
        def check(self) -> object:
            return z3.unknown

        def reason_unknown(self) -> str:
            return "canceled"

    monkeypatch.setattr(z3, "SimpleSolver", Solver)
    spec = parse_spec(SPEC)
    with pytest.raises(UndecidedError, match="unknown: z3 gave up"):
        define(spec)
    with pytest.raises(UndecidedError, match="unknown: no answer within 9 s"):
        check(spec, vmcs(), timeout=9)


def test_without_the_solvers_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(solvers, "import_module", absent)
    with pytest.raises(MissingSolverError, match=r"pip install 'trapgate\[criteria\]'"):
        define(parse_spec(SPEC))


def test_wrong_answers_are_found_out() -> None:
    wishes = parse_spec(SPEC).vectors[14]
    assert wishes.layout is not None
    must, spare = wished(wishes)
    codes, goals = wishes.goals()
    nothing = np.zeros(len(codes), dtype=np.bool_)
    for wrong in (
        Filter("figure-3", False, (0, 0)),
        Filter("figure-3", True, (0, 0)),
        Filter("figure-3", True, (7, 3)),
    ):
        with pytest.raises(ProofError, match="z3 refutes"):
            prove(wrong, Claim(wishes.layout, must, spare, nothing), NEVER)
        with pytest.raises(ProofError, match="the answer fails for"):
            proofs.try_all(wrong, codes, goals, nothing)


def test_members_as_a_diagram() -> None:
    random = np.random.default_rng(1)
    layout = plain_layout(6)
    members = random.random(64) < 0.4
    code = z3.BitVec("code", 32)
    term = proofs.membership(code, members, layout.positions)
    for number in range(64):
        value = z3.simplify(z3.substitute(term, (code, z3.BitVecVal(number, 32))))
        assert z3.is_true(value) == members[number]


def test_check_proves_or_finds_a_counterexample() -> None:
    spec = parse_spec(
        '[PF]\nexit = [\n"write and present"]\ndefault = "deliver"\nBP="exit"\n'.replace(
            'BP="exit"\n', '[vectors]\nBP = "exit"\n'
        )
    )
    good = {one.vector: one for one in check(spec, vmcs(1 << 14 | 8, 3, 3))}
    assert all(one.exact for one in good.values())
    assert good[14].line() == "#PF: holds"
    unsound = {one.vector: one for one in check(spec, vmcs(1 << 14, 7, 3))}
    assert not unsound[3].sound
    assert unsound[14].missed is not None
    assert unsound[14].missed & 7 == 7
    assert unsound[14].wishes == (3,)
    assert "must exit and does not" in unsound[14].line()
    loose = {one.vector: one for one in check(spec, vmcs(1 << 14 | 8, 2, 2))}
    assert loose[14].sound
    assert not loose[14].exact
    assert "should not exit and does" in loose[14].line()


WARNINGS = [
    ((1 << 14, 3, 7), {"match-outside-mask", "constant"}, "never exits"),
    ((0, 3, 3), {"sense-reversed"}, "if not present; or not write"),
    ((1 << 14, 0x100, 0), {"impossible-bits", "constant"}, "always exits"),
    ((1 << 14, 9, 8), {"impossible-match", "constant"}, "never exits"),
    ((1 << 14, 0x12, 0x10), {"idle-mask-bit"}, "if fetch"),
    ((0, 0, 4), {"match-outside-mask", "sense-reversed", "constant"}, "always exits"),
    ((1 << 14 | 1 << 15 | 4, 0, 0), {"idle-bit"}, "always exits"),
    ((1 << 14, 3, 3), set(), "exits (20 of 68 codes) if present and write"),
    ((0, 0, 0), set(), "never exits"),
]


@pytest.mark.parametrize(("fields", "kinds", "summary"), WARNINGS)
def test_explanations_and_warnings(
    fields: tuple[int, int, int], kinds: set[str], summary: str
) -> None:
    (told,) = [one for one in explain(vmcs(*fields)) if one.vector == 14]
    assert {warning.kind for warning in told.warnings} == kinds
    assert summary in told.summary
    rule = Filter("figure-3", bool(fields[0] >> 14 & 1), fields[1:])
    assert len(told.rows()) == 68
    assert all(exits == rule.exits_one(code) for code, exits, _ in told.rows())
    assert json.loads(json.dumps(told.document()))["impossible_codes"] == 512 - 68


def test_explanations_of_other_vectors_and_schemes() -> None:
    told = {one.vector: one.summary for one in explain(vmcs(1 << 3 | 1 << 13))}
    assert told == {3: "#BP: always exits", 13: "#GP: always exits", 14: told[14]}
    two = vmcs(
        0, 3, 3, SECOND_ERROR_CODE_MASK=0x14, SECOND_ERROR_CODE_MATCH=0x14,
        TRANSFER_CRITERION=3, TRANSFER_CRITERION_VECTORS=1 << 14,
    )  # fmt: skip
    (one,) = explain(two)
    assert "present and write" in one.summary
    assert "user and fetch" in one.summary


def test_filters_that_differ_only_on_impossible_codes() -> None:
    named = [("a", vmcs(1 << 14, 0x12, 0x10)), ("b", vmcs(1 << 14, 0x10, 0x10)), ("c", vmcs())]
    (told,) = compare(named)
    assert told.kind == "same-in-effect"
    assert "a and b: the filters of #PF differ on codes that cannot occur" in told.text


def test_merging_two_filters() -> None:
    parties = [Party("l0", vmcs(1 << 14, 3, 3)), Party("l1", vmcs(1 << 14 | 8, 0x15, 0x15))]
    merged = merge(parties)
    layout = layout_of(14)
    codes = layout.codes()
    codes = codes[layout.occurs(codes)]
    rules = [filter_in(party.vmcs, 14) for party in parties]
    exits = Vmcs.from_toml(merged.definition.toml())
    result = filter_in(exits, 14).exits(codes)
    wanted = rules[0].exits(codes) | rules[1].exits(codes)
    assert not (wanted & ~result).any()
    assert exits["EXCEPTION_BITMAP"] >> 3 & 1
    seen = {}
    for share in merged.shares:
        if share.vector == 14:
            seen.update(dict.fromkeys(share.codes, share))
    for code, out in zip(codes.tolist(), result.tolist(), strict=True):
        asked = tuple(
            party.name for party, rule in zip(parties, rules, strict=True) if rule.exits_one(code)
        )
        if out:
            assert seen[code].asked == asked
            reflect = seen[code].reflect
            assert ("nobody asked" in reflect) == (not asked)
            assert all(name in reflect for name in asked)
        else:
            assert code not in seen
    four = merge(parties, "figure-4")
    assert four.definition.exact
    with pytest.raises(CriteriaError, match="at least two"):
        merge(parties[:1])
    with pytest.raises(CriteriaError, match="did you mean seed"):
        merge(parties, bits="sed")
    assert merge(parties, bits="5").definition.answers


ROWS = [
    # vm, vector, code, rip, disposition, injected
    (0, 14, 3, 0x10, 0, 0),  # needed: nothing is injected
    (0, 14, 4, 0x20, 0, 0),  # reflected
    (0, 14, 4, 0x20, 1, 1),
    (1, 14, 6, 0x30, 0, 0),  # reflected: the other VM's row between does not matter
    (0, 14, 0, 0x20, 1, 0),  # delivered directly
    (1, 14, 6, 0x30, 1, 1),
    (0, 3, -1, 0x40, 0, 0),  # needed
    (0, 6, -1, 0x50, 0, 0),  # reflected
    (0, 6, -1, 0x50, 1, 1),
    (0, 14, 7, 0x60, 0, 0),  # needed: another RIP
    (0, 14, 7, 0x61, 1, 1),
]


def traced(path: Path, times: int = 4) -> Path:
    rows = np.zeros((len(ROWS) * times, 20), dtype=np.int64)
    for number, (vm, vector, code, rip, disposition, injected) in enumerate(ROWS * times):
        rows[number, [0, 1, 2, 3, 4]] = number, number, vm, vector, 3
        rows[number, [5, 6, 12, 15]] = code, rip, disposition, injected
    with TraceWriter(path) as writer:
        writer.append(rows)
    return path


def test_learning_from_a_trace(tmp_path: Path) -> None:
    trace = traced(tmp_path / "t.parquet")
    learned = learn(trace, unseen="free", hold_out=0.25)
    assert learned.mark == ""
    assert (learned.trained.faults, learned.trained.needed) == (21, 9)
    assert learned.trained.missed == 0
    assert learned.held_out is not None
    assert (learned.held_out.faults, learned.held_out.exits_before) == (7, 6)
    assert (learned.held_out.exits_after, learned.held_out.saved) == (3, 3)
    assert "3 saved (50.0%)" in learned.held_out.line()
    loaded = Vmcs.from_toml(learned.definition.toml())
    rule = filter_in(loaded, 14)
    assert [rule.exits_one(code) for code in (3, 7, 4, 6, 0)] == [True, True, False, False, False]
    assert loaded["EXCEPTION_BITMAP"] & 0x48 == 8
    careful = learn(trace)
    rule = filter_in(Vmcs.from_toml(careful.definition.toml()), 14)
    assert all(rule.exits_one(code) for code in (3, 7, 0x15, 0x19)), "what was not seen exits"
    assert weights_in(trace)[14] == {0: 4, 3: 4, 4: 4, 6: 4, 7: 4}


def test_learning_from_a_marked_trace(tmp_path: Path) -> None:
    trace = traced(tmp_path / "t.parquet", 1)
    table = pq.read_table(trace)
    marks = pa.array([row[2] == 4 and not row[5] for row in ROWS])
    marked = tmp_path / "marked.parquet"
    pq.write_table(table.append_column("needed", marks), marked)
    learned = learn(marked, hold_out=0, unseen="deliver")
    assert learned.mark == "needed"
    assert learned.held_out is None
    rule = filter_in(Vmcs.from_toml(learned.definition.toml()), 14)
    assert [rule.exits_one(code) for code in (4, 3, 6, 7, 0)] == [True] + [False] * 4
    with pytest.raises(CriteriaError, match="neded: no such column; did you mean needed"):
        learn(marked, mark="neded")
    with pytest.raises(CriteriaError, match="is not Boolean"):
        learn(marked, mark="rip")
    with pytest.raises(CriteriaError, match="hold-out: give 0 or more"):
        learn(marked, hold_out=1.0)
    empty = tmp_path / "empty.parquet"
    TraceWriter(empty).close()
    with pytest.raises(CriteriaError, match="no exceptions to learn from"):
        learn(empty)
