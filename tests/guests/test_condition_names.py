"""Symbols and bitmaps in conditions, on the command line: a run, its trace, and a replay of it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trapgate import guests
from trapgate.cli import app
from trapgate.trace import Trace
from trapgate.trace.schema import CRITERIA
from trapgate.vmcs.vmcs import Vmcs

RULES = '[[rules]]\nwhen = \'vector == PF and rip in symbol("{name}")\'\nthen = "exit"\n'


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exit_code, result.output


@pytest.fixture
def bits(tmp_path: Path) -> Path:
    path = tmp_path / "pages.bin"
    path.write_bytes(b"\x06")
    return path


def test_faults_of_one_function_exit(tmp_path: Path) -> None:
    rules, trace = tmp_path / "rules.toml", tmp_path / "t.parquet"
    rules.write_text(RULES.format(name="swapping"))
    status, output = run(
        "run", guests.IMAGE_PATH, "--memory", "16M", "--append", "workload=swap", "--json",
        "--vmcs", rules, "--trace", trace, "--symbols", guests.MAP_PATH,
    )  # fmt: skip
    assert status == 0, output
    answer = json.loads(output[output.index("{") :])
    exits = answer["faults"]["14"].get("EXIT", 0)
    assert exits == 1714
    with Trace(trace) as recorded:
        kept = Vmcs.from_toml(recorded.run[CRITERIA])
    assert len(kept.criteria_table) == 1
    status, output = run("replay", trace, "--policy", rules, "--symbols", guests.MAP_PATH, "--json")
    assert status == 0, output
    assert json.loads(output)["policies"][0]["exits"] == exits


def test_cpuid_without_an_exit_answers_the_same(tmp_path: Path) -> None:
    """The hypervisor asks for VMX; left to the guest, the machine answers as its VMM would."""
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rules]]\nwhen = "leaf <= 1"\nthen = "deliver"\n')
    told = []
    for given in ((), ("--vmcs", rules)):
        status, output = run(
            "run", guests.HYPERVISOR_PATH, "--initrd", guests.IMAGE_PATH, "--memory", "64M",
            "--append", "workload=swap", "--json", *given,
        )  # fmt: skip
        assert status == 0, output
        told.append(json.loads(output[output.index("{\n") :]))
    exits, none = (answer["exits"].pop("CPUID", 0) for answer in told)
    assert (exits > 0, none) == (True, 0)
    assert told[0]["exits"] == told[1]["exits"]
    assert told[0]["x86_vmm"] == told[1]["x86_vmm"]


def test_bitmaps_of_files(tmp_path: Path, bits: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rules]]\nwhen = \'page in bitmap("mine")\'\nthen = "exit"\n')
    status, output = run("criteria", "explain", rules, "--no-table", "--bitmap", f"mine={bits}")
    assert status == 0
    assert "2 numbers below 8" in output
    assert "e.g. #PF" in output
    wishes = tmp_path / "wishes.toml"
    wishes.write_text('[[wishes]]\nwhen = \'page in bitmap("mine")\'\nthen = "exit"\n')
    status, output = run("criteria", "define", wishes, "--bitmap", f"mine={bits}")
    assert status == 0
    assert "exact, by a criteria table of 1 rule and 1 clause" in output


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "no bitmaps are given"),
        (("--bitmap", "mime={bits}"), "did you mean mime"),
        (("--bitmap", "mine"), "write NAME=FILE"),
        (("--bitmap", "mine=/nowhere"), "cannot be read"),
        (("--bitmap", "mine=/dev/zero"), "1 to 16384 bytes"),
        (("--symbols", "/nowhere"), "cannot be read"),
    ],
)
def test_names_that_cannot_be_had(
    tmp_path: Path, bits: Path, given: tuple[str, ...], words: str
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rules]]\nwhen = \'page in bitmap("mine")\'\nthen = "exit"\n')
    options = [one.format(bits=bits) for one in given]
    status, output = run("criteria", "explain", rules, *options)
    assert status == 2
    assert words in output
    assert output.count("\n") == 1
