"""Random traces and policies for the replay's tests, and a judge that works row by row."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trapgate.decision.decide import DELIVER, EXIT, decide_fault
from trapgate.replay import Policy
from trapgate.sdm.vectors import ERROR_CODE_VECTORS
from trapgate.trace import Trace, TraceWriter
from trapgate.vmcs.vmcs import Vmcs

PTBASE = 0xC0000000


def journal(count: int, seed: int = 1) -> NDArray[np.int64]:
    """Journal rows of all kinds, the recorded disposition at random."""
    random = np.random.default_rng(seed)
    rows = np.zeros((count, 20), np.int64)
    rows[:, 0] = np.arange(count)
    rows[:, 1] = np.cumsum(random.integers(1, 500, count))
    rows[:, 3] = random.choice(
        [14, 14, 14, 13, 6, 1, 3, 8, 10, 11, 12, 17, 21, 2, 0x80, 0x20], count
    )
    vector = rows[:, 3]
    rows[:, 4] = random.choice([3, 3, 3, 3, 3, 5, 6], count)
    rows[vector == 2, 4] = 2
    rows[vector == 0x80, 4] = 4
    rows[vector == 0x20, 4] = 0
    with_code = (ERROR_CODE_VECTORS >> np.minimum(vector, 31) & 1 != 0) & (rows[:, 4] == 3)
    rows[:, 5] = np.where(with_code, random.integers(0, 40, count), -1)
    rows[random.random(count) < 0.02, 5] = -1
    rows[:, 6] = random.integers(0, 2**47, count)
    fault = (vector == 14) & (rows[:, 4] == 3)
    tables = PTBASE + random.integers(0, 1 << 20, count) * 4
    rows[:, 9] = np.where(fault, np.where(random.random(count) < 0.6, tables, rows[:, 6]), 0)
    directory = random.random(count) < 0.1
    rows[fault & directory, 9] = PTBASE + 0x300000 + 8
    has = fault & (random.random(count) < 0.8)
    rows[:, 11] = has
    frame = random.integers(0, 3, count) << 12
    rows[:, 10] = np.where(has, frame | random.integers(0, 8, count), 0)
    rows[:, 17] = np.where(
        has, random.integers(0, 3, count) << 12 | random.integers(0, 8, count), 0
    )
    rows[:, 12] = random.integers(0, 2, count)
    rows[:, 13] = random.choice([0, 1, 2, 14, 15], count, p=[0.4, 0.3, 0.2, 0.05, 0.05])
    rows[:, 15] = random.random(count) < 0.1
    return rows


def write(path: Path, rows: NDArray[np.int64], **options: Any) -> Path:
    with TraceWriter(path, **options) as writer:
        writer.append(rows)
    return path


def random_policy(random: np.random.Generator, name: str, *, extended: bool) -> Policy:
    vmcs = Vmcs("extended" if extended else "vt-x")
    vmcs["EXCEPTION_BITMAP"] = int(random.integers(0, 1 << 32))
    vmcs["PAGE_FAULT_ERROR_CODE_MASK"] = int(random.choice([0, 1, 3, 7, 0x1F]))
    vmcs["PAGE_FAULT_ERROR_CODE_MATCH"] = int(random.integers(0, 32))
    if extended:
        vmcs["TRANSFER_CRITERION"] = int(random.integers(0, 8))
        vmcs["COMPARISON_OPERATOR"] = int(random.integers(0, 6))
        vmcs["TRANSFER_CRITERION_VECTORS"] = int(random.integers(0, 1 << 32)) & ERROR_CODE_VECTORS
        for field in vmcs:
            if field.name.startswith(("VECTOR_", "SECOND_", "ANY_BIT", "COMPARISON_V", "MEMBER_")):
                vmcs[field] = int(random.integers(0, 32))
        vmcs["MEMBERS_USED"] = int(random.integers(0, 256))
        if random.random() < 0.5:
            vmcs["ERROR_CODE_FIELD_WIDTH"] = int(random.integers(1, 6))
            vmcs["ERROR_CODE_FIELD_SHIFT"] = int(random.integers(0, 4))
    return Policy(name, vmcs, judges_interrupts=bool(random.random() < 0.3))


def completes(policy: Policy, row: dict[str, Any]) -> bool | None:
    """The fault filter by the seed's boxes; None if the row does not carry what it asks."""
    if not policy.fault_filter or row["vector"] != 14 or row["error_code"] not in {3, 7}:
        return False
    address, data, old = row["linear_address"], row["data"], row["old_value"]
    if address is None:
        return None
    if address >> 22 != policy.ptbase >> 22:
        return False
    pde = address >> 12 & 0x3FF == policy.ptbase >> 22
    if data is None:
        return None
    if policy.fault_filter == 3:
        return not data & 1
    if pde:
        return False
    if not data & 1:
        return True
    if policy.fault_filter == 1:
        return False
    return bool(old & 1 and old >> 12 == data >> 12 and (not data & 2 or old & 2))


def by_hand(path: Path, policy: Policy) -> dict[str, int]:
    """What the replay has to count, one row at a time, with the processor's own function."""
    counts = dict.fromkeys(
        ("judged", "unjudged", "exits", "deliveries", "completions", "saved", "added"), 0
    )
    with Trace(path) as trace:
        rows = trace.table().to_pylist()
    for row in rows:
        interrupt = row["type"] in {0, 2} and policy.judges_interrupts
        if row["injected"] or not (row["type"] in {3, 5, 6} or interrupt):
            continue
        code = -1 if row["error_code"] is None else row["error_code"]
        verdict, _ = decide_fault(policy.vmcs.cells, row["vector"], row["type"], code)
        if row["reason"] in {"TASK_GATE", "TRIPLE_FAULT"} and not interrupt:
            verdict = EXIT
        if row.get("code_missing") and policy.reads_code(row["vector"]):
            counts["unjudged"] += 1
            continue
        if not interrupt and policy.fault_filter:
            done = completes(policy, row)
            if (policy.order == 3 and verdict == EXIT) or (policy.order == 1 and verdict != EXIT):
                done = False
            if done is None:
                counts["unjudged"] += 1
                continue
            if done:
                verdict = 2
            elif policy.order == 2 and row["vector"] == 14:
                verdict = EXIT
        counts["judged"] += 1
        counts[("exits", "deliveries", "completions")[verdict]] += 1
        was = row["disposition"] == "EXIT"
        counts["saved"] += was and verdict != EXIT
        counts["added"] += verdict == EXIT and not was
    assert DELIVER == 1
    return counts
