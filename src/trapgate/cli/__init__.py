"""The command line: arguments and wiring only.

`trapgate --help` and an error in a name import no command, and a command imports no other:
`COMMANDS` says what there is, and each module is imported when its command is asked for. It may
import everything. Begin with the command's module, `run` say.
"""

import atexit
import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

COMMANDS = {
    "run": "Run a guest with the terminal as its console.",
    "demo": "Run the bundled guest under several page-fault filters, and show what each costs.",
    "campaign": "Inject faults into a guest by plan, and classify the outcomes.",
    "criteria": "Compile a specification into VMCS fields; explain, merge, check and learn fields.",
    "replay": "Replay a trace under other policies: exits saved and added, and time saved.",
    "report": "Write a self-contained HTML page about a trace, which opens offline.",
    "trace": "Import, show and export traces.",
    "vmcs": "Explain why a VM entry fails: every check in the SDM that a VMCS does not pass.",
}
"""Each command's module in this room, and the first line of its help."""


_UsageError: Any = typer.BadParameter.__mro__[1]
"""Click's, or that of Typer's own copy of Click: an option or argument that cannot be read."""


_PLAINER = (
    (r"is not in the range x>=(\S+)", r"is too small; give \1 or more"),
    (r"is not in the range (\S+)<=x<=(\S+)", r"is out of range; give \1 to \2"),
    (r"is not a valid int(eger)?( range)?\b", "is not a whole number"),
    (r"is not a valid float( range)?\b", "is not a number"),
    (r"is not one of (.*'.*')", r"is unknown; choose from \1"),
)
"""Typer's words for values that cannot be, and ours."""


def usage_line(message: str, command: str) -> str:
    """What Typer says of an option, as all other mistakes are told: field, problem, remedy.

    `message` is Typer's own ("Invalid value for '--cpus': 0 is not in the range 1<=x<=32."),
    `command` the command that was called.
    """
    line = " ".join(message.split()).rstrip(".")
    line = re.sub(r"^Invalid value for '?([^':]+)'?(?: / '[^']+')?: ", r"\1: ", line)
    for pattern, words in _PLAINER:
        line = re.sub(pattern, words, line)
    return f"trapgate: {line}; see {command} --help"


@contextmanager
def _in_one_line(ctx: Any = None) -> Iterator[None]:
    """Around reading options, within `ctx`: end with one line instead of Typer's four."""
    try:
        yield
    except _UsageError as error:
        if type(error).show is not _UsageError.show:  # nothing was given: the help is shown
            raise
        called = getattr(ctx, "invoked_subcommand", None) or ""
        command = error.ctx.command_path if error.ctx else f"trapgate {called}".strip()
        print(usage_line(error.format_message(), command), file=sys.stderr)
        raise typer.Exit(2) from None


_OBJECTS = 100_000
"""How many more objects than before make Python look for reference cycles (else 700)."""


class _Commands(TyperGroup):
    """The commands, imported when they are asked for."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # For lists, and for what a typing error meant.
        self.commands: Any = dict.fromkeys(COMMANDS)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the options before the command's name."""
        with _in_one_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that is asked for."""
        # Modules leave no garbage: to look for it costs time at the start, and more at the end.
        gc.set_threshold(_OBJECTS)
        atexit.register(gc.freeze)
        # NumPy's library for linear algebra, which nothing here uses, starts threads.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        with _in_one_line(ctx):
            return super().invoke(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by its name; None if there is none."""
        return _command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The part of --help that lists them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _command(name: str) -> Any:
    module = import_module(f"trapgate.cli.{name}")
    found = getattr(module, "app", None)
    if found is None:
        found = typer.Typer(add_completion=False, rich_markup_mode=None)
        found.command(name, epilog=module.EXAMPLES)(getattr(module, name))
    from trapgate.cli.groups import name_values

    command = name_values(typer.main.get_command(found))
    command.name = name
    return command


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    """--version."""
    if wanted:
        from importlib.metadata import version

        print(f"trapgate {version('trapgate')}")
        raise typer.Exit(0)


@app.callback()
def main(
    show: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Run x86 guests and decide what becomes of each fault: VM exit, delivery or completion.

    Exit status: 0 success, 1 the guest failed, 2 wrong usage or input.
    """
