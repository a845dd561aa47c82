"""Two page-fault filters as one in closed form: Python, C, and the check of a vmcs02."""

import ctypes
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from trapgate.cli import app
from trapgate.criteria import (
    PageFaultFilter,
    Party,
    check_vmcs02,
    define,
    kvm_c,
    merge,
    merged,
    parse_spec,
    prove_closed_form,
)
from trapgate.criteria.proofs.closed_form import sketch
from trapgate.vmcs.vmcs import Vmcs

FILTERS = st.builds(
    PageFaultFilter,
    st.integers(0, 1),
    *[st.one_of(st.sampled_from([0, 1, 9, 0x80000000]), st.integers(0, 2**32 - 1))] * 2,
)


def exits(one: PageFaultFilter, code: int) -> bool:
    """Figure 3, written again."""
    hit = code & one.mask == one.match
    return hit if one.bit else not hit


def members(one: PageFaultFilter, bits: int = 3) -> frozenset[int]:
    return frozenset(code for code in range(1 << bits) if exits(one, code))


ALL = [PageFaultFilter(*parts) for parts in product(range(2), range(8), range(8))]


def test_no_filter_of_three_bits_is_better() -> None:
    sets = {one: members(one) for one in ALL}
    for l0, l1 in product(ALL, ALL):
        found = members(merged(l0, l1))
        wanted = sets[l0] | sets[l1]
        assert wanted <= found, (l0, l1)
        assert len(found) == min(len(other) for other in sets.values() if wanted <= other)


@given(FILTERS, FILTERS, st.integers(0, 2**32 - 1), st.integers(0, 31))
def test_nothing_is_lost(l0: PageFaultFilter, l1: PageFaultFilter, code: int, bit: int) -> None:
    result = merged(l0, l1)
    for one in (code, l0.match, l1.match, l0.match ^ 1 << bit, l1.match ^ 1 << bit):
        assert exits(result, one) or not (exits(l0, one) or exits(l1, one))
    assert max(result) < 2**32


def test_the_proof() -> None:
    assert prove_closed_form(3).pairs == 128 * 128


@pytest.mark.slow
def test_the_proof_of_five_bits() -> None:
    assert prove_closed_form().pairs == 2048 * 2048


def test_equal_masks_are_not_enough() -> None:
    l0, l1 = PageFaultFilter(1, 9, 1), PageFaultFilter(0, 9, 1)
    assert sketch(l0, l1) == l0
    code = kvm_c.counterexample_to_sketch(l0, l1)
    assert code == 0
    assert exits(l1, code)
    assert not exits(sketch(l0, l1), code)
    assert members(merged(l0, l1), 5) == set(range(32))
    assert kvm_c.counterexample_to_sketch(l0, PageFaultFilter(1, 9, 1)) is None


needs_compiler = pytest.mark.skipif(kvm_c.compiler() is None, reason="no C compiler")


@needs_compiler
def test_the_test_program_passes_and_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = kvm_c.compiler()
    assert found is not None
    assert kvm_c.run_test_program(found) == Path(found).name
    wrong = kvm_c.TEST_PROGRAM.replace("f.mask = shared;", "f.mask = l0.mask;")
    assert wrong != kvm_c.TEST_PROGRAM
    monkeypatch.setattr(kvm_c, "TEST_PROGRAM", wrong)
    with pytest.raises(Exception, match="says: unsound"):
        kvm_c.run_test_program(found)


