"""Criteria tables on columns say what each fault's values say, nothing where they are unknown."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.conformance.self_mapped_guest import CODE, TWO_LEVEL
from tests.replay.test_filters_closed_loop import run
from tests.replay.traces import journal, write
from trapgate.cli import app
from trapgate.decision.condition_rules import holds, rules_for
from trapgate.decision.conditions import parse
from trapgate.decision.criteria_rules import Action, Rule
from trapgate.replay import Policy, replay
from trapgate.replay.tables import UNDECIDED, action_of, missing
from trapgate.trace import TraceWriter
from trapgate.vmcs.file import parse_settings

pl = pytest.importorskip("polars")

WORD = (1 << 64) - 1
SCHEMA = {
    "vector": pl.UInt8,
    "type": pl.UInt8,
    "error_code": pl.UInt32,
    "code_missing": pl.Boolean,
    "rip": pl.UInt64,
    "cpl": pl.UInt8,
    "cr3": pl.UInt64,
    "depth": pl.UInt8,
    "linear_address": pl.UInt64,
    "data": pl.UInt64,
    "old_value": pl.UInt64,
    "interrupted_vector": pl.UInt8,
    "table_entry": pl.UInt8,
    "entry_size": pl.UInt8,
    "table_byte": pl.UInt8,
    "frame_byte": pl.UInt8,
}

numbers = st.one_of(st.integers(0, 15), st.integers(0, WORD), st.sampled_from([1 << 63, WORD]))


@st.composite
def conditions(draw: st.DrawFn) -> str:
    """A clause or two, of every operator."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(WIDTHS)))
        width = WIDTHS[name]
        low, high = sorted(draw(numbers) & (1 << width) - 1 for _ in range(2))
        mask = draw(numbers) & (1 << width) - 1
        text = draw(st.sampled_from(FORMS)).format(n=name, a=low, b=high, m=mask)
        parts.append(f"not ({text})" if draw(st.booleans()) else text)
    return " and ".join(parts)


FORMS = (
    *("{n} == {a}", "{n} < {b}", "{n} <= {a}", "{a} <= {n} <= {b}"),
    *("{n} & {m} != 0", "{n} & {m} == {m}", "{n} in ({a}, {b})"),
)
WIDTHS = {
    "vector": 8,
    "type": 3,
    "code": 32,
    "depth": 8,
    "address": 64,
    "page": 52,
    "rip": 64,
    "page_offset": 12,
    "cpl": 2,
    "cr3": 64,
    "page_fault_code": 32,
    "selector_index": 13,
    "interrupted_vector": 8,
    "rsp": 64,
    "walk_level": 3,
    "table_entry": 2,
    "old_entry": 64,
    "new_entry": 64,
    "set_bits": 64,
    "cleared_bits": 64,
    "new_frame": 28,
    "new_frame_type": 8,
}
TABLE_WRITES = (3, 7, 0x4003, 0x4007)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    vector, kind = draw(st.sampled_from([(14, 3), (13, 3), (6, 3), (3, 6), (128, 4), (48, 0)]))
    lacks = draw(st.booleans())
    codes = st.integers(0, 31) | st.sampled_from(TABLE_WRITES)
    code = draw(codes) if kind == 3 and vector in (13, 14) and not lacks else None
    writes = code in TABLE_WRITES and vector == 14
    data = draw(st.none() | numbers) if writes else None
    # Traces of earlier versions do not tell how wide an entry is, nor of which table.
    told = data is not None and draw(st.booleans())
    mapped = code in (0x4003, 0x4007) and writes and (told or data is None) and draw(st.booleans())
    return {
        "vector": vector,
        "type": kind,
        "error_code": code,
        "code_missing": True if lacks and kind == 3 and vector in (13, 14) else None,
        "rip": draw(numbers),
        "cpl": draw(st.sampled_from([0, 3])),
        "cr3": draw(numbers),
        "depth": draw(st.integers(0, 1)),
        "linear_address": draw(st.none() | numbers) if vector == 14 else None,
        "data": data,
        "old_value": draw(numbers) if writes else None,
        "table_entry": draw(st.sampled_from([1, 2])) if told else None,
        "entry_size": draw(st.sampled_from([4, 8])) if told else None,
        "table_byte": draw(st.integers(0, 255)) if mapped else None,
        "frame_byte": draw(st.integers(0, 255)) if mapped and told else None,
        "interrupted_vector": draw(st.none() | st.just(14)),
    }


UNKNOWN: Any = object()


