"""Campaigns from end to end, on the bundled guest."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.campaign.plans import EVENTS, HEAD, REGISTERS, finished, plan
from trapgate.campaign.bench import Bench
from trapgate.campaign.campaign import create, prepare, run
from trapgate.campaign.compare import compare
from trapgate.campaign.errors import CampaignError
from trapgate.campaign.outcomes import OUTCOMES
from trapgate.campaign.plan import Point, find_plan, shipped
from trapgate.campaign.replay import replay
from trapgate.campaign.results import SCHEMA, Results
from trapgate.campaign.symbols import functions_of
from trapgate.campaign.tables import frame, sql, tally
from trapgate.cli import app
from trapgate.errors import TrapgateError


def rows(results: Results) -> pa.Table:
    return pa.concat_tables([pq.read_table(part) for part in results.parts()]).unify_dictionaries()


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return finished(EVENTS, tmp_path_factory.mktemp("events"))


def test_every_run_has_a_row_and_an_outcome(events: Results) -> None:
    table = rows(events)
    assert table.schema == SCHEMA
    assert table.column("run").to_pylist() == list(range(450))  # 150 moments, 3 faults
    assert set(table.column("outcome").to_pylist()) <= set(OUTCOMES)
    assert "error" not in set(table.column("outcome").to_pylist())


def test_outcomes_are_what_the_guest_does(events: Results) -> None:
    found = {
        (row["target"], row["outcome"]): row["n"]
        for row in sql(
            events, "select target, outcome, count(*) n from runs group by all"
        ).to_dicts()
    }
    # The kernel panics of what it does not expect while it runs, and this part is all kernel and
    # a loop of the user's that takes page faults.
    assert found["NMI", "detected"] > 100
    assert found["#PF", "handled"] > 0


def test_equal_plans_give_equal_rows(events: Results, tmp_path: Path) -> None:
    again = finished(EVENTS, tmp_path / "again", workers=2)
    assert rows(again).equals(rows(events))


def test_each_run_can_be_run_again(events: Results, tmp_path: Path) -> None:
    for number in (0, 100, 449):
        seen = replay(events, number)
        assert seen.agrees
        assert seen.stored is not None
        assert seen.stored["run"] == number
    trace = tmp_path / "run.parquet"
    assert replay(events, 100, trace=trace).agrees
    first = pq.read_table(trace).to_pylist()[0]
    assert first["injected"]
    assert first["time"] == seen_moment(events, 100)


def seen_moment(results: Results, number: int) -> int:
    return int(results.runs.moments[number])


def test_a_run_that_is_another_one_now_is_told(events: Results, tmp_path: Path) -> None:
    copy = finished(EVENTS + "[sample]\nruns = 40\n", tmp_path / "c")
    part = copy.part(0)
    table = pq.read_table(part)
    column = table.schema.get_field_index("instructions")
    pq.write_table(table.set_column(column, "instructions", pa.array([7] * 40, pa.int64())), part)
    assert not replay(copy, 3).agrees


def test_no_other_campaign_goes_into_a_directory(events: Results) -> None:
    with pytest.raises(CampaignError, match="another plan"):
        list(run(plan(REGISTERS), events))
    with pytest.raises(CampaignError, match="something else"):
        create(prepare(plan(EVENTS)), events.folder.parent)


def test_a_directory_is_one_process_s(events: Results) -> None:
    with events.locked(), pytest.raises(CampaignError, match="another process"):
        list(run(plan(EVENTS), events))


def test_what_is_missing_is_run_and_nothing_else(events: Results, tmp_path: Path) -> None:
    results = finished(EVENTS, tmp_path / "r")
    kept = {part: part.stat().st_mtime_ns for part in results.parts()}
    lost, damaged, *others = kept
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert len(results.missing()) == 2
    assert sum(sum(n for n, _ in one.values()) for one in run(plan(EVENTS), results)) == 200
    assert rows(results).equals(rows(events))
    assert {part: part.stat().st_mtime_ns for part in others} == {p: kept[p] for p in others}


def test_a_full_disk_stops_a_campaign_which_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = plan(EVENTS)
    results = create(prepare(wanted), tmp_path / "r")
    with monkeypatch.context() as patch:
        patch.setattr("trapgate.campaign.results.KEEP_FREE", 1 << 60)
        with pytest.raises(CampaignError, match="make room"):
            list(run(wanted, results))
    assert results.parts() == []
    list(run(wanted, results))
    assert results.missing() == []


def test_queries_see_nothing_but_the_results(events: Results, tmp_path: Path) -> None:
    assert sql(events, "select count(*) n from runs")["n"].to_list() == [450]
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    for query in (
        f"select * from read_csv('{secret}')",
        f"copy runs to '{tmp_path / 'out.csv'}'",
        f"attach '{tmp_path / 'x.db'}'",
        "set enable_external_access = true",
        "selec",
    ):
        with pytest.raises(CampaignError, match="the query fails"):
            sql(events, query)
    assert list(tmp_path.iterdir()) == [secret]


def test_frames_and_tallies_agree(events: Results) -> None:
    counts = frame(events).collect()["outcome"].cast(str).value_counts().to_dicts()
    assert {one["outcome"]: one["count"] for one in counts} == {
        name: runs for name, (runs, _) in tally(events).items()
    }


@pytest.mark.parametrize("stratify", ["", "time", "target", "symbol"])
def test_a_sample_s_weights_stand_for_the_space(stratify: str) -> None:
    body = REGISTERS.replace("every = 100", "every = 3")
    body += f'[sample]\nruns = 900\nseed = 5\nstratify = "{stratify}"\n'
    made = prepare(plan(body))
    runs = made.runs
    assert runs.weights.sum() == pytest.approx(1000 * 32)
    assert not runs.exact
    points = list(zip(runs.moments.tolist(), runs.faults.tolist(), strict=True))
    assert points == sorted(set(points))
    # Each stratum's weights stand for it exactly.
    if stratify == "target":
        first = runs.faults < 16
        assert runs.weights[first].sum() == pytest.approx(1000 * 16)
        assert runs.weights[~first].sum() == pytest.approx(1000 * 16)
    if stratify == "symbol":
        moments = np.arange(10_200_000, 10_203_000, 3)
        assert made.course is not None
        rips = made.course.rips[moments - 10_200_000]
        every = functions_of(made.reference.bench.symbols, rips, "")
        drawn = every[(runs.moments - 10_200_000) // 3]
        for function in np.unique(every):
            points_of_it = runs.weights[drawn == function].sum()
            assert points_of_it == pytest.approx((every == function).sum() * 32)


def test_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(HEAD + EVENTS + "[sample]\nruns = 90\n")
    runner = CliRunner()
    folder = str(tmp_path / "out")
    planned = json.loads(runner.invoke(app, ["campaign", "plan", str(file), "--json"]).stdout)
    assert planned["runs"] == 90
    assert planned["space"] == 450
    ran = runner.invoke(app, ["campaign", "run", str(file), "-o", folder, "--workers", "1"])
    assert ran.exit_code == 0
    assert "90 of 90 runs" in ran.stdout
    told = json.loads(runner.invoke(app, ["campaign", "stat", folder, "--json"]).stdout)
    assert told["complete"]
    assert sum(one["runs"] for one in told["outcomes"]) == 90
    shown = json.loads(runner.invoke(app, ["campaign", "show", folder, "7", "--json"]).stdout)
    assert shown["stored"] == "the same"
    asked = runner.invoke(app, ["campaign", "sql", folder, "select max(run) m from runs", "--json"])
    assert json.loads(asked.stdout) == [{"m": 89}]
    for arguments in (["show", folder, "90"], ["stat", str(tmp_path / "no")], ["run", "no"]):
        failed = runner.invoke(app, ["campaign", *arguments])
        assert failed.exit_code == 2
        assert failed.stderr.startswith("trapgate: ")
        assert failed.stderr.count("\n") == 1


def test_nothing_is_compared_with_what_was_not_run(events: Results, tmp_path: Path) -> None:
    begun = create(prepare(plan(EVENTS)), tmp_path / "begun")
    with pytest.raises(CampaignError, match="nothing has been run yet"):
        compare(events, begun)


def test_a_campaign_s_difference_from_itself_is_none(events: Results, tmp_path: Path) -> None:
    assert all(one.change == 0 and not one.sure for one in compare(events, events))
    nmi = finished(EVENTS.replace('"PF(code=2,cr2=0x1000)", "GP(0x10)", ', ""), tmp_path / "nmi")
    found = {one.outcome: one for one in compare(events, nmi)}
    assert -found["handled"].before < found["handled"].change < 0
    assert found["handled"].sure
    sampled = finished(EVENTS + "[sample]\nruns = 100\n", tmp_path / "s")
    few = {one.outcome: one for one in compare(events, sampled)}
    assert few["detected"].low < few["detected"].change < few["detected"].high
    told = CliRunner().invoke(
        app, ["campaign", "diff", str(events.folder), str(nmi.folder), "--json"]
    )
    assert {one["outcome"] for one in json.loads(told.stdout)} == set(found)


@pytest.mark.parametrize(
    ("begin", "end", "how"),
    [
        ('{ output = "paging on" }', "{ instructions = 1000 }", "golden end"),
        ('{ symbol = "space_fault", time = 3 }', '{ symbol = "trap_return" }', "golden end"),
        ('{ rip = "0x10033d" }', '{ rip = "0x10033d", time = 4 }', "golden end"),
        ("{ instructions = 50_000 }", '{ output = "checksum [0-9A-F]+" }', "golden end"),
        ("{ instructions = 10_000_000 }", "{ exit = true }", "debug exit"),
    ],
)
def test_golden_runs_begin_and_end_where_one_says(begin: str, end: str, how: str) -> None:
    head = HEAD.replace("{ instructions = 10_200_000 }", begin)
    head = head.replace("{ instructions = 3000 }", end)
    prepared = prepare(plan(EVENTS, head))
    golden = prepared.reference.golden
    assert golden.how == how
    assert golden.end > golden.begin
    vm = prepared.reference.bench.vm
    vm.restore(prepared.reference.bench.snapshot)
    if "symbol" in begin or "rip" in begin:
        wanted = {"space_fault", "trap_return"}
        bench = prepared.reference.bench
        assert bench.symbols is not None
        at = bench.symbols.names[
            int(bench.symbols.indices(np.array([vm.vmcs["GUEST_RIP"]], np.uint64))[0])
        ]
        assert at in wanted
    again = prepare(plan(EVENTS, head)).reference.golden
    assert again == golden


@pytest.mark.parametrize("name", shipped())
def test_shipped_plans_can_be_run(name: str) -> None:
    assert len(prepare(find_plan(name)).runs) > 100


def test_workers_start_where_the_golden_run_begins(
    events: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert events.beginning is None  # it takes no time to get there
    monkeypatch.setattr("trapgate.campaign.campaign.WORTH_SAVING", 0)
    saved = create(prepare(plan(EVENTS)), tmp_path / "saved")
    assert saved.beginning is not None

    def begin(bench: Bench, point: Point) -> None:
        raise AssertionError("nobody runs the guest from its start again")

    monkeypatch.setattr(Bench, "_begin", begin)
    list(run(plan(EVENTS), saved))
    assert rows(saved).equals(rows(events))
    assert replay(saved, 17).agrees
    saved.beginning.write_bytes(saved.beginning.read_bytes()[:-100])
    with pytest.raises(TrapgateError, match="beginning"):
        replay(saved, 17)
