"""`trapgate replay`: what other policies would have done to a recorded trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trapgate.cli.documents import HtmlOption, MarkdownOption, shown
from trapgate.cli.names import BitmapOption, SymbolsOption, names_for
from trapgate.cli.selection import (
    LevelOption,
    RipOption,
    TimeOption,
    VcpuOption,
    VmOption,
    selection,
)
from trapgate.cli.terminal import fail, one_line_errors, plain, terminal

if TYPE_CHECKING:
    from trapgate.replay import CostModel, Outcome, Replay
    from trapgate.replay.replay import Tally
    from trapgate.trace.selection import Selection

EXAMPLES = """
Examples:

  trapgate replay host.parquet --policy writes.toml --policy none.toml

  trapgate replay *.parquet --policy writes.toml --sweep P,W,U --keep 3:3

  trapgate replay *.parquet --policy writes.toml --cluster local

  trapgate replay host.parquet --controls --level 1

  trapgate replay host.parquet --policy no-hlt-exiting.toml --html replay.html
"""


def replay(
    trace: Annotated[list[Path], typer.Argument(help="Traces, counted together.")],
    policy: Annotated[
        list[Path] | None, typer.Option(help="VMCS file of a policy (repeatable).")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(help="Try all masks over these error-code bits of page faults: P,W,U or 0x7."),
    ] = None,
    sweep_when: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help='Try all conjunctions of such conditions and their opposites: "cpl == 3" '
            "(repeatable, up to 4).",
        ),
    ] = None,
    both: Annotated[
        bool, typer.Option("--both", help="Sweep with bit 14 of the bitmap clear, too.")
    ] = False,
    keep: Annotated[
        str | None,
        typer.Option(help="In a sweep, page faults with this MASK:MATCH must keep exiting."),
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(help="Cost of an exit as LOW:TYPICAL:HIGH ns, if the trace has no latencies."),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Count with Ray: `local`, or ray://HOST:PORT.")
    ] = None,
    controls: Annotated[
        bool,
        typer.Option("--controls", help="List all exits by the control that causes them."),
    ] = False,
    lost: Annotated[
        bool,
        typer.Option(
            "--lost",
            help="Also by vector: exceptions saved, and those that the VMM did not just reflect.",
        ),
    ] = False,
    bursts: Annotated[
        bool,
        typer.Option(
            "--bursts", help="Also give intervals for exits in bursts (a block bootstrap)."
        ),
    ] = False,
    level: LevelOption = None,
    vm: VmOption = None,
    vcpu: VcpuOption = None,
    time: TimeOption = ":",
    rip: RipOption = ":",
    top: Annotated[int, typer.Option(min=1, help="Number of policies of a sweep to show.")] = 20,
    symbols: SymbolsOption = None,
    bitmap: BitmapOption = None,
    markdown: MarkdownOption = False,
    html: HtmlOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Replay a trace under other policies: exits saved and added, and time saved."""
    with one_line_errors():
        chosen = selection(level, vm, vcpu, time, rip)
    if controls:
        if policy or sweep is not None or cluster is not None or bursts or lost:
            raise fail("--controls lists all exits, whatever the policy; leave out --policy")
        _controls(trace, chosen, as_json=as_json, markdown=markdown, html=html)
        return
    if not policy and sweep is None and not sweep_when:
        raise fail("no policy: give --policy FILE, --sweep BITS, --sweep-when, or --controls")
    if sweep is not None and sweep_when:
        raise fail("--sweep and --sweep-when are families of their own: give one of the two")
    if cluster is not None and not chosen.is_all:
        raise fail("--cluster counts whole traces: leave --level, --vm, --vcpu, --time, --rip out")
    if lost and (sweep is not None or sweep_when or not chosen.is_all):
        raise fail("--lost judges whole traces by --policy: leave --sweep and selections out")
    model = _model(cost)
    bits = None if sweep is None else _bits(sweep)
    kept = None if keep is None else _pair(keep)
    if kept is not None and bits is None and not sweep_when:
        raise fail("--keep is for --sweep: give both")
    with one_line_errors():
        from trapgate import replay as replaying
        from trapgate.decision.conditions import ConditionError
        from trapgate.replay.cluster import on_cluster
        from trapgate.vmcs.vmcs import Vmcs

        names = names_for(symbols, bitmap)
        policies = [replaying.Policy.load(path, names) for path in policy or ()]
        tallied: Tally | None = None
        if cluster is not None:
            if cluster != "local" and not cluster.startswith("ray://"):
                raise fail(f"--cluster: {cluster!r} is neither local nor ray://HOST:PORT")
            tallied = on_cluster(cluster)
        if bits is not None or sweep_when:
            family: replaying.Family | replaying.ConditionFamily
            try:
                if sweep_when:
                    plain = replaying.Policy("base", Vmcs())
                    base = policies[0] if policies else plain
                    family = replaying.ConditionFamily(tuple(sweep_when), base, names)
                else:
                    base = policies[0] if policies else replaying.Policy.of("base", vectors=[14])
                    family = replaying.Family(bits or 0, base, both)
            except (ValueError, ConditionError) as error:
                option = "--sweep-when" if sweep_when else "--sweep"
                raise fail(f"{option}: {error}") from None
            result = replaying.sweep(
                trace, family, keep=kept, model=model, tallied=tallied, chosen=chosen
            )
        else:
            result = replaying.replay(trace, policies, model=model, tallied=tallied, chosen=chosen)
            if lost:
                from trapgate.replay.needs import with_lost_exceptions

                result = with_lost_exceptions(result, trace, policies)
        intervals = {}
        if bursts:
            from trapgate.replay.bursts import burst_interval

            intervals = {one.name: burst_interval(trace, one, chosen) for one in policies}
    with one_line_errors():
        if shown(result.document, markdown=markdown, html=html):
            return
    if as_json:
        document = result.as_json()
        document["bursts"] = intervals
        print(json.dumps(document, indent=2))
    else:
        _show(result, top)
        _show_bursts(intervals, result.time_unit)


