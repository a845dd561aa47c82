"""`trapgate criteria`: statuses, JSON, one-line complaints."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trapgate.cli import app

WISHES = '[PF]\nexit = ["write and present and not user"]\ndefault = "deliver"\n'
FIELDS = 'profile = "vt-x"\n[fields]\nEXCEPTION_BITMAP = 0x4000\nPAGE_FAULT_ERROR_CODE_MASK = {}\n\
PAGE_FAULT_ERROR_CODE_MATCH = {}\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("wishes.toml").write_text(WISHES)
    Path("a.toml").write_text(FIELDS.format(3, 3))
    Path("b.toml").write_text(FIELDS.format(0x14, 0x14))
    return tmp_path


def trapgate(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["criteria", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_define_check_explain(folder: Path) -> None:
    status, out, _ = trapgate("define", "wishes.toml", "-o", "f.toml")
    assert status == 0
    assert "#PF: exact (vt-x)" in out
    assert "vmwrite 4006H, 00000007H" in out
    assert trapgate("check", "wishes.toml", "f.toml")[:2] == (0, "#PF: holds\n")
    status, out, _ = trapgate("check", "wishes.toml", "a.toml", "--json")
    assert (status, json.loads(out)["holds"]) == (1, False)
    assert trapgate("check", "wishes.toml", "a.toml", "--sound")[0] == 0
    status, out, _ = trapgate("explain", "f.toml", "--json", "--vector", "PF")
    told = json.loads(out)["files"][0]["vectors"][0]
    assert (status, told["warnings"], len(told["table"])) == (0, [], 68)
    status, out, _ = trapgate("explain", "a.toml", "b.toml")
    assert status == 0
    assert "  -------11  exit   present and write (20 codes, e.g. 0x3)" in out


def test_printed_toml_is_a_vmcs_file(folder: Path) -> None:
    status, out, _ = trapgate("define", "wishes.toml", "--format", "toml")
    assert status == 0
    Path("again.toml").write_text(out)
    assert trapgate("check", "wishes.toml", "again.toml")[0] == 0


def test_merge(folder: Path) -> None:
    status, out, _ = trapgate("merge", "a.toml", "b.toml", "-o", "m.toml")
    assert status == 0
    assert "asked by a; give the exit to a" in out
    assert "asked by nobody; inject it into the guest" in out
    status, out, _ = trapgate("merge", "a.toml", "b.toml", "--scheme", "figure-4", "--json")
    answer = json.loads(out)
    assert (status, answer["exact"], answer["profile"]) == (0, True, "extended")
    assert {tuple(share["reflect_to"]) for share in answer["shares"]} == {("a",), ("b",)}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["define", "none.toml"], 2, "none.toml: cannot be read (No such file or directory)"),
        (["define", "wishes.toml", "--scheme", "figure-6"], 2, "figure-6: no such scheme; did"),
        (["define", "wishes.toml", "--scheme", "equal"], 1, "equal: cannot make #PF 0x3"),
        (["define", "wishes.toml", "--scheme", "auto", "--operator", "nor"], 2, "nor: no such op"),
        (["define", "wishes.toml", "-o", "no/f.toml"], 2, "no/f.toml: cannot be written"),
        (["check", "wishes.toml", "wishes.toml"], 2, "wishes.toml: PF: unknown key"),
        (["merge", "a.toml"], 2, "merging takes at least two VMCS files"),
        (["merge", "a.toml", "b.toml", "--bits", "99"], 2, "bits: 99 bits; choose from 1 to 16"),
        (["explain", "a.toml", "--vector", "PQ"], 2, "PQ: no such vector; did you mean"),
        (["learn", "a.toml"], 2, "a.toml: not readable as Parquet"),
    ],
)
def test_complaints(folder: Path, arguments: list[str], status: int, message: str) -> None:
    got, out, error = trapgate(*arguments)
    assert got == status
    assert error.startswith("trapgate: ")
    assert message in error
    assert error.count("\n") == 1
    assert out == ""


def test_no_answer_in_json(folder: Path) -> None:
    status, out, error = trapgate("define", "wishes.toml", "--scheme", "equal", "--json")
    assert (status, error.count("\n")) == (1, 1)
    answer = json.loads(out)
    assert (answer["error"], len(answer["core"])) == ("inexpressible", 2)
    Path("bad.toml").write_text("[PF]\nexit = [3]\ndeliver = [\n3]\n")
    status, out, _ = trapgate("define", "bad.toml", "--json")
    answer = json.loads(out)
    assert (status, answer["error"]) == (2, "contradiction")
    assert (answer["codes"], answer["lines"]) == (["0x3"], [2, 4])


def test_the_guide_shows_what_is_printed(folder: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "criteria.md").read_text("utf-8")
    Path("wishes.toml").write_text(
        '[PF]\nexit = ["user and write and present"]\ndefault = "deliver"\n'
    )
    assert Path("wishes.toml").read_text() in guide
    _, defined, _ = trapgate("define", "wishes.toml", "-o", "filter.toml")
    _, checked, _ = trapgate("check", "wishes.toml", "filter.toml")
    _, explained, _ = trapgate("explain", "filter.toml", "--no-table")
    Path("l0.toml").write_text(FIELDS.format(9, 9))
    Path("l1.toml").write_text(FIELDS.format(7, 7).replace("0x4000", "0x4008"))
    _, merged, _ = trapgate("merge", "l0.toml", "l1.toml")
    for shown in (
        defined.splitlines()[0],
        defined[defined.index("vmwrite:") :],
        checked,
        explained,
        merged.splitlines()[0],
        merged[merged.index("who asked") :],
    ):
        assert shown in guide


def test_every_complaint_is_json_too(folder: Path) -> None:
    Path("long.toml").write_text(f"[PF]\n{'x' * 100_000} = 1\n")
    for arguments, kind in (
        (["define", "none.toml"], "spec"),
        (["define", "wishes.toml", "--scheme", "figure-6"], "unknownscheme"),
        (["check", "wishes.toml", "none.toml"], "vmcsfile"),
        (["learn", "none.parquet"], "trace"),
        (["explain", "long.toml"], "vmcsfile"),
    ):
        status, out, error = trapgate(*arguments, "--json")
        assert (status, error.count("\n")) == (2, 1)
        assert json.loads(out)["error"] == kind
        assert len(error) < 2500


def test_an_endless_timeout(folder: Path) -> None:
    assert trapgate("define", "wishes.toml", "--timeout", "inf")[0] == 0
    assert trapgate("check", "wishes.toml", "a.toml", "--sound", "--timeout", "1e300")[0] == 0


def test_out_of_time(folder: Path) -> None:
    random = np.random.default_rng(1)
    codes = ", ".join(str(code) for code in random.choice(1 << 16, 3000, replace=False))
    Path("noise.toml").write_text(f'bits = 16\n[PF]\nexit = [{codes}]\ndefault = "deliver"\n')
    status, out, error = trapgate("define", "noise.toml", "--timeout", "0.001", "--json")
    assert status == 1
    assert json.loads(out)["error"] == "undecided"
    assert "unknown: no answer within 0.001 s; allow more time with --timeout" in error
