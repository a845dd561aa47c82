"""How `--help` shows commands: each with the whole of its first line, values by plain names."""

from typing import Any, Final

import typer
from typer.core import TyperGroup

_VALUES: Final = {
    "str": "TEXT",
    "path": "FILE",
    "int": "N",
    "int range": "N",
    "float": "NUMBER",
    "float range": "SECONDS",
}
"""What stands for an option's value, by the name of its type; all others name themselves."""


def name_values(command: Any) -> Any:
    """Give the options of a command, or of a group's commands, plain names for their values."""
    for one in (command, *getattr(command, "commands", {}).values()):
        for option in one.params:
            if option.param_type_name == "option" and not option.is_flag:
                option.metavar = option.metavar or _VALUES.get(option.type.name)
    return command


class CommandGroup(TyperGroup):
    """Commands in a list that leaves nothing of their first lines out."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The part of --help that lists them."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, " ".join((command.help or "").split("\n\n")[0].split()))
                    for name, command in self.commands.items()
                ]
            )


def command_group(about: str, epilog: str = "") -> typer.Typer:
    """A group of commands; `about` is its help."""
    return typer.Typer(
        cls=CommandGroup,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help=about,
        epilog=epilog,
    )