def _numbers(text: str, count: int) -> list[int] | None:
    try:
        found = [int(part, 0) for part in text.split(":")]
    except ValueError:
        return None
    return found if len(found) == count else None


def _model(text: str | None) -> CostModel | None:
    from trapgate.replay.result import CostModel

    if text is None:
        return None
    try:
        return CostModel(*_numbers(text, 3) or (1, 0, 0))
    except ValueError:
        raise fail(
            f"--cost: {text!r} is not LOW:TYPICAL:HIGH in nanoseconds, like 800:1500:6000"
        ) from None


def _pair(text: str) -> tuple[int, int]:
    found = _numbers(text, 2)
    if found is None or not all(0 <= number < 1 << 32 for number in found):
        raise fail(f"--keep: {text!r} is not MASK:MATCH, like 0x3:0x3")
    return found[0], found[1]


def _bits(text: str) -> int:
    from trapgate.sdm.pagefault import PageFaultCode

    try:
        return int(text, 0)
    except ValueError:
        pass
    bits = 0
    for name in text.upper().split(","):
        if name.strip() not in PageFaultCode.__members__:
            known = ",".join(PageFaultCode.__members__)
            raise fail(f"--sweep: no bit {name!r}; give some of {known}, or a number")
        bits |= PageFaultCode[name.strip()]
    return bits


