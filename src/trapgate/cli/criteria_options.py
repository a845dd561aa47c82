"""Options that several criteria commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Form(StrEnum):
    """How fields are printed."""

    all = "all"
    toml = "toml"
    c = "c"
    vmwrite = "vmwrite"


class UnseenCodes(StrEnum):
    """What error codes do that a trace does not show."""

    exit = "exit"
    deliver = "deliver"
    free = "free"


SpecArgument = Annotated[Path, typer.Argument(help="TOML file of the specification.")]
SchemeOption = Annotated[
    str,
    typer.Option(
        help="vt-x, figure-3, exchanged, no-bit, match-exits, figure-4, figure-5, figure-5-no-bit, "
        "comparison, membership, one of the comparisons (less, ...), or auto; "
        "for [[wishes]]: vt-x, auto or table."
    ),
]
FieldsOption = Annotated[
    int | None, typer.Option(min=1, help="With auto: maximum number of fields.")
]
OperatorOption = Annotated[
    list[str] | None,
    typer.Option(
        help="With auto: allow this operator only (repeatable): match, any-bit, invert, member, "
        "equal, not-equal, less, less-or-equal, greater, greater-or-equal. In a criteria table: "
        "equal, below, below-or-equal, in-range, any-bit, all-bits, in-bitmap."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
FormOption = Annotated[Form, typer.Option("--format", help="Which forms of the fields to print.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the fields to this TOML file, too.")
]
TimeoutOption = Annotated[
    float, typer.Option(min=0.001, help='Seconds after which the answer is "unknown".')
]
WeightsOption = Annotated[
    Path | None, typer.Option(help="A trace that says how often each error code occurs.")
]
