"""`trapgate criteria`: from wishes to VMCS fields, and back."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trapgate.cli.terminal import complaints, fail

if TYPE_CHECKING:
    from trapgate.criteria import Definition

EXAMPLES = """
Examples:

  trapgate criteria define wishes.toml -o filter.toml

  trapgate criteria define wishes.toml --scheme auto --fields 4 --weights faults.parquet

  trapgate criteria merge outer.toml inner.toml

  trapgate criteria explain filter.toml

  trapgate criteria check wishes.toml filter.toml

  trapgate criteria learn faults.parquet --hold-out 0.25

Exit status: 0 an answer (check: it holds), 1 there is none (check: a counterexample),
2 something given was wrong.
"""

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Compile wishes about faults into VMCS fields; explain fields; prove what they do.",
    epilog=EXAMPLES,
)


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


SchemeOption = Annotated[
    str,
    typer.Option(
        help="vt-x, figure-3, exchanged, no-bit, figure-4, figure-5, figure-5-no-bit, comparison, "
        "membership, one comparison (less, ...), or auto."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
FormOption = Annotated[Form, typer.Option("--format", help="Which forms of the fields to print.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the fields to this TOML file, too.")
]
TimeoutOption = Annotated[
    float, typer.Option(min=0.001, help="Seconds after which the answer is: unknown.")
]
WeightsOption = Annotated[
    Path | None, typer.Option(help="A trace that says how often each error code occurs.")
]


@contextmanager
def answers(as_json: bool) -> Iterator[None]:
    """Complaints as elsewhere, but status 1 where there is no answer; in JSON, too."""
    from trapgate.criteria.complaints import (
        ContradictionError,
        InexpressibleError,
        UndecidedError,
    )

    try:
        with complaints():
            try:
                yield
            except (InexpressibleError, UndecidedError) as error:
                _tell(error, as_json)
                raise typer.Exit(1) from fail(str(error))
            except ContradictionError as error:
                _tell(error, as_json)
                raise
    except BrokenPipeError:
        raise typer.Exit(1) from None


def _tell(error: Exception, as_json: bool) -> None:
    if as_json:
        facts = {
            key: [f"{code:#x}" for code in value] if key in {"core", "codes"} else list(value)
            for key, value in vars(error).items()
            if isinstance(value, tuple)
        }
        kind = type(error).__name__.removesuffix("Error").lower()
        print(json.dumps({"error": kind, "message": str(error), **facts}, indent=2))


def _print(document: Callable[[], Any], lines: Callable[[], list[str]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(document(), indent=2))
    else:
        for line in lines():
            print(line)


def _forms(definition: Definition, form: Form) -> list[str]:
    forms = {"toml": definition.toml, "c": definition.c, "vmwrite": definition.vmwrites}
    if form is not Form.all:
        return [forms[form.value]().rstrip("\n")]
    lines = definition.lines()
    for name, shown in forms.items():
        text = "\n".join(line for line in shown().splitlines() if not line.startswith("#"))
        lines += ["", f"{name}:", text]
    return lines


def _write(definition: Definition, output: Path | None) -> None:
    if output is None:
        return
    try:
        output.write_text(definition.toml(), encoding="utf-8")
    except OSError as error:
        raise fail(
            f"{output}: cannot be written ({error.strerror}); give a file in a writable folder"
        ) from None


def _load(path: Path) -> Any:
    from trapgate.vmcs import Vmcs

    return Vmcs.load(path)


@app.command()
def define(
    spec: Annotated[Path, typer.Argument(help="TOML file of wishes.")],
    scheme: SchemeOption = "",
    weights: WeightsOption = None,
    fields: Annotated[
        int | None, typer.Option(min=1, help="With auto: at most so many fields.")
    ] = None,
    operator: Annotated[
        list[str] | None, typer.Option(help="With auto: only this operator (repeatable).")
    ] = None,
    form: FormOption = Form.all,
    output: OutputOption = None,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Find the fields that do what a SPEC wishes, or the best sound ones, and prove it."""
    with answers(as_json):
        from trapgate.criteria.define import define as compile_wishes
        from trapgate.criteria.learn import weights_in
        from trapgate.criteria.spec import read_spec

        definition = compile_wishes(
            read_spec(spec),
            scheme,
            weights=None if weights is None else weights_in(weights),
            fields=fields,
            operators=operator,
            timeout=timeout,
        )
        _write(definition, output)
        _print(definition.document, lambda: _forms(definition, form), as_json)


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="TOML files of VMCS fields, two or more.")],
    scheme: SchemeOption = "vt-x",
    bits: Annotated[
        str, typer.Option(help="Bits of a page fault's error code: sdm, seed, or 1 to 16.")
    ] = "sdm",
    weights: WeightsOption = None,
    form: FormOption = Form.all,
    output: OutputOption = None,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Find the tightest fields that exit whenever one of the files' fields would."""
    with answers(as_json):
        from trapgate.criteria.codes import vector_label
        from trapgate.criteria.learn import weights_in
        from trapgate.criteria.merge import Party
        from trapgate.criteria.merge import merge as merge_parties

        names = [path.stem for path in files]
        twice = len(set(names)) != len(names)
        merged = merge_parties(
            [Party(str(path) if twice else path.stem, _load(path)) for path in files],
            scheme,
            bits=bits,
            weights=None if weights is None else weights_in(weights),
            timeout=timeout,
        )
        _write(merged.definition, output)

        def lines() -> list[str]:
            told = _forms(merged.definition, form)
            if form is Form.all:
                told += ["", "who asked, and what to reflect:"]
                told += [
                    f"  {vector_label(share.vector)} {share.words}: asked by "
                    f"{' and '.join(share.asked) or 'nobody'}; {share.reflect}"
                    for share in merged.shares
                ]
            return told

        shares = [share.document() for share in merged.shares]
        _print(lambda: {**merged.definition.document(), "shares": shares}, lines, as_json)


