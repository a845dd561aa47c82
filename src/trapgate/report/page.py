"""One self-contained page about a trace: it opens offline and asks for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trapgate.replay.judge import Columns, verdict
from trapgate.replay.policy import Policy
from trapgate.replay.replay import replay
from trapgate.replay.result import CostModel
from trapgate.report.chains import chains
from trapgate.report.cube import DELIVER, EXIT, STAYS, Progress, cube_of, no_progress
from trapgate.report.template import fill
from trapgate.sdm.vectors import PF, ROWS, VECTORS_WITH_ERROR_CODE
from trapgate.trace.code_words import (
    code_words,
    cube_words,
    cubes_of,
    held,
    karnaugh,
    page_fault_words,
    pattern,
)
from trapgate.trace.document import Square
from trapgate.trace.draft import draft
from trapgate.trace.frames import lost_events, polars
from trapgate.trace.reader import Trace
from trapgate.trace.symbols import Symbols

if TYPE_CHECKING:
    from polars import DataFrame

TRUTH_BITS = 5
"""Low bits of a page fault's error code that a truth table shows: P, W, U, RSVD, ID."""


def report(
    traces: Sequence[Path],
    out: Path,
    *,
    policies: Sequence[Policy] = (),
    symbols: Symbols | None = None,
    model: CostModel | None = None,
    title: str = "",
    progress: Progress | None = None,
) -> int:
    """Write the page `out` about `traces`; returns its size in bytes (under 1 MB).

    Each of `policies` is set beside the recorded run; `symbols` names addresses. `progress` is
    told what is being done, and what share (0 to 1) of the work that begins at.

    Raises: TraceError for files that are not traces, or hold no event, symbols that do not
    match, or a page that cannot be written.
    """
    say = progress or no_progress
    cube = cube_of(traces, policies, symbols=symbols, progress=say)
    found_chains = chains(
        traces, progress=lambda share: say("chains of nested faults", 0.7 + 0.2 * share)
    )
    data: dict[str, Any] = {
        "title": title or ", ".join(path.name for path in traces),
        "facts": _facts(traces),
        "named": symbols is not None,
        "cube": cube.as_json(),
        "chains": found_chains,
        "policies": [],
        "truth": None,
        "words": _words([*cube.labels["code"], *_coded(found_chains)]),
        "lost": lost_events(traces),
    }
    if policies:
        say("policies", 0.9)
        found = replay(traces, policies, model=model)
        data["policies"] = [outcome.as_json() for outcome in found.outcomes]
        if any(policy.judges_exceptions for policy in policies):
            data["truth"] = truth(policies)
    say("the page", 1.0)
    page = fill("trapgate.report", "Trapgate report", "trace", data).encode()
    with draft(out, "report") as temporary:
        temporary.write_bytes(page)
    return len(page)


def _facts(traces: Sequence[Path]) -> list[list[str]]:
    facts = []
    for path in traces:
        with Trace(path) as trace:
            facts.append(["file", path.name])
            facts += [[key, value] for key, value in trace.run.items()]
            if not trace.complete:
                facts.append(["complete", "no: its writer was stopped"])
    return facts[:60]


def truth(policies: Sequence[Policy]) -> dict[str, Any]:
    """What each policy says: of page faults rows of codes that fare the same (a dash is a bit
    that does not matter) and every code for the grids; of other vectors those that fare the
    same together. Other vectors are asked with error code 0, where they have one.
    """
    pl = polars()
    codes = list(range(1 << TRUTH_BITS))
    others = [int(row) for row in ROWS if row not in {PF, 2}]
    frame = pl.DataFrame(
        {
            "vector": [PF] * len(codes) + others,
            "error_code": codes + [0 if v in VECTORS_WITH_ERROR_CODE else None for v in others],
        },
        schema={"vector": pl.UInt8, "error_code": pl.UInt32},
    ).with_columns(
        pl.lit(3, pl.UInt8).alias("type"),
        pl.lit(value=False).alias("injected"),
        pl.lit(value=False).alias("reflected"),
        pl.lit("").alias("reason"),
        pl.lit(0, pl.UInt64).alias("linear_address"),
        pl.lit(0, pl.UInt64).alias("data"),
        pl.lit(0, pl.UInt64).alias("old_value"),
    )
    columns = [_said(frame, policy) for policy in policies]
    said = list(zip(*columns, strict=True))
    groups: dict[tuple[int, ...], list[int]] = {}
    for code in codes:
        groups.setdefault(said[code], []).append(code)
    rows: list[dict[str, Any]] = [
        {
            "label": f"#PF {pattern(cube, TRUTH_BITS)}",
            "words": cube_words(cube),
            "events": [f"#PF {code:#x}" for code in sorted(held(cube, TRUTH_BITS))],
            "said": list(answer),
        }
        for answer, members in groups.items()
        for cube in cubes_of(members, TRUTH_BITS)
    ]
    vectors: dict[tuple[int, ...], list[str]] = {}
    for number, vector in enumerate(others, len(codes)):
        vectors.setdefault(said[number], []).append(f"#{ROWS[vector].vector.name}")
    rows += [
        {
            "label": ", ".join(names) if len(names) < 5 else "all other exceptions",
            "words": "" if len(names) < 5 else ", ".join(names),
            "events": names,
            "said": list(answer),
        }
        for answer, names in vectors.items()
    ]
    return {"rows": rows, "grid": grid([said[code] for code in codes])}


def grid(said: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The codes in the order of a Karnaugh map, with what every policy says of each."""

    def square(code: int) -> Square:
        return Square(str(code), page_fault_words(code), "")

    made = karnaugh("", square, TRUTH_BITS)
    cells = [[int(one.short) for one in squares] for _, squares in made.rows]
    return {
        "columns": list(made.columns),
        "rows": [name for name, _ in made.rows],
        "codes": cells,
        "words": {str(code): page_fault_words(code) for row in cells for code in row},
        "said": [list(one) for one in said],
    }


def _said(frame: DataFrame, policy: Policy) -> list[int]:
    if not policy.judges_exceptions:
        return [STAYS] * frame.height
    pl = polars()
    found = verdict(policy, Columns(codes_missing=False))
    number = pl.when(found.exits).then(EXIT).otherwise(DELIVER)
    numbers: list[int] = frame.select(number.alias("n"))["n"].to_list()
    return numbers


def _coded(chains_found: Sequence[dict[str, Any]]) -> list[str]:
    steps = [step for chain in chains_found for step in chain["steps"]]
    return [f"{step['vector']} {step['code']}" for step in steps]


def _words(labels: Sequence[str]) -> dict[str, str]:
    """What the codes of a dimension mean."""
    found = {}
    for label in labels:
        name, _, code = label.partition(" 0x")
        vector = next((n for n, row in ROWS.items() if f"#{row.vector.name}" == name), None)
        if code and vector is not None:
            words = code_words(int(vector), int(code, 16))
            if words:
                found[label] = words
    return found
