"""The replay counts what the processor's own decision, asked row by row, would count."""

import dataclasses
import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.replay.traces import PTBASE, by_hand, journal, random_policy, write
from tests.trace.foreign_text import Host, workload
from trapgate.cli import app
from trapgate.decision.conditions import ConditionError
from trapgate.replay import ConditionFamily, CostModel, Family, Outcome, Policy, replay, sweep
from trapgate.replay.judge import Columns, transfers
from trapgate.replay.replay import direct
from trapgate.trace import Trace, TraceError
from trapgate.trace.frames import scan
from trapgate.trace.imports import import_trace
from trapgate.vmcs.vmcs import Vmcs

pl = pytest.importorskip("polars")

COUNTS = ("judged", "unjudged", "exits", "deliveries", "completions", "saved", "added")


def counts(outcome: Outcome) -> dict[str, int]:
    assert outcome.judged == outcome.exits + outcome.deliveries + outcome.completions
    assert outcome.rows == outcome.judged + outcome.unjudged + outcome.outside
    assert outcome.exits - outcome.recorded_exits == outcome.added - outcome.saved
    return {name: getattr(outcome, name) for name in COUNTS}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("own") / "own.parquet", journal(4000), row_group=1000)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An older kernel's trace: the codes of general protection are not in it."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "host.txt").write_text("".join(workload(Host(new=False), 500)))
    return import_trace(folder / "host.txt", folder / "host.parquet").path


@pytest.mark.parametrize("extended", [False, True], ids=["vt-x", "extensions"])
def test_agrees_with_the_processor_one_by_one_and_together(own: Path, extended: bool) -> None:
    random = np.random.default_rng(5)
    policies = [random_policy(random, f"policy {n}", extended=extended) for n in range(25)]
    together = replay([own], policies)
    for policy, outcome in zip(policies, together.outcomes, strict=True):
        expected = by_hand(own, policy)
        assert counts(outcome) == expected, policy.summary
        (alone,) = replay([own], [policy]).outcomes
        assert alone == outcome
    assert len({tuple(counts(outcome).values()) for outcome in together.outcomes}) > 10


@pytest.mark.parametrize("kind", [1, 2, 3])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_fault_filters_agree_with_the_boxes_of_the_figures(
    own: Path, kind: int, order: int
) -> None:
    random = np.random.default_rng(kind * 4 + order)
    policies = [
        dataclasses.replace(
            random_policy(random, f"{n}", extended=n % 2 == 1),
            fault_filter=kind,
            order=order,
            ptbase=PTBASE,
        )
        for n in range(4)
    ]
    for policy, outcome in zip(policies, replay([own], policies).outcomes, strict=True):
        assert counts(outcome) == by_hand(own, policy)
        assert replay([own], [policy]).outcomes[0] == outcome
    outcomes = replay([own], policies).outcomes
    assert any(outcome.completions for outcome in outcomes)
    assert any(outcome.unjudged for outcome in outcomes)


def test_a_host_trace_with_missing_codes(hosts: Path) -> None:
    random = np.random.default_rng(9)
    policies = [random_policy(random, f"{n}", extended=n % 2 == 1) for n in range(20)]
    result = replay([hosts], policies)
    unjudged = 0
    for policy, outcome in zip(policies, result.outcomes, strict=True):
        assert counts(outcome) == by_hand(hosts, policy)
        assert outcome.outside_exits >= 200, "EPT violations and HLT exit under every policy"
        unjudged += outcome.unjudged
    assert unjudged, "criteria on #GP cannot be judged"


def test_a_missing_code_that_does_not_matter_is_judged(tmp_path: Path) -> None:
    host = Host(new=False)
    host.exception(14, 6, 0x1000, 0x5000)
    host.entry()
    (tmp_path / "h.txt").write_text(host.text)
    path = import_trace(tmp_path / "h.txt", tmp_path / "h.parquet").path
    all_faults = Policy.of("all", vectors=[14])
    writes = Policy.of("writes", vectors=[14], mask=2, match=2)
    first, second = replay([path], [all_faults, writes]).outcomes
    assert (first.judged, first.exits, first.unjudged) == (1, 1, 0)
    assert (second.judged, second.unjudged) == (0, 1)