@pytest.fixture(scope="module")
def c_function(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = kvm_c.compiler()
    if found is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("c")
    head = kvm_c.TEST_PROGRAM.split("struct vmx_pf_filter", 1)[0]
    call = (
        "void call(u32 *v) { struct vmx_pf_filter a = { v[1], v[2], v[0] }, "
        "b = { v[4], v[5], v[3] }, "
        "f = nested_vmx_merge_pf_filters(a, b); "
        "v[0] = f.eb_pf; v[1] = f.mask; v[2] = f.match; }"
    )
    (folder / "f.c").write_text(head + kvm_c.FUNCTION + call)
    library = folder / "f.so"
    subprocess.run([found, "-O1", "-shared", "-fPIC", "-o", library, folder / "f.c"], check=True)
    return ctypes.CDLL(str(library)).call


@given(l0=FILTERS, l1=FILTERS)
def test_c_says_the_same(c_function: Any, l0: PageFaultFilter, l1: PageFaultFilter) -> None:
    cells = (ctypes.c_uint32 * 6)(*l0, *l1)
    c_function(cells)
    assert tuple(cells)[:3] == tuple(merged(l0, l1))


def vmcs(bitmap: int, mask: int = 0, match: int = 0) -> Vmcs:
    made = Vmcs("vt-x")
    made["EXCEPTION_BITMAP"] = bitmap
    made["PAGE_FAULT_ERROR_CODE_MASK"] = mask
    made["PAGE_FAULT_ERROR_CODE_MATCH"] = match
    return made


def test_a_vmcs02_is_checked() -> None:
    l0, l1 = vmcs(1 << 14, 9, 1), vmcs(1 << 6, 9, 1)
    parties = [Party("l0", l0), Party("l1", l1)]
    found = check_vmcs02(parties, vmcs(1 << 14, 9, 1))
    assert not found.sound
    told = {one.verdict.vector: one for one in found.verdicts}
    assert (told[6].verdict.missed, told[6].losers) == (0, ("l1",))
    assert (told[14].verdict.missed, told[14].losers) == (0, ("l1",))
    whole = check_vmcs02(parties, vmcs(1 << 14 | 1 << 6 | 1 << 13))
    assert whole.sound
    needless = {one.verdict.vector for one in whole.verdicts if one.verdict.needless is not None}
    assert needless == {13}
    assert check_vmcs02(parties, merge(parties).definition_vmcs()).sound


def test_bits_of_no_exception_survive() -> None:
    parties = [Party("l0", vmcs(0xFFFFFFFF)), Party("l1", vmcs(0))]
    result = merge(parties)
    assert result.definition_vmcs()["EXCEPTION_BITMAP"] == 0xFFFFFFFF
    lacking = check_vmcs02(parties, vmcs(0x7FFFFFFF))
    assert (lacking.sound, lacking.missing_bits) == (False, 1 << 31)


def test_a_reason_is_minimal_for_comparisons() -> None:
    spec = parse_spec(
        "bits = 4\n[PF]\nexit = [3, 7, 10, 13, 15]\ndeliver = [1, 2, 4, 5, 8, 9, 11, 12]\n"
    )
    (answer,) = define(spec, "comparison").answers
    assert answer.why_not is not None
    assert (answer.why_not.exits, answer.why_not.delivers) == ((3, 7), (1, 4))


def toml(path: Path, one: Vmcs) -> str:
    fields = ("EXCEPTION_BITMAP", "PAGE_FAULT_ERROR_CODE_MASK", "PAGE_FAULT_ERROR_CODE_MATCH")
    lines = [f"{name} = {one[name]}" for name in fields]
    path.write_text("\n".join(['profile = "vt-x"', "[fields]", *lines]))
    return str(path)


@needs_compiler
def test_the_commands(tmp_path: Path) -> None:
    l0 = toml(tmp_path / "l0.toml", vmcs(1 << 14, 9, 1))
    l1 = toml(tmp_path / "l1.toml", vmcs(0, 9, 1))
    result = CliRunner().invoke(app, ["criteria", "merge", l0, l1, "--format", "kvm-c"])
    assert result.exit_code == 0, result.stderr
    assert "would lose page faults with error code 0x0" in " ".join(
        line.strip(" *") for line in result.stdout.splitlines()
    )
    assert "nested_vmx_merge_pf_filters" in result.stdout
    program = CliRunner().invoke(app, ["criteria", "merge", l0, l1, "--format", "kvm-c-test"])
    assert program.stdout.strip() == kvm_c.TEST_PROGRAM.strip()
    for vmcs02, status in ((vmcs(1 << 14), 0), (vmcs(1 << 14, 9, 1), 1)):
        path = toml(tmp_path / "vmcs02.toml", vmcs02)
        result = CliRunner().invoke(app, ["criteria", "check", l0, l1, path])
        assert result.exit_code == status, result.stdout
    assert "loses 0x0 (not-present page, read, supervisor)" in result.stdout
    result = CliRunner().invoke(app, ["criteria", "merge", l0, l1, l1, "--format", "kvm-c"])
    assert result.exit_code == 2
