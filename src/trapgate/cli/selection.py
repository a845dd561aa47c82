"""Options that say which events of a trace are asked about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trapgate.trace.selection import Selection

LevelOption = Annotated[
    list[int] | None,
    typer.Option(min=1, max=2, help="Only exits of a guest (1), or of a guest's guest (2)."),
]
VmOption = Annotated[list[int] | None, typer.Option(help="Only this machine (repeatable).")]
VcpuOption = Annotated[list[int] | None, typer.Option(help="Only this vCPU (repeatable).")]
TimeOption = Annotated[
    str,
    typer.Option(help="FROM:TO in the trace's unit, from its first event; either may be omitted."),
]
RipOption = Annotated[str, typer.Option(help="FROM:TO of the instruction's address.")]


def selection(
    level: list[int] | None, vm: list[int] | None, vcpu: list[int] | None, time: str, rip: str
) -> Selection:
    """What the options ask for; raises TraceError for a stretch that is none."""
    from trapgate.trace.selection import Selection, stretch

    return Selection(
        tuple(level or ()),
        tuple(vm or ()),
        tuple(vcpu or ()),
        stretch(time, "--time"),
        stretch(rip, "--rip"),
    )