def test_an_exception_without_a_vector_is_not_guessed(tmp_path: Path) -> None:
    text = "".join(
        f" qemu-1 [000] 1.00000{n}: kvm_exit: reason {reason} rip 0x1 info 0 0\n"
        f" qemu-1 [000] 1.00000{n}: kvm_entry: vcpu 0 rip 0x1\n"
        for n, reason in enumerate(("EXCEPTION_NMI", "HLT", "EXIT_EXCP_PF"))
    )
    (tmp_path / "h.txt").write_text(text)
    path = import_trace(tmp_path / "h.txt", tmp_path / "h.parquet").path
    policies = [Policy.of("all", vectors=range(32)), Policy.of("none")]
    for outcomes in (replay([path], policies).outcomes, replay([path], policies[:1]).outcomes):
        for outcome in outcomes:
            found = outcome.judged, outcome.unjudged, outcome.outside, outcome.outside_exits
            assert found == (1, 1, 1, 1)


def test_the_rules_are_called_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    from trapgate.decision import rules

    called = []

    def spy(*arguments: Any) -> Any:
        called.append(arguments)
        return rules.figure_3(*arguments)

    scheme = rules.SCHEMES["figure-3"]
    monkeypatch.setitem(rules.SCHEMES, "figure-3", dataclasses.replace(scheme, function=spy))
    transfers(Policy.of("p", vectors=[14], mask=3, match=3))
    assert len(called) == 1
    assert called[0][0] is True
    assert isinstance(called[0][2], pl.Expr)


def test_time_saved_is_the_recorded_latency_with_an_interval(tmp_path: Path) -> None:
    host = Host()
    for latency in (1000, 2000, 4000):
        host.exception(14, 6, 0x1000, 0x5000)
        host.wait(latency)
        host.entry()
    host.exception(13, 0, 0x1000)
    host.wait(9000)
    host.entry()
    host.exception(13, 0, 0x1000)
    (tmp_path / "h.txt").write_text(host.text)
    path = import_trace(tmp_path / "h.txt", tmp_path / "h.parquet").path
    none, protection = replay([path], [Policy.of("none"), Policy.of("#GP", vectors=[13])]).outcomes
    # The fifth exit has no latency: it counts with the mean of its vector's.
    assert (none.saved, none.time.estimate) == (5, 7000 + 9000 + 9000)
    spread = 1.96 * math.sqrt(1000**2 + 2000**2 + 4000**2 + 2 * 9000**2)
    assert none.time.high - none.time.estimate == pytest.approx(spread)
    assert none.time.estimate - none.time.low == pytest.approx(spread)
    assert (none.time.basis, none.time.unit) == ("latencies", "ns")
    assert (protection.saved, protection.time.estimate) == (3, 7000)


def test_added_exits_cost_the_mean_of_their_vector(tmp_path: Path) -> None:
    host = Host()
    host.exception(14, 6, 0x1000, 0x5000)
    host.wait(3000)
    host.entry()
    (tmp_path / "h.txt").write_text(host.text)
    path = import_trace(tmp_path / "h.txt", tmp_path / "h.parquet").path
    frame = pl.read_parquet(path)
    twice = pl.concat(
        [
            frame,
            frame.with_columns(
                disposition=pl.lit("DELIVER", pl.Categorical), latency=pl.lit(None, pl.UInt64)
            ),
        ]
    )
    from trapgate.replay.replay import judged
    from trapgate.replay.tally import tally

    kinds = tally(twice.lazy(), [])
    (outcome,) = judged(kinds, [Policy.of("all", vectors=[14])], [], unit="ns")
    assert (outcome.added, outcome.saved, outcome.time.estimate) == (1, 0, -3000)
    assert outcome.time.low < -3000 < outcome.time.high


def test_without_latencies_the_cost_model_counts(own: Path) -> None:
    model = CostModel(100, 200, 900)
    (outcome,) = replay([own], [Policy.of("none")], model=model).outcomes
    net = outcome.saved - outcome.added
    assert net > 0
    assert (outcome.time.low, outcome.time.estimate, outcome.time.high) == (
        100 * net,
        200 * net,
        900 * net,
    )
    assert (outcome.time.basis, outcome.time.unit) == ("cost model", "ns")
    (worse,) = replay([own], [Policy.of("all", vectors=range(32))], model=model).outcomes
    assert worse.time.low <= worse.time.estimate <= worse.time.high
    assert worse.time.estimate < 0
    with pytest.raises(ValueError, match="low <= typical <= high"):
        CostModel(3, 2, 1)


def test_many_files_are_one_trace(tmp_path: Path, own: Path) -> None:
    policies = [Policy.of("a", vectors=[13, 14], mask=7, match=6), Policy.of("b", vectors=[6])]
    rows = journal(4000)
    parts = [write(tmp_path / f"{n}.parquet", rows[n * 1000 : n * 1000 + 1000]) for n in range(4)]
    assert replay(parts, policies).outcomes == replay([own], policies).outcomes
    assert replay(parts, policies[:1]).outcomes == replay([own], policies[:1]).outcomes


