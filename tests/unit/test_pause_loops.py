"""PAUSE-loop exiting: when the time between PAUSEs makes them a loop, and when it exits."""

from itertools import pairwise

import numpy as np
import pytest

from trapgate.decision.condition_rules import rules_for
from trapgate.decision.conditions import parse
from trapgate.decision.criteria_rules import Action
from trapgate.decision.criteria_table import check_table
from trapgate.instructions.intercepts import EXITED, GO_ON, intercept_pause_loop
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm import vmx
from trapgate.sdm.reasons import ExitReason
from trapgate.vmcs.vmcs import Vmcs

GAP, WINDOW = 10, 100


def state(ring: int = 0, *, on: bool = True) -> tuple[np.ndarray, np.ndarray]:
    v, x = np.zeros(f.LENGTH, np.int64), np.zeros(vmx.LENGTH, np.int64)
    v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] = ct.PRIMARY_SECONDARY_CONTROLS
    v[f.SECONDARY_PROCESSOR_BASED_CONTROLS] = ct.SECONDARY_PAUSE_LOOP_EXITING * on
    v[f.GUEST_SS_ACCESS_RIGHTS] = 0x93 | ring << 5
    v[f.PLE_GAP], v[f.PLE_WINDOW] = GAP, WINDOW
    x[vmx.LATEST_PAUSE] = vmx.NEVER
    return v, x


def first_exit(times: list[int], ring: int = 0, *, on: bool = True) -> int | None:
    """The time of the PAUSE that exits."""
    v, x = state(ring, on=on)
    for now in times:
        if intercept_pause_loop(v, x, now, 2) == EXITED:
            assert v[f.EXIT_REASON] == ExitReason.PAUSE
            assert v[f.VM_EXIT_INSTRUCTION_LENGTH] == 2
            return now
        assert v[f.EXIT_REASON] == 0
    return None


@pytest.mark.parametrize("step", [1, 5, 10])
def test_a_loop_exits_behind_its_window(step: int) -> None:
    times = list(range(50, 500, step))
    assert first_exit(times) == next(now for now in times if now - 50 > WINDOW)


def test_a_gap_begins_another_loop() -> None:
    assert first_exit(list(range(0, 5000, GAP + 1))) is None
    times = [*range(0, 100, 10), 101, *range(102, 400, 10)]
    assert all(b - a <= GAP + 1 for a, b in pairwise(times))
    assert first_exit(times) == next(now for now in times if now - 101 > WINDOW)


@pytest.mark.parametrize("ring", [1, 2, 3])
def test_only_ring_0_counts(ring: int) -> None:
    assert first_exit(list(range(0, 500, 2)), ring) is None


def test_without_the_control_nothing_exits() -> None:
    v, x = state(on=False)
    assert [intercept_pause_loop(v, x, now, 2) for now in range(0, 500, 2)] == [GO_ON] * 250
    assert x[vmx.LATEST_PAUSE] == vmx.NEVER


def test_a_criteria_table_leaves_loops_to_the_guest() -> None:
    v, x = state()
    vmcs = Vmcs()
    vmcs.criteria_table = rules_for(parse("reason == PAUSE"), Action.DELIVER)
    v[f.CRITERIA_TABLE_RULES] = vmcs["CRITERIA_TABLE_RULES"]
    v[f.CRITERIA_TABLE_LENGTH] = vmcs["CRITERIA_TABLE_LENGTH"]
    v[f.TABLE_START :] = vmcs.cells[f.TABLE_START :]
    assert check_table(v) == (0, 0)
    assert {intercept_pause_loop(v, x, now, 2) for now in range(0, 500, 2)} == {GO_ON}
