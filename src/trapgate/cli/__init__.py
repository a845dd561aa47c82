"""The command line: arguments and wiring only."""

from importlib.metadata import version
from typing import Annotated

import typer

from trapgate.cli import criteria, demo, replay, report, run, trace, vmcs

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=run.EXAMPLES)(run.run)
app.command(epilog=demo.EXAMPLES)(demo.demo)
app.add_typer(criteria.app, name="criteria")
app.command(epilog=replay.EXAMPLES)(replay.replay)
app.command(epilog=report.EXAMPLES)(report.report)
app.add_typer(trace.app, name="trace")
app.command(epilog=vmcs.EXAMPLES)(vmcs.vmcs)


def show_version(wanted: bool) -> None:
    """--version."""
    if wanted:
        print(f"trapgate {version('trapgate')}")
        raise typer.Exit(0)


@app.callback()
def main(
    show: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Run x86 guests, and decide for every fault where it goes: to the VMM, or to the guest.

    Exit status: 0 all went well, 1 the guest failed, 2 something given was wrong.
    """