def test_a_sweep_is_every_policy_of_its_family(own: Path) -> None:
    family = Family(0b10011, Policy.of("base", vectors=[6, 14]), both=True)
    members = list(family)
    assert len(members) == 54
    assert len({policy.name for policy in members}) == 54
    result = sweep([own], family)
    assert len(result.outcomes) == 54
    by_name = {outcome.policy: outcome for outcome in result.outcomes}
    for policy in members[::7]:
        assert counts(by_name[policy.name]) == by_hand(own, policy)
    saved = [outcome.time.estimate for outcome in result.outcomes]
    assert saved == sorted(saved, reverse=True)


def test_a_sweep_of_conditions_is_every_conjunction(own: Path) -> None:
    """Of other columns than the code; each policy counted by hand, row by row."""
    conditions = ("cpl == 3", "address < 0x400000", "write")
    family = ConditionFamily(conditions, Policy("base", Vmcs()))
    result = sweep([own], family)
    assert len(result.outcomes) == 27
    with Trace(own) as trace:
        rows = trace.table().to_pylist()

    def holds(row: dict[str, Any]) -> tuple[bool, bool, bool | None]:
        """None for a bit of the error code where there is none: neither it nor its opposite."""
        code = row["error_code"]
        write = None if code is None else bool(code >> 1 & 1)
        return row["cpl"] == 3, row["linear_address"] < 0x400000, write

    faults = [
        row
        for row in rows
        if row["vector"] == 14
        and row["type"] == 3
        and not row["injected"]
        and row["reason"] not in ("TASK_GATE", "TRIPLE_FAULT", "EPT")
    ]
    told = {one.policy: one for one in result.outcomes}
    for states in product((None, True, False), repeat=3):
        parts = [
            f"{'' if state else 'not '}({text})"
            for text, state in zip(conditions, states, strict=True)
            if state is not None
        ]
        outcome = told[f"exit on {' and '.join(parts) or 'all'}"]
        wanted = sum(
            all(s is None or s == h for s, h in zip(states, holds(row), strict=True))
            for row in faults
        )
        always = outcome.exits - wanted
        assert always == told["exit on all"].exits - len(faults)
    best = result.outcomes[0]
    assert best.exits == min(one.exits for one in result.outcomes)


def test_families_of_conditions_that_cannot_be() -> None:
    base = Policy("base", Vmcs())
    with pytest.raises(ConditionError, match="did you mean cpl"):
        ConditionFamily(("cpel == 3",), base)
    with pytest.raises(ValueError, match="1 to 4 conditions"):
        ConditionFamily(("cpl == 3",) * 5, base)
    with pytest.raises(ValueError, match="VT-x has no criteria table"):
        ConditionFamily(("cpl == 3",), Policy.of("vt-x"))


def test_a_sweep_that_must_keep_some_exits(own: Path) -> None:
    family = Family(0b111, Policy.of("base", vectors=[14]))
    result = sweep([own], family, keep=(3, 3))
    lost = [outcome.lost for outcome in result.outcomes]
    assert lost == sorted(lost, key=lambda value: value or 0)
    best = result.outcomes[0]
    assert (best.policy, best.lost) == ("exit on P W", 0)


@pytest.mark.parametrize("bits", [0, 1 << 32, 0x1FF])
def test_families_that_are_none(bits: int) -> None:
    with pytest.raises(ValueError, match="give"):
        Family(bits, Policy.of("base"))


def test_direct_and_tallied_agree_on_nothing(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.parquet", journal(0))
    assert direct(scan([empty]), Policy.of("p"))["rows"] == 0
    for policies in ([Policy.of("p")], [Policy.of("p"), Policy.of("q")]):
        with pytest.raises(TraceError, match="no event in it"):
            replay([empty], policies)
    assert Columns().codes_missing


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["replay", *map(str, arguments)])


TOML = """\
profile = "{profile}"
[controls]
exceptions = ["PF", "GP"]
[fields]
PAGE_FAULT_ERROR_CODE_MASK = 3
PAGE_FAULT_ERROR_CODE_MATCH = 3
{more}
"""


