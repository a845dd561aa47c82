"""`trapgate demo --guest`: any guest under direct paging, and what each filter saves it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trapgate import guests
from trapgate.cli import app
from trapgate.demo.any_guest import SETTINGS, ended_alike, run_guest
from trapgate.vmm.devices.board import Board
from trapgate.vmm.direct.refusals import DirectPagingError
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.loaders.image import GuestImage

MEMORY = 16 << 20


def bundled() -> GuestImage:
    line = guests.command_line("swap")
    return parse_guest(guests.image(), file="guest.elf", memory=MEMORY, append=line)


def test_each_filter_completes_what_the_ones_before_it_do() -> None:
    runs = list(run_guest(MEMORY, bundled, board=Board))
    assert [run.setting for run in runs] == list(SETTINGS)
    assert ended_alike(runs)
    own, none, seven, eight, _, own_frame, both, unlinking, known, empty, own_table = runs
    assert (own.exits, own.completed, own.left) == (0, 0, {})
    assert none.completed == 0
    writes = {run.exits + run.completed for run in (none, seven, eight, own_frame, both)}
    assert len(writes) == 1  # the guest cannot notice, so it does the same each time
    assert none.exits > seven.exits > eight.exits > own_frame.exits >= both.exits
    assert own_frame.saved(none) > 0.97
    assert own_table.exits <= empty.exits <= known.exits <= unlinking.exits < eight.exits
    assert own_table.completed < empty.completed
    levels = [count for what, count in none.left.items() if what != "reused"]
    assert sum(levels) == none.exits


def test_runs_that_end_otherwise_are_told() -> None:
    settings = SETTINGS[:1]
    run = next(run_guest(MEMORY, bundled, board=Board, settings=settings))
    cut = next(run_guest(MEMORY, bundled, board=Board, settings=settings, timeout=0.001))
    assert ended_alike([run])
    assert not ended_alike([run, cut])
    assert not ended_alike([cut, cut])


def test_an_engine_without_frame_map_says_so() -> None:
    with pytest.raises(DirectPagingError, match="native"):
        list(run_guest(MEMORY, bundled, board=Board, engine="portable"))


def test_the_command() -> None:
    line = ["demo", "--guest", str(guests.IMAGE_PATH), "--memory", "16M"]
    line += ["--append", guests.command_line("faults")]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert "no-link" in result.output
    assert "Under every setting: the guest exited with status 0." in result.output


def test_several_guests_in_one_table(tmp_path: Path) -> None:
    other = tmp_path / "other.elf"
    other.write_bytes(guests.image())
    line = ["demo", "--guest", str(guests.IMAGE_PATH), "--guest", str(other), "--memory", "16M"]
    line += ["--append", guests.command_line("faults")]
    result = CliRunner().invoke(app, [*line, "--json"])
    rows = json.loads(result.stdout)
    assert [row["guest"] for row in rows] == [
        name for name in (str(guests.IMAGE_PATH), str(other)) for _ in SETTINGS
    ]
    assert [row["fault_filter"] for row in rows] == [one.fault_filter for one in SETTINGS] * 2
    assert all(row["end"] == "debug exit" and row["status"] == 0 for row in rows)
    result = CliRunner().invoke(app, [*line, "--timeout", "0.001"], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert result.output.count("own paging") >= 2
    assert f"{other}: under every setting: out of time." in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--initrd", "x"], "--guest or --disk"),
        (["--until", "x"], "--guest or --disk"),
        (["--disk", "x", "--initrd", "y"], "for a kernel"),
        (["--guest", "x", "--workload", "aging"], "for the bundled guest"),
        (["--guest", "/nowhere/x"], "/nowhere/x"),
        (["--guest", "x", "--memory", "banana"], "banana"),
    ],
)
def test_mistakes(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["demo", *options])
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