def known_of(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says of each value: a number, None for a value that it lacks, or UNKNOWN."""
    page_fault = (row["vector"], row["type"]) == (14, 3)
    code = UNKNOWN if row["code_missing"] else row["error_code"]
    address = UNKNOWN if row["linear_address"] is None else row["linear_address"]
    write = page_fault and (code is UNKNOWN or code in TABLE_WRITES)
    data = row["data"]
    if data is None and row["table_byte"] is not None:
        write = False
    entry = UNKNOWN if write else None
    old: Any = row["old_value"] if write and data is not None else entry
    new: Any = data if write and data is not None else entry
    both = old is not UNKNOWN and new is not UNKNOWN and write
    met = row["interrupted_vector"]
    return {
        "vector": row["vector"],
        "type": row["type"],
        "code": code,
        "depth": row["depth"],
        "address": address if page_fault else None,
        "page": (address if address is UNKNOWN else address >> 12) if page_fault else None,
        "page_offset": (address if address is UNKNOWN else address & 0xFFF) if page_fault else None,
        "rip": row["rip"],
        "cpl": row["cpl"],
        "cr3": row["cr3"],
        "page_fault_code": code if page_fault else None,
        "selector_index": (code if code is UNKNOWN else code >> 3)
        if (row["vector"], row["type"]) == (13, 3)
        else None,
        "interrupted_vector": met if met is not None else (UNKNOWN if row["depth"] else None),
        "rsp": UNKNOWN,
        "walk_level": UNKNOWN if page_fault else None,
        "table_entry": entry if row["table_entry"] is None else row["table_entry"],
        "old_entry": old,
        "new_entry": new,
        "set_bits": new & ~old if both else entry,
        "cleared_bits": old & ~new if both else entry,
        **_frame_of(row, entry),
    }


def _frame_of(row: dict[str, Any], entry: Any) -> dict[str, Any]:
    """What a row says of the frame that a new entry leads to; `entry` if nobody knows of one."""
    data, size = row["data"], row["entry_size"]
    by_map = row["error_code"] is None or row["error_code"] & 0x4000 != 0
    if data is None:
        return {"new_frame": entry, "new_frame_type": entry if by_map else None}
    if data & 1 == 0:
        return {"new_frame": None, "new_frame_type": None}
    number = data >> 12 & ((1 << 40) - 1 if size == 8 else (1 << 20) - 1)
    byte = UNKNOWN if row["frame_byte"] is None else row["frame_byte"]
    return {
        "new_frame": UNKNOWN if size is None else number,
        "new_frame_type": byte if by_map else None,
    }


def possible(rules: list[Rule], known: dict[str, Any]) -> set[int]:
    """What the table may do, when each clause over what is unknown may hold or not."""
    found = set()
    for rule in rules:
        unknown = [clause for clause in rule.clauses if known[clause.value.name] is UNKNOWN]
        told = [clause for clause in rule.clauses if clause not in unknown]
        if all(holds(clause, lambda value: known[value.name]) for clause in told):
            found.add(int(rule.action))
            if not unknown:
                return found
    return found | {int(Action.NEXT)}


@given(
    st.lists(st.tuples(conditions(), st.sampled_from(Action)), min_size=1, max_size=3),
    st.lists(rows()),
)
def test_columns_say_what_the_values_of_each_row_say(
    table: list[tuple[str, Action]], faults: list[dict[str, Any]]
) -> None:
    rules = [rule for text, action in table for rule in rules_for(parse(text), action)]
    frame = pl.DataFrame(faults, schema=SCHEMA)
    said = frame.with_columns(action_of(rules).alias("action"))["action"].to_list()
    for row, action in zip(faults, said, strict=True):
        outcomes = possible(rules, known_of(row))
        assert outcomes == {action} or (action == UNDECIDED and len(outcomes) > 1), row


TABLES = {
    "figure 8": """
        [[rules]]
        when = "table_entry == 1 and not present(new_entry)"
        then = "complete"
        [[rules]]
        when = '''table_entry == 1 and present(old_entry)
            and set_bits & 0xFFFFF002 == 0 and cleared_bits & 0xFFFFF000 == 0'''
        then = "complete"
    """,
    "by place and data": f"""
        [[rules]]
        when = "rip < {CODE + 0x80:#x} and bit(new_entry, 5)"
        then = "exit"
        [[rules]]
        when = "address in ({TWO_LEVEL.tables:#x}, {TWO_LEVEL.tables + 8:#x}) and cpl == 0"
        then = "next"
        [[rules]]
        when = "page_offset & 4 != 0 and table_entry == 1"
        then = "complete"
    """,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_replay_of_a_run_without_a_table_tells_the_run_with_it(tmp_path: Path, name: str) -> None:
    with TraceWriter(tmp_path / "run.parquet") as writer:
        run(0, writer, FAULT_FILTER=0)
    text = f'[controls]\nexceptions = ["PF"]\n[fields]\nPTBASE = 0xC0000000\n{TABLES[name]}'
    parsed = parse_settings(text)
    policy = Policy.from_settings(name, parsed)
    (alone,) = replay([tmp_path / "run.parquet"], [policy]).outcomes
    plain = Policy.of("all", vectors=[14])
    together = replay([tmp_path / "run.parquet"], [plain, policy]).outcomes
    assert (alone.exits, alone.completions, alone.saved) == (
        together[1].exits,
        together[1].completions,
        together[1].saved,
    )
    assert together[0].exits == 80
    counts, _ = run(0, None, rules=parsed.rules or (), FAULT_FILTER=0)
    assert counts == [alone.exits, alone.deliveries, alone.completions]
    assert alone.unjudged == 0
    assert alone.completions > 10
    assert alone.exits > 10


def test_what_no_trace_has_is_told_not_guessed(tmp_path: Path) -> None:
    trace = write(tmp_path / "own.parquet", journal(500))
    file = tmp_path / "stack.toml"
    file.write_text(
        '[[rules]]\nwhen = "vector == PF and below_stack <= 64 and mode == mode_64_bit"\n'
        'then = "deliver"\n[[rules]]\nwhen = "vector == PF"\nthen = "exit"\n'
    )
    policy = Policy.load(file)
    assert missing(policy.rules) == ("mode", "below_stack")
    (said,) = replay([trace], [policy]).outcomes
    faults = pl.read_parquet(trace).filter(
        (pl.col("vector") == 14)
        & (pl.col("type") == 3)
        & ~pl.col("injected")
        & ~pl.col("reason").cast(pl.String).is_in(["TASK_GATE", "TRIPLE_FAULT", "EPT"])
    )
    assert said.unjudged == len(faults) > 0
    result = CliRunner().invoke(app, ["replay", str(trace), "--policy", str(file)])
    assert result.exit_code == 0, result.output
    shown = " ".join(result.output.split())
    assert "rule 0 asks for mode, below_stack, which traces do not have" in shown