@app.command()
def explain(
    files: Annotated[list[Path], typer.Argument(help="TOML files of VMCS fields.")],
    vector: Annotated[
        list[str] | None, typer.Option(help="Only this vector: PF, 14, ... (repeatable).")
    ] = None,
    table: Annotated[bool, typer.Option(help="Print the truth table.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Say in words what fields do; and warn of what was probably not meant."""
    with answers(as_json):
        from trapgate.criteria.codes import vector_named
        from trapgate.criteria.explain import compare
        from trapgate.criteria.explain import explain as explain_vmcs

        vectors = None if vector is None else [vector_named(name) for name in vector]
        loaded = [(str(path), _load(path)) for path in files]
        told = [(name, explain_vmcs(vmcs, vectors)) for name, vmcs in loaded]
        same = compare(loaded)

        def lines() -> list[str]:
            out: list[str] = []
            for name, explanations in told:
                out += [f"{name}:"] if len(told) > 1 else []
                for one in explanations:
                    out.append(one.summary)
                    out += [f"  warning: {warning.text}" for warning in one.warnings]
                    if table and one.layout is not None and one.filter.scheme:
                        out += [
                            f"  {code:#06x}  {'exit' if exits else '-':4}  {words}"
                            for code, exits, words in one.rows()
                        ]
            return out + [f"warning: {warning.text}" for warning in same]

        def document() -> dict[str, Any]:
            return {
                "files": [
                    {"file": name, "vectors": [one.document() for one in explanations]}
                    for name, explanations in told
                ],
                "warnings": [vars(warning) for warning in same],
            }

        _print(document, lines, as_json)


@app.command()
def check(
    spec: Annotated[Path, typer.Argument(help="TOML file of wishes.")],
    file: Annotated[Path, typer.Argument(metavar="FIELDS", help="TOML file of VMCS fields.")],
    sound: Annotated[
        bool, typer.Option("--sound", help="Needless exits are all right; only missed ones count.")
    ] = False,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Prove that fields do what a SPEC wishes, or give a counterexample."""
    with answers(as_json):
        from trapgate.criteria.check import check as check_vmcs
        from trapgate.criteria.spec import read_spec

        verdicts = check_vmcs(read_spec(spec), _load(file), timeout=timeout)
        good = all(one.sound if sound else one.exact for one in verdicts)
        _print(
            lambda: {"holds": good, "vectors": [one.document() for one in verdicts]},
            lambda: [one.line() for one in verdicts],
            as_json,
        )
        raise typer.Exit(0 if good else 1)


@app.command()
def learn(
    trace: Annotated[Path, typer.Argument(help="A trace, as `trapgate run --trace` writes it.")],
    scheme: SchemeOption = "vt-x",
    mark: Annotated[
        str, typer.Option(help="Boolean column that marks needed exits (needed, or inferred).")
    ] = "",
    hold_out: Annotated[float, typer.Option(help="Share of the faults to test on.")] = 0.25,
    unseen: Annotated[
        UnseenCodes, typer.Option(help="What codes do that the trace does not show.")
    ] = UnseenCodes.exit,
    form: FormOption = Form.all,
    output: OutputOption = None,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Define the filter that keeps the exits that a VMM needed, and test it on the rest."""
    with answers(as_json):
        from trapgate.criteria.learn import learn as learn_from

        learned = learn_from(
            trace,
            scheme,
            mark=mark,
            hold_out=hold_out,
            unseen=unseen.value,
            timeout=timeout,
        )
        _write(learned.definition, output)

        def lines() -> list[str]:
            told = _forms(learned.definition, form)
            if form is Form.all:
                source = f"column {learned.mark}" if learned.mark else "inferred from injections"
                told += ["", f"needed exits: {source}", f"learned on: {learned.trained.line()}"]
                if learned.held_out is not None:
                    told.append(f"held out:   {learned.held_out.line()}")
            return told

        _print(learned.document, lines, as_json)


if __name__ == "__main__":
    sys.exit(app())
