"""What define, check, explain, merge and learn answer."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import z3

from tests.trace.foreign_text import Host
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
    weights_in,
)
from trapgate.criteria.covers.cover import Remedy, remedies
from trapgate.criteria.covers.schemes import FILTER_SCHEMES, OPERATORS, best, limits_of
from trapgate.criteria.problems import solvers
from trapgate.criteria.problems.codes import layout_of, plain_layout
from trapgate.criteria.problems.problem import NEVER, Deadline, problem
from trapgate.criteria.proofs import proof as proofs
from trapgate.criteria.proofs.proof import Claim, prove, wished
from trapgate.decision.decide import DELIVER, EXIT, decide_fault
from trapgate.sdm.fields import Field
from trapgate.sdm.vectors import VECTORS_WITH_ERROR_CODE
from trapgate.trace import TraceError, TraceWriter
from trapgate.trace.imports import import_trace
from trapgate.vmcs.vmcs import Vmcs

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
    assert define(parse_spec(SPEC.replace("[TS]", "[NP]")), "auto").profile == "extended"


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
    with pytest.raises(
        CriteriaError, match="needs 3 fields and the operators any-bit, invert, match"
    ):
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
    with pytest.raises(
        InexpressibleError, match="no scheme makes do with 1 field and the operators match"
    ):
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
    monkeypatch.setattr(z3, "SolverFor", lambda _logic: Solver())
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
    ((0, 0, 0), set(), "#PF: never exits"),
    ((1 << 14, 0, 0), set(), "#PF: always exits"),
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


MASK_BITS = [0, 1, 2, 3, 4, 5, 6, 7, 15, 9, 31]


def words_hold(summary: str, code: int) -> bool:
    """Whether a code meets the words of a summary, read in the plainest way."""
    names = {bit.name: bit.position for bit in layout_of(14).bits}

    def holds(word: str) -> bool:
        return (code >> names[word.removeprefix("not ")] & 1) == (not word.startswith("not "))

    told = summary.split(" if ", 1)[1]
    return any(all(map(holds, term.split(" and "))) for term in told.split("; or "))


def test_explanations_say_what_the_processor_does() -> None:
    random = np.random.default_rng(3)
    layout = layout_of(14)
    raised = [int(code) for code in layout.codes() if layout.occurs(int(code))]

    def mask() -> int:
        return sum(1 << bit for bit in random.choice(MASK_BITS, random.integers(0, 4), False))

    for number in range(150):
        made = vmcs(int(random.integers(0, 2)) << 14, ANY_BIT_MASK=mask())
        for pair in ("PAGE_FAULT", "SECOND"):
            made[f"{pair}_ERROR_CODE_MASK"] = some = mask()
            made[f"{pair}_ERROR_CODE_MATCH"] = some & mask() if number % 4 else mask()
        made["COMPARISON_VALUE"] = int(random.choice([0, 1, 3, 8, 15, 0x8000, 0xFFFFFFFF]))
        made["COMPARISON_OPERATOR"] = number % 6
        made["TRANSFER_CRITERION"] = number % 8
        made["TRANSFER_CRITERION_VECTORS"] = 1 << 14
        made["MEMBERS_USED"] = int(random.integers(0, 256))
        for place in range(8):
            made[f"MEMBER_{place}"] = int(random.choice(raised))
        if number % 3 == 0:
            made["ERROR_CODE_FIELD_WIDTH"] = int(random.integers(1, 9))
            made["ERROR_CODE_FIELD_SHIFT"] = int(random.integers(0, 6))
        (told,) = explain(made, [14])
        truth = {code: decide_fault(made.cells, 14, 3, code)[0] == EXIT for code in raised}
        assert {code: exits for code, exits, _ in told.rows()} == truth
        count = sum(truth.values())
        kinds = {warning.kind for warning in told.warnings}
        if count in {0, len(raised)}:
            assert f"{'always' if count else 'never'} exits" in told.summary
            assert "constant" in kinds or not any(told.filter.values)
        else:
            assert f"({count} of 68 codes)" in told.summary
            assert {code: words_hold(told.summary, code) for code in raised} == truth
            assert "constant" not in kinds


def test_warnings_about_values_that_never_occur() -> None:
    members = vmcs(
        MEMBERS_USED=5, MEMBER_0=8, MEMBER_1=8, MEMBER_2=3,
        TRANSFER_CRITERION=7, TRANSFER_CRITERION_VECTORS=1 << 14,
    )  # fmt: skip
    (told,) = explain(members)
    (warning,) = told.warnings
    assert warning.kind == "impossible-member"
    assert warning.text == "MEMBER_0 0x8 is not a code that the processor can raise"
    any_bit = vmcs(ANY_BIT_MASK=0x202, TRANSFER_CRITERION=5, TRANSFER_CRITERION_VECTORS=1 << 14)
    any_bit["PAGE_FAULT_ERROR_CODE_MASK"] = any_bit["PAGE_FAULT_ERROR_CODE_MATCH"] = 2
    (told,) = explain(any_bit)
    assert "ANY_BIT_MASK has bits that the error code lacks (0x200)" in {
        warning.text for warning in told.warnings
    }


def test_long_truth_tables_say_that_they_are_cut() -> None:
    seed = vmcs(1 << 13, TRANSFER_CRITERION_VECTORS=1 << 13)
    seed["VECTOR_13_ERROR_CODE_MASK"] = seed["VECTOR_13_ERROR_CODE_MATCH"] = 1
    told = next(one for one in explain(seed) if one.vector == 13)
    assert len(told.rows()) == 512
    groups = told.groups()
    assert sum(group.count for group in groups if group.exits) == int(
        (told.exits & told.occurs).sum()
    )
    assert told.lines()[2:] == [f"  {group.line()}" for group in groups]
    assert told.document()["table_leaves_out"] == told.rows_left_out
    assert told.rows_left_out == int(told.occurs.sum()) - 512
    assert told.lines(table=False) == [told.summary]


def test_what_vm_entry_refuses_is_not_explained() -> None:
    wrong = vmcs(TRANSFER_CRITERION=99, TRANSFER_CRITERION_VECTORS=1 << 14)
    for use in (lambda: explain(wrong), lambda: check(parse_spec(SPEC), wrong)):
        with pytest.raises(CriteriaError, match="VM entry refuses TRANSFER_CRITERION = 0x63"):
            use()
    wide = vmcs(ERROR_CODE_FIELD_WIDTH=40, ERROR_CODE_FIELD_SHIFT=40)
    with pytest.raises(CriteriaError, match="ERROR_CODE_FIELD_SHIFT = 0x28"):
        merge([Party("a", wide), Party("b", vmcs())])


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


def test_merging_says_what_it_leaves_out() -> None:
    first = vmcs(1 << 14, 3, 3, GUEST_CR3=0x1000, CR0_READ_SHADOW=1)
    merged = merge([Party("l0", first), Party("l1", vmcs(1 << 14, 5, 5))])
    (note,) = merged.definition.notes
    assert note.startswith("l0: only what rules exceptions is merged, not ")
    assert "GUEST_CR3" in note
    assert note in merged.definition.toml()


def test_merging_filters_of_narrow_fields_and_other_criteria() -> None:
    narrow = vmcs(
        1 << 14, 0b11, 0b01, TRANSFER_CRITERION_VECTORS=1 << 14,
        ERROR_CODE_FIELD_WIDTH=2, ERROR_CODE_FIELD_SHIFT=1,
    )  # fmt: skip
    two = vmcs(
        0, 9, 9, SECOND_ERROR_CODE_MASK=0x14, SECOND_ERROR_CODE_MATCH=0x14,
        TRANSFER_CRITERION=3, TRANSFER_CRITERION_VECTORS=1 << 14,
    )  # fmt: skip
    merged = merge([Party("narrow", narrow), Party("two", two)], "auto")
    result = Vmcs.from_toml(merged.definition.toml())
    layout = layout_of(14)
    needless = set(next(one for one in merged.definition.answers if one.vector == 14).needless)
    for code in layout.codes().tolist():
        if layout.occurs(code):
            asked = code & 6 == 2 or code & 9 == 9 or code & 0x14 == 0x14
            exits = decide_fault(result.cells, 14, 3, code)[0] == EXIT
            assert exits == (asked or code in needless)


def test_ways_to_be_exact_keep_to_the_operators() -> None:
    asked = problem(range(4), np.arange(16) < 5, np.arange(16) >= 5)
    every = remedies(asked, OPERATORS)
    assert every[0] == Remedy("a value; what is less exits", 1, scheme="less")
    assert [one.fields for one in every] == sorted(one.fields for one in every)
    assert "2 pairs; what meets one of them exits" in {one.kind for one in every}
    few = remedies(asked, ["match"])
    assert {one.scheme for one in few} <= {"figure-3", "figure-4", ""}
    assert remedies(asked, ["member"]) == [
        Remedy("values, and which of them count; what equals one exits", 6, scheme="membership")
    ]
    limited = define(parse_spec(SPEC), "auto", operators=["match"], fields=2)
    page_faults = next(one for one in limited.answers if one.vector == 14)
    assert all("any-bit" not in one.kind for one in page_faults.remedies or ())


def test_wide_codes_get_an_answer_if_few_pairs_do() -> None:
    codes = np.arange(1 << 16)
    must = ((codes & 0x5555) == 0x1111) | ((codes & 0xFF00) == 0x4200)
    told = {one.kind: one for one in remedies(problem(range(16), must, ~must), OPERATORS)}
    assert told["2 pairs; what meets one of them exits"].scheme == "figure-4"


def test_weights_that_are_none() -> None:
    spec = parse_spec('[PF]\nexit = [3]\ndefault = "deliver"\n')
    for wrong in (float("nan"), 1.5, -1, 1 << 40, "many"):
        with pytest.raises(CriteriaError, match=r"#PF: .* is not a weight for error code 0x1"):
            define(spec, weights={14: {1: wrong}})  # type: ignore[dict-item]
    seed = parse_spec('bits = "seed"\n[PF]\nexit = [3]\ndefault = "deliver"\n')
    definition = define(seed, weights={14: {1: 5, 0x14: 2, -1: 1}})
    assert "3 of 8 faults with vector #PF do not count as weights" in definition.notes[0]


def test_remarks_about_wishes_that_ask_for_nothing() -> None:
    definition = define(parse_spec('[PF]\nexit = ["write"]\n'))
    assert "nothing has to be delivered, so all may exit" in definition.notes[0]
    assert 'default = "deliver" changes that' in definition.notes[0]
    definition = define(parse_spec('[PF]\ndeliver = ["write"]\n'))
    assert "nothing has to exit, so nothing does" in definition.notes[0]
    definition = define(parse_spec('[PF]\nexit = ["reserved and not present"]\n', "w.toml"))
    assert definition.notes == ("w.toml:2: names no error code that the processor can raise",)
    assert not define(parse_spec('[PF]\nexit = [3]\ndefault = "deliver"\n')).notes


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


@pytest.mark.parametrize("new", [True, False], ids=["newer", "older"])
def test_learning_from_the_trace_of_a_real_host(tmp_path: Path, new: bool) -> None:
    host = Host("perf-script", new=new)
    for number in range(40):
        for vcpu in (0, 1):  # the two take turns: the next event of a VM is the other's
            host.exception(14, (2, 7)[vcpu], 0x1000 + number, 0x2000, vcpu)
            host.page_fault(0x2000, (2, 7)[vcpu], 0x1000 + number, vcpu)
        host.inject(14, 2, 0)
        for vcpu in (0, 1):
            host.entry(vcpu=vcpu)
        host.exception(13, 0, 0x3000)
        host.entry()
    source = tmp_path / "host.txt"
    source.write_text(host.text)
    trace = import_trace(source, tmp_path / "host.parquet").path
    learned = learn(trace, unseen="free")
    rule = filter_in(Vmcs.from_toml(learned.definition.toml()), 14)
    assert (rule.exits_one(2), rule.exits_one(7)) == (False, True)
    assert learned.whole.missed == 0
    assert learned.whole == learned.trained + (learned.held_out or learned.trained)
    assert learned.whole.saved == 40
    lost = [note for note in learned.definition.notes if "left out" in note]
    assert lost == (
        [] if new else ["40 faults are left out: the trace does not tell their error codes"]
    )
    counts = weights_in(trace)
    assert counts[14] == {2: 40, 7: 40}
    assert counts[13] == ({0: 40} if new else {-1: 40})


def test_damaged_names_are_told(tmp_path: Path) -> None:
    trace = traced(tmp_path / "t.parquet", 1)
    trace.write_bytes(trace.read_bytes().replace(b"injected", b"injec\xf4ed"))
    with pytest.raises(TraceError, match="not readable as Parquet"):
        weights_in(trace)


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