def _show(result: Replay, top: int) -> None:
    out = terminal()
    first = result.outcomes[0]
    asked = f" ({result.chosen})" if result.chosen else ""
    out.print(f"{first.rows:,} events in {len(result.traces)} trace(s){asked}")
    if result.lost:
        out.print(f"the recorder lost {result.lost:,} events: they are in no count")
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("policy", overflow="fold")
    lost = first.lost is not None
    completes = any(outcome.completions for outcome in result.outcomes)
    titles = ["exits", "delivered", *(["completed"] if completes else []), "unjudged", "saved"]
    titles += ["added", *(["lost"] if lost else []), f"time saved ({first.time.unit})", "interval"]
    for title in titles:
        table.add_column(title, justify="right")
    for outcome in result.outcomes[:top]:
        table.add_row(*_cells(outcome, lost=lost, completes=completes))
    out.print(table)
    if len(result.outcomes) > top:
        out.print(f"({len(result.outcomes) - top:,} more; --top shows them)")
    out.print(
        f"\nrecorded: {first.recorded_exits:,} exits of judged events; {first.outside:,} events "
        f"that no policy judges ({first.outside_exits:,} of them exits)"
    )
    out.print(f"time {first.time.words}")
    if any(outcome.unjudged_exits for outcome in result.outcomes[:top]):
        out.print("saved: from none to all of the unjudged exits; times are of the others")
    for outcome in result.outcomes[:top]:
        _show_reasons(outcome)
    for outcome in result.outcomes[:top]:
        for words in outcome.missing:
            out.print(
                f"{plain(outcome.policy)}: {words}; rows that depend on it are among its "
                f"{outcome.unjudged:,} unjudged"
            )


def _cells(outcome: Outcome, *, lost: bool, completes: bool) -> list[str]:
    time = outcome.time
    cells = [outcome.policy, f"{outcome.exits:,}", f"{outcome.deliveries:,}"]
    if completes:
        cells.append(f"{outcome.completions:,}")
    cells += [f"{outcome.unjudged:,}", outcome.saved_words, f"{outcome.added:,}"]
    if lost:
        cells.append(f"{outcome.lost:,}")
    return [*cells, f"{time.estimate:,.0f}", f"{time.low:,.0f} to {time.high:,.0f}"]


def _show_bursts(intervals: dict[str, tuple[float, float] | None], unit: str) -> None:
    out = terminal()
    for name, interval in intervals.items():
        told = "nothing saved has a latency"
        if interval is not None:
            told = f"{interval[0]:,.0f} to {interval[1]:,.0f} {unit}"
        out.print(f"{name}, if exits come in bursts: {told}")


def _show_reasons(outcome: Outcome) -> None:
    """What a policy does to exits that are not exceptions."""
    from rich.table import Table

    from trapgate.replay.result import REASON_HEADS, reason_notes, reason_row

    out = terminal()
    if not outcome.reasons:
        return
    title = f"\n{plain(outcome.policy)}: exits by reason"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, head in enumerate(REASON_HEADS):
        table.add_column(head, overflow="fold", justify="left" if number < 2 else "right")
    for one in outcome.reasons:
        cells = reason_row(one)
        table.add_row(*(f"{c:,}" if isinstance(c, int) else plain(c or "") for c in cells))
    out.print(table)
    for words in reason_notes(outcome):
        out.print(f"  {plain(words)}")


def _controls(
    traces: list[Path], chosen: Selection, *, as_json: bool, markdown: bool, html: Path | None
) -> None:
    with one_line_errors():
        from trapgate.replay.controls import by_control
        from trapgate.replay.exits import lost_range

        found = by_control(traces, chosen)
        if shown(found.document, markdown=markdown, html=html):
            return
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
        return
    out = terminal()
    if found.lost_events:
        out.print(f"the recorder lost {found.lost_events:,} events: they are in no count")
    for line in found.lines:
        time = "" if line.time is None else f", {line.time:,} {found.time_unit}"
        out.print(f"{line.control}: {line.exits:,} exits{time} ({plain(', '.join(line.reasons))})")
        saved = "nothing that L0 could save"
        if line.savable:
            time = "" if line.savable_time is None else f", {line.savable_time:,} {found.time_unit}"
            saved = f"{line.savable:,} exits{time}"
        lost = lost_range(line.lost, line.lost_untold)
        out.print(f"  off saves: {saved}; loses at {lost} of them: {line.lost_words}")
        if line.reflected:
            out.print(f"  given to the guest's hypervisor, hence not savable: {line.reflected:,}")
        for words, number in line.details:
            out.print(f"  {number:,} {plain(words)}")
        if line.unknown:
            out.print(f"  the trace does not tell {line.unknown}")
    if found.posted:
        out.print(f"posted to the guest without an exit: {plain(found.posted)}")
