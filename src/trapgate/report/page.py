"""One self-contained page about a trace: it opens offline and asks for nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trapgate.replay.judge import Columns, verdict
from trapgate.replay.policy import Policy
from trapgate.replay.replay import replay
from trapgate.replay.result import CostModel
from trapgate.report.chains import chains
from trapgate.report.cube import DELIVER, EXIT, cube_of
from trapgate.sdm.pagefault import PageFaultCode
from trapgate.sdm.vectors import PF, ROWS, VECTORS_WITH_ERROR_CODE
from trapgate.trace.draft import draft
from trapgate.trace.frames import polars
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
) -> int:
    """Write the page `out` about `traces`; returns its size in bytes (under 5 MB).

    Each of `policies` is set beside the recorded run; `symbols` names addresses.

    Raises: TraceError for files that are no traces, or hold no event, symbols that do not
    match, or a page that cannot be written.
    """
    cube = cube_of(traces, policies, symbols=symbols)
    data: dict[str, Any] = {
        "title": title or ", ".join(path.name for path in traces),
        "facts": _facts(traces),
        "named": symbols is not None,
        "cube": cube.as_json(),
        "chains": chains(traces),
        "policies": [],
        "truth": [],
    }
    if policies:
        found = replay(traces, policies, model=model)
        data["policies"] = [outcome.as_json() for outcome in found.outcomes]
        data["truth"] = truth(policies)
    page = render(data).encode()
    with draft(out, "report") as temporary:
        temporary.write_bytes(page)
    return len(page)


def render(data: dict[str, Any]) -> str:
    """The page with `data` in it."""
    folder = files("trapgate.report")
    # A "<" in a string must not end the script element.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    page = (folder / "page.html").read_text(encoding="utf-8")
    for name, content in (
        ("style", (folder / "page.css").read_text(encoding="utf-8")),
        ("script", (folder / "page.js").read_text(encoding="utf-8")),
        ("data", text),
    ):
        page = page.replace(f"/*{name}*/", content, 1)
    return page


def _facts(traces: Sequence[Path]) -> list[list[str]]:
    facts = []
    for path in traces:
        with Trace(path) as trace:
            facts.append(["file", path.name])
            facts += [[key, value] for key, value in trace.run.items()]
            if not trace.complete:
                facts.append(["complete", "no: its writer was stopped"])
    return facts[:60]


def truth(policies: Sequence[Policy]) -> list[dict[str, Any]]:
    """For each page-fault error code, and each other vector, what each policy says.

    Other vectors are asked with error code 0, where they have one.
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
        pl.lit("").alias("reason"),
        pl.lit(0, pl.UInt64).alias("linear_address"),
        pl.lit(0, pl.UInt64).alias("data"),
        pl.lit(0, pl.UInt64).alias("old_value"),
    )
    said = [_said(frame, policy) for policy in policies]
    rows = []
    for number in range(frame.height):
        vector, code = frame.row(number)[:2]
        is_fault = vector == PF
        rows.append(
            {
                "vector": f"#{ROWS[vector].vector.name}",
                "code": f"{code:#x}" if is_fault else "",
                "bits": _bits(code) if is_fault else "",
                "said": [column[number] for column in said],
            }
        )
    return rows


def _said(frame: DataFrame, policy: Policy) -> list[int]:
    pl = polars()
    found = verdict(policy, Columns(codes_missing=False))
    number = pl.when(found.exits).then(EXIT).otherwise(DELIVER)
    numbers: list[int] = frame.select(number.alias("n"))["n"].to_list()
    return numbers


def _bits(code: int) -> str:
    names = [flag.name or "" for flag in PageFaultCode if flag < 1 << TRUTH_BITS and code & flag]
    return " ".join(names) or "-"
