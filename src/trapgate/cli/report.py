"""`trapgate report`: one page about a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from trapgate.cli.terminal import one_line_errors, terminal

EXAMPLES = """
Examples:

  trapgate report host.parquet --symbols System.map -o report.html

  trapgate report host.parquet --policy writes.toml --policy none.toml -o report.html
"""


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None] | None]:
    """A bar on a terminal: what is being done, and how much of it is."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = terminal(error=True)
    if not console.is_terminal:
        yield None
        return
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda words, share: bar.update(task, description=words, completed=share)


def report(
    trace: Annotated[list[Path], typer.Argument(help="Traces, counted together.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")],
    policy: Annotated[
        list[Path] | None, typer.Option(help="VMCS file of a policy to compare (repeatable).")
    ] = None,
    symbols: Annotated[
        Path | None, typer.Option(help="System.map or ELF of the guest's kernel.")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "",
) -> None:
    """Write a self-contained HTML page about a trace, which opens offline."""
    with one_line_errors():
        from trapgate.replay import Policy
        from trapgate.report import report as write
        from trapgate.trace.symbols import Symbols

        policies = [Policy.load(path) for path in policy or ()]
        names = None if symbols is None else Symbols(symbols)
        with _progress() as progress:
            size = write(
                trace, output, policies=policies, symbols=names, title=title, progress=progress
            )
        print(f"{output}: {size:,} bytes")
