"""Compiled and interpreted decisions agree, and page faults agree with figure 3's text."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapgate.decision.decide import decide_fault
from trapgate.decision.rules import SCHEMES, mapped_code, mapped_field
from trapgate.vmcs.vmcs import Vmcs

words = st.one_of(st.integers(0, 15), st.integers(0, 0xFFFFFFFF))


@given(control=st.booleans(), mask=words, match=words, code=words)
def test_page_faults_as_in_the_sdm(control: bool, mask: int, match: int, code: int) -> None:
    vmcs = Vmcs("vt-x")
    vmcs["EXCEPTION_BITMAP"] = control << 14
    vmcs["PAGE_FAULT_ERROR_CODE_MASK"] = mask
    vmcs["PAGE_FAULT_ERROR_CODE_MATCH"] = match
    # "If equality holds, a VM exit occurs if bit 14 is 1; if not, if it is 0."
    expected = control if (code & mask) == match else not control
    assert (decide_fault(vmcs.cells, 14, 3, code)[0] == 0) == expected


@st.composite
def extended(draw: st.DrawFn) -> tuple[Vmcs, str, int, int]:
    name = draw(st.sampled_from(list(SCHEMES)))
    vector = draw(st.sampled_from([8, 10, 11, 12, 13, 14, 17, 21]))
    vmcs = Vmcs()
    vmcs["EXCEPTION_BITMAP"] = draw(words)
    vmcs["TRANSFER_CRITERION"] = SCHEMES[name].criterion
    vmcs["COMPARISON_OPERATOR"] = SCHEMES[name].operator
    vmcs["TRANSFER_CRITERION_VECTORS"] = 1 << vector
    for field in SCHEMES[name].fields_for(vector):
        vmcs[field] = draw(words) if field != "MEMBERS_USED" else draw(st.integers(0, 255))
    width = draw(st.integers(0, 32))
    vmcs["ERROR_CODE_FIELD_WIDTH"] = width
    vmcs["ERROR_CODE_FIELD_SHIFT"] = draw(st.integers(0, 32 - width if 0 < width < 32 else 0))
    return vmcs, name, vector, draw(words)


@given(case=extended())
def test_decide_evaluates_the_selected_rule(case: tuple[Vmcs, str, int, int]) -> None:
    vmcs, name, vector, code = case
    scheme = SCHEMES[name]
    width = vmcs["ERROR_CODE_FIELD_WIDTH"] or 32
    window, scale = (1 << width) - 1, 1 << vmcs["ERROR_CODE_FIELD_SHIFT"]
    fields = [
        vmcs[field] if field == "MEMBERS_USED" else mapped_field(vmcs[field], window, scale)
        for field in scheme.fields_for(vector)
    ]
    control = bool(vmcs["EXCEPTION_BITMAP"] >> vector & 1)
    expected = scheme.function(control, True, mapped_code(code, window, scale), *fields)
    assert (decide_fault(vmcs.cells, vector, 3, code)[0] == 0) == expected


@pytest.fixture(scope="module")
def compiled_decide() -> Any:
    from trapgate.compiler.program import alone

    return alone(decide_fault)


@given(case=extended(), kind=st.integers(0, 7), without=st.booleans())
def test_compiled_decisions_are_the_same(
    compiled_decide: Any, case: tuple[Vmcs, str, int, int], kind: int, without: bool
) -> None:
    vmcs, _, vector, code = case
    arguments = (vector, kind, -1 if without else code)
    before = np.array(vmcs.cells)
    assert compiled_decide(vmcs.cells, *arguments) == decide_fault(vmcs.cells, *arguments)
    assert np.array_equal(vmcs.cells, before)