def test_the_command(tmp_path: Path, own: Path) -> None:
    policy = tmp_path / "writes.toml"
    policy.write_text(TOML.format(profile="vt-x", more=""))
    result = invoke(own, "--policy", policy, "--json")
    assert result.exit_code == 0, result.stderr
    (found,) = json.loads(result.stdout)["policies"]
    expected = by_hand(own, Policy.of("writes", vectors=[13, 14], mask=3, match=3))
    assert {name: found[name] for name in COUNTS} == expected
    assert found["policy"] == "writes"
    shown = invoke(own, "--policy", policy, "--cost", "100:200:300").stdout
    assert "cost model" in shown
    assert f"{found['saved']:,}" in shown
    swept = invoke(own, "--policy", policy, "--sweep", "P,W", "--json")
    assert len(json.loads(swept.stdout)["policies"]) == 9
    swept = invoke(own, "--sweep", "0x3", "--keep", "3:3", "--top", "2")
    assert swept.exit_code == 0
    assert "exit on P W" in swept.stdout


def test_a_policy_with_a_fault_filter(tmp_path: Path, own: Path) -> None:
    policy = tmp_path / "figure7.toml"
    policy.write_text(TOML.format(profile="extended", more="FAULT_FILTER = 1\nPTBASE = 0xC0000000"))
    result = invoke(own, "--policy", policy, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["policies"][0]["completions"] > 0


@pytest.mark.parametrize(
    ("more", "profile", "words"),
    [
        pytest.param("FAULT_FILTER = 4", "extended", "has no meaning", id="filter"),
        pytest.param("FAULT_FILTER_ORDER = 4", "extended", "has no meaning", id="order"),
        pytest.param("FAULT_FILTER = 1\nPTBASE = 4096", "extended", "not 4 MB aligned", id="base"),
        pytest.param("FRAME_FILTERS = 33", "extended", "without a meaning", id="frames"),
        pytest.param("FAULT_FILTER = 1", "vt-x", "is an extension", id="profile"),
        pytest.param("TRANSFER_CRITERION = 9", "extended", "VM entry refuses", id="criterion"),
        pytest.param("NOT_A_FIELD = 1", "extended", "no such VMCS field", id="name"),
    ],
)
def test_policies_that_are_none(
    tmp_path: Path, own: Path, more: str, profile: str, words: str
) -> None:
    policy = tmp_path / "p.toml"
    policy.write_text(TOML.format(profile=profile, more=more))
    result = invoke(own, "--policy", policy)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_bad_arguments_are_told_in_one_line(tmp_path: Path, own: Path, hosts: Path) -> None:
    policy = tmp_path / "p.toml"
    policy.write_text(TOML.format(profile="vt-x", more=""))
    foreign = tmp_path / "foreign.parquet"
    pl.DataFrame({"a": [1]}).write_parquet(foreign)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(own.read_bytes()[:5000])
    for arguments, words in (
        ([own], "--policy"),
        ([own, "--policy", tmp_path / "none.toml"], "cannot be read"),
        ([tmp_path / "none.parquet", "--policy", policy], "no such file"),
        ([foreign, "--policy", policy], "not a fault trace"),
        ([cut, "--policy", policy], "not readable as Parquet"),
        ([own, hosts, "--policy", policy], "counts time in ns"),
        ([own, "--policy", policy, "--cost", "1:x"], "--cost"),
        ([own, "--policy", policy, "--sweep", "P,Q"], "--sweep"),
        ([own, "--policy", policy, "--sweep", "P", "--keep", "z"], "--keep"),
        ([own, "--policy", policy, "--cluster", "moon"], "--cluster"),
    ):
        result = invoke(*arguments)
        assert (result.exit_code, words in result.stderr) == (2, True), (arguments, result.stderr)
        assert result.stderr.count("\n") == 1


def test_damage_inside_a_trace_is_told_in_one_line(tmp_path: Path, own: Path) -> None:
    policy, bad = tmp_path / "p.toml", tmp_path / "bad.parquet"
    policy.write_text(TOML.format(profile="vt-x", more=""))
    content = bytearray(own.read_bytes())
    content[100:20000] = bytes(19900)
    bad.write_bytes(content)
    for more in ([], ["--sweep", "P"]):
        result = invoke(bad, "--policy", policy, *more)
        assert result.exit_code == 2, result.output
        assert result.stderr.count("\n") == 1
        assert str(bad) in result.stderr


def test_one_policy_alone_is_timed_as_among_others(tmp_path: Path) -> None:
    (tmp_path / "h.txt").write_text("".join(workload(Host(), 800)))
    path = import_trace(tmp_path / "h.txt", tmp_path / "h.parquet").path
    policies = [
        Policy.of("none"),
        Policy.of("writes", vectors=[14], mask=2, match=2),
        Policy.of("all", vectors=range(32)),
    ]
    for policy, outcome in zip(policies, replay([path], policies).outcomes, strict=True):
        assert replay([path], [policy]).outcomes == (outcome,)
        assert outcome.time.basis == "latencies"
