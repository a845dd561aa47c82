"""`trapgate vmcs`: statuses, words, JSON, and files that are none."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.debug import foreign_dumps as fd
from tests.debug.test_doctor_reads import fields
from trapgate.cli import app


def vmcs(*words: object, text: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["vmcs", *map(str, words)], input=text)


def sick(tmp_path: Path, name: str = "sick.txt") -> Path:
    path = tmp_path / name
    path.write_text(fd.dmesg(fd.kvm({**fields(), "GUEST_RFLAGS": 0}, new=True)))
    return path


def test_what_enters_is_silence_and_status_0(tmp_path: Path) -> None:
    path = tmp_path / "well.txt"
    path.write_text(fd.dmesg(fd.kvm(fields(), new=True)))
    result = vmcs(path)
    assert result.exit_code == 0
    assert "no check fails of" in result.stdout
    assert "VMCS_LINK_POINTER" in result.stdout.split("not in the dump:")[1]


def test_what_does_not_is_told_and_mended(tmp_path: Path) -> None:
    result = vmcs(sick(tmp_path), "--fix")
    assert result.exit_code == 1
    assert (
        "GUEST_RFLAGS = 0H: bits 63:22, 15, 5 and 3 must be 0 and bit 1 must be 1" in result.stdout
    )
    assert "Checks on Guest RIP, RFLAGS, and SSP" in result.stdout
    assert "RFLAGS was initialised with 0 instead of 2" in result.stdout
    assert "GUEST_RFLAGS: 0H -> 2H" in result.stdout


def test_json_has_it_all(tmp_path: Path) -> None:
    (row,) = json.loads(vmcs(sick(tmp_path), "--fix", "--json").stdout)
    assert row["passes"] is False
    assert [finding["check"] for finding in row["findings"]] == ["rflags-reserved"]
    assert row["findings"][0]["value"] == 0
    assert row["repair"] == {"changes": {"GUEST_RFLAGS": 2}, "still_failing": []}
    assert row["not_checked"]["VMCS_LINK_POINTER"] == 2


def test_standard_input_and_several_files(tmp_path: Path) -> None:
    text = sick(tmp_path).read_text()
    assert vmcs("-", text=text).exit_code == 1
    both = vmcs(sick(tmp_path), sick(tmp_path, "other.txt"))
    assert both.stdout.count("1 check fails") == 2


def test_two_dumps_are_compared(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(fd.as_is(fd.xen({**fields(), "GUEST_CR3": 0x2000})))
    result = vmcs("--diff", sick(tmp_path), other)
    assert result.exit_code == 1
    assert "GUEST_RFLAGS: 0H / 246H" in result.stdout
    assert "GUEST_CR3" in result.stdout
    assert vmcs("--diff", other, other).exit_code == 0


@pytest.mark.parametrize("mode", ["long-mode", "protected-mode", "real-mode"])
def test_new_ones_pass(mode: str) -> None:
    text = vmcs("--new", mode).stdout
    assert "GUEST_CS_ACCESS_RIGHTS = 0x" in text
    assert vmcs("-", text=text).exit_code == 0


def test_the_processor_may_be_told(tmp_path: Path) -> None:
    path = tmp_path / "wide.txt"
    path.write_text(fd.as_is(fd.kvm({**fields(), "GUEST_CR3": 1 << 45}, new=True)))
    assert vmcs(path).exit_code == 0
    assert vmcs(path, "--maxphyaddr", 39).exit_code == 1
    told = tmp_path / "cpu.txt"
    told.write_text("address sizes : 39 bits physical, 48 bits virtual\n0x481: 7f00000016\n")
    assert vmcs(path, "--capabilities", told).exit_code == 1


def test_a_file_of_the_product_s_own(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('profile = "vt-x"\n[fields]\nGUEST_RFLAGS = 0\n')
    result = vmcs(path)
    assert result.exit_code == 1
    assert "GUEST_RFLAGS = 0H" in result.stdout


@pytest.mark.parametrize("content", [b"", b"\0\xff" * 4096, b"nothing here\n", b"CR0: actual="])
def test_what_is_no_dump_is_said_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "none.bin"
    path.write_bytes(content)
    result = vmcs(path)
    assert result.exit_code == 2
    assert "contains no VMCS" in result.stderr
    assert result.stderr.count("\n") == 1


def test_misuse_is_said_in_one_line(tmp_path: Path) -> None:
    for words in (
        [tmp_path / "absent"],
        ["--diff", sick(tmp_path)],
        [],
        [sick(tmp_path), "--capabilities", sick(tmp_path, "b")],
    ):
        result = vmcs(*words)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1


def test_bochs_own_word_is_repeated_where_there_is_no_vmcs(tmp_path: Path) -> None:
    path = tmp_path / "bochsout.txt"
    path.write_text(
        "00000012i[CPU0 ] x\n00000099e[CPU0 ] VMFAIL: VMCS host TR BASE non canonical\n"
    )
    result = vmcs(path)
    assert result.exit_code == 2
    assert "VMFAIL: VMCS host TR BASE non canonical" in result.stderr


def test_a_dump_may_be_cut_short_and_in_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "half.txt"
    whole = sick(tmp_path).read_text()
    path.write_bytes(whole[: whole.index("*** Host State")].encode("utf-16"))
    result = vmcs(path)
    assert result.exit_code == 1
    assert "GUEST_RFLAGS = 0H" in result.stdout
    assert "the dump has no part Host State" in result.stdout
    assert "the dump has no part Control State" in result.stdout
    assert "PIN_BASED_CONTROLS" in result.stdout.split("not in the dump:")[1]
