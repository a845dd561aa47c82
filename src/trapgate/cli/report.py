"""`trapgate report`: one page about a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trapgate.cli.terminal import one_line_errors

EXAMPLES = """
Examples:

  trapgate report host.parquet --symbols System.map -o report.html

  trapgate report host.parquet --policy writes.toml --policy none.toml -o report.html
"""


def report(
    trace: Annotated[list[Path], typer.Argument(help="Traces, taken together.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")],
    policy: Annotated[
        list[Path] | None, typer.Option(help="VMCS file of a policy to compare (repeatable).")
    ] = None,
    symbols: Annotated[
        Path | None, typer.Option(help="System.map or ELF of the guest's kernel.")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "",
) -> None:
    """Write one self-contained page about a trace: it opens offline, in any browser."""
    with one_line_errors():
        from trapgate.replay import Policy
        from trapgate.report import report as write
        from trapgate.trace.symbols import Symbols

        size = write(
            trace,
            output,
            policies=[Policy.load(path) for path in policy or ()],
            symbols=None if symbols is None else Symbols(symbols),
            title=title,
        )
        print(f"{output}: {size:,} bytes")
