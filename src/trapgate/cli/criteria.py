"""`trapgate criteria`: from wishes to VMCS fields, and back."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trapgate.cli import criteria_tables
from trapgate.cli.closed_form import MergeForm, closed_form, closed_form_page
from trapgate.cli.criteria_answers import Answer, answered, defined, write_fields
from trapgate.cli.criteria_options import (
    FieldsOption,
    Form,
    FormOption,
    OperatorOption,
    OutputOption,
    SchemeOption,
    SpecArgument,
    TimeoutOption,
    UnseenCodes,
    WeightsOption,
)
from trapgate.cli.examples import examples
from trapgate.cli.groups import command_group
from trapgate.cli.names import BitmapOption, SymbolsOption, names_for

if TYPE_CHECKING:
    from trapgate.criteria import Definition, Party
    from trapgate.decision.conditions import Names
    from trapgate.vmcs.vmcs import Vmcs

EXAMPLES = """
Examples:

  trapgate criteria define wishes.toml -o filter.toml

  trapgate criteria define wishes.toml --scheme auto --fields 4 --weights faults.parquet

  trapgate criteria merge outer.toml inner.toml

  trapgate criteria explain filter.toml

  trapgate criteria check wishes.toml filter.toml

  trapgate criteria learn faults.parquet --hold-out 0.25

Exit status: 0 an answer (check: it holds), 1 there is none (check: a counterexample),
2 wrong usage or input.
"""

app = command_group(
    "Compile a specification into VMCS fields; explain, merge, check and learn fields.", EXAMPLES
)


def _parties(files: list[Path], known: Names | None = None) -> list[Party]:
    from trapgate.criteria import Party

    names = [path.stem for path in files]
    twice = len(set(names)) != len(names)
    return [Party(str(path) if twice else path.stem, _load(path, known)) for path in files]


def _load(path: Path, names: Names | None = None) -> Vmcs:
    from trapgate.criteria.problems.filters import demand_table, demand_valid
    from trapgate.vmcs.vmcs import Vmcs

    vmcs = Vmcs.load(path, names=names)
    demand_valid(vmcs, str(path))
    demand_table(vmcs, str(path))
    return vmcs


def _is_vmcs_file(path: Path) -> bool:
    """Whether a file is one of VMCS fields, rather than of wishes."""
    return bool({"fields", "controls", "rules", "profile"} & _document(path).keys())


def _document(path: Path) -> Mapping[str, object]:
    from trapgate.criteria import SpecError
    from trapgate.tomlfile import parse_toml, read_toml

    wrong = partial(SpecError, path=str(path))
    return parse_toml(read_toml(path, wrong), wrong)


def _with_lost(definition: Definition, weights: Path | None) -> Definition:
    """With a note if the recorder of the trace that gave the weights lost events."""
    from trapgate.trace.frames import lost_events

    lost = 0 if weights is None else lost_events([weights])
    if not lost:
        return definition
    note = f"{weights}: the recorder lost {lost:,} events: they are in no weight"
    return replace(definition, notes=(*definition.notes, note))


def _weights(path: Path | None) -> Mapping[int, Mapping[int, int]] | None:
    from trapgate.criteria import weights_in

    return None if path is None else weights_in(path)


@app.command(epilog=examples("criteria define"))
@answered
def define(
    spec: SpecArgument,
    scheme: SchemeOption = "",
    weights: WeightsOption = None,
    fields: FieldsOption = None,
    operator: OperatorOption = None,
    rules: Annotated[
        int | None, typer.Option(min=1, help="With [[wishes]]: maximum number of rules.")
    ] = None,
    clauses: Annotated[
        int | None,
        typer.Option(min=0, help="With [[wishes]]: maximum number of clauses in all rules."),
    ] = None,
    symbols: SymbolsOption = None,
    bitmap: BitmapOption = None,
    form: FormOption = Form.all,
    output: OutputOption = None,
    timeout: TimeoutOption = 60.0,
) -> Answer:
    """Find fields that implement a SPEC, or the best sound ones, and prove it."""
    from trapgate import criteria

    if "wishes" in _document(spec):
        if fields is not None or form is not Form.all:
            raise criteria.CriteriaError(
                "--fields and --format are for wishes about error codes; "
                "--scheme, --rules, --clauses and --operator choose for [[wishes]]"
            )
        wishes = criteria.read_wishes(spec, names_for(symbols, bitmap))
        found = criteria.define_criteria(
            wishes,
            scheme,
            rules=criteria.MOST_RULES if rules is None else rules,
            clauses=clauses,
            operators=criteria.operators_named(operator),
            weights=_weights(weights),
            rows=None if weights is None else criteria.rows_for(wishes, weights),
            timeout=timeout,
        )
        if output is not None:
            write_fields(output, found.toml())
        return Answer(
            lambda: [*found.lines(), "", found.toml().rstrip()],
            found.document,
            page=found.page,
        )
    if rules is not None or clauses is not None:
        raise criteria.CriteriaError("--rules and --clauses are for tables; write [[wishes]]")
    definition = criteria.define(
        criteria.read_spec(spec),
        scheme,
        weights=_weights(weights),
        fields=fields,
        operators=operator,
        timeout=timeout,
    )
    definition = _with_lost(definition, weights)
    return defined(definition, form, output, definition)


@app.command(epilog=examples("criteria merge"))
@answered
def merge(
    files: Annotated[list[Path], typer.Argument(help="TOML files of VMCS fields, two or more.")],
    scheme: SchemeOption = "vt-x",
    bits: Annotated[
        str, typer.Option(help="Bits of a page fault's error code: sdm, seed, or 1 to 16.")
    ] = "sdm",
    weights: WeightsOption = None,
    fields: FieldsOption = None,
    operator: OperatorOption = None,
    form: Annotated[
        MergeForm,
        typer.Option(
            "--format",
            help="Which forms of the fields to print; kvm-c: the merge of two page-fault filters "
            "as a function for the kernel, proved; kvm-c-test: its test program.",
        ),
    ] = MergeForm.all,
    rules: Annotated[
        int | None,
        typer.Option(min=0, help="For files with criteria tables: maximum number of rules."),
    ] = None,
    clauses: Annotated[
        int | None, typer.Option(min=0, help="Likewise: maximum number of clauses in all rules.")
    ] = None,
    symbols: SymbolsOption = None,
    bitmap: BitmapOption = None,
    output: OutputOption = None,
    timeout: TimeoutOption = 60.0,
) -> Answer:
    """Find the tightest fields that exit whenever one of the files' fields would.

    If one of the files has a criteria table, find the smallest table as well.
    """
    from trapgate import criteria

    if form in (MergeForm.kvm_c, MergeForm.kvm_c_test):
        text, document = closed_form(
            [_load(path) for path in files], program=form is MergeForm.kvm_c_test, timeout=timeout
        )
        if output is not None:
            write_fields(output, text)
        page = partial(closed_form_page, text, document)
        return Answer(lambda: [text.rstrip("\n")], lambda: document, page=page)
    parties = _parties(files, names_for(symbols, bitmap))
    if criteria_tables.have_tables(parties) and form in (MergeForm.all, MergeForm.toml):
        toml, told = criteria_tables.merged(parties, scheme, operator, rules, clauses, timeout)
        if output is not None:
            write_fields(output, toml)
        return Answer(*told)
    if rules is not None or clauses is not None:
        raise criteria.CriteriaError("--rules and --clauses are for files with criteria tables")
    merged = criteria.merge(
        parties,
        scheme,
        bits=bits,
        weights=_weights(weights),
        fields=fields,
        operators=operator,
        timeout=timeout,
    )
    merged = replace(merged, definition=_with_lost(merged.definition, weights))
    return defined(merged.definition, Form(form.value), output, merged)


@app.command(epilog=examples("criteria explain"))
@answered
def explain(
    files: Annotated[list[Path], typer.Argument(help="TOML files of VMCS fields.")],
    vector: Annotated[
        list[str] | None, typer.Option(help="Only this vector: PF, 14, ... (repeatable).")
    ] = None,
    table: Annotated[bool, typer.Option(help="Print the truth table.")] = True,
    symbols: SymbolsOption = None,
    bitmap: BitmapOption = None,
) -> Answer:
    """Explain in words what fields do, and warn of probable mistakes."""
    from trapgate import criteria
    from trapgate.criteria.explain import page_of_files
    from trapgate.criteria.problems.codes import vector_named

    vectors = None if vector is None else [vector_named(name) for name in vector]
    names = names_for(symbols, bitmap)
    loaded = [(str(path), _load(path, names)) for path in files]
    told = [(name, criteria.explain(vmcs, vectors)) for name, vmcs in loaded]
    tables = {
        name: criteria.read_table(vmcs.criteria_table)
        for name, vmcs in loaded
        if vmcs.criteria_table
    }
    same = criteria.compare(loaded)

    def lines() -> list[str]:
        printed = []
        for name, explanations in told:
            printed += [f"{name}:"] if len(told) > 1 else []
            if name in tables:
                printed += [*tables[name].lines(), "where no rule decides:"]
            printed += [line for one in explanations for line in one.lines(table=table)]
        return printed + [f"warning: {warning.text}" for warning in same]

    def document() -> dict[str, Any]:
        return {
            "files": [
                {
                    "file": name,
                    "vectors": [one.document() for one in explanations],
                    **({"table": tables[name].document()} if name in tables else {}),
                }
                for name, explanations in told
            ],
            "warnings": [vars(warning) for warning in same],
        }

    tables_in_words = {name: table.lines() for name, table in tables.items()}
    page = partial(page_of_files, told, same, tables_in_words)
    return Answer(lines, document, page=page)


@app.command(epilog=examples("criteria check"))
@answered
def check(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="SPEC FIELDS | FIELDS FIELDS | L0 L1... VMCS02",
            help="A specification and the VMCS file to check; or two VMCS files that should make "
            "the same faults exit; or the VMCS files of two or more hypervisors, followed by "
            "the one that should serve them all.",
        ),
    ],
    sound: Annotated[
        bool, typer.Option("--sound", help="Allow needless exits; only missed ones count.")
    ] = False,
    bits: Annotated[
        str, typer.Option(help="With three files or more: bits of a page fault's error code.")
    ] = "sdm",
    symbols: SymbolsOption = None,
    bitmap: BitmapOption = None,
    timeout: TimeoutOption = 60.0,
) -> Answer:
    """Prove that fields implement a SPEC, or give a counterexample.

    With two files, the first is a SPEC, or a VMCS file whose exits are wanted. With more, the
    last is a vmcs02, and the answer is whether it is sound: whether every exit that one of the
    other files wants happens.
    """
    from trapgate import criteria

    if len(files) < 2:
        raise criteria.CriteriaError(
            "give check a SPEC and FIELDS, two VMCS files, or L0, L1 and VMCS02"
        )
    names = names_for(symbols, bitmap)
    if len(files) > 2:
        parties, vmcs02 = _parties(files[:-1], names), _load(files[-1], names)
        if criteria_tables.have_tables([*parties, criteria.Party("vmcs02", vmcs02)]):
            return Answer(*criteria_tables.checked(parties, vmcs02, timeout))
        found = criteria.check_vmcs02(parties, vmcs02, bits=bits, timeout=timeout)
        return Answer(found.lines, found.document, 0 if found.sound else 1, found.page)
    of_whole_faults = "wishes" in _document(files[0])
    if of_whole_faults or _is_vmcs_file(files[0]):
        given = _load(files[1], names)
        if of_whole_faults:
            wishes = criteria.read_wishes(files[0], names)
            differs = criteria.check_wishes(wishes, given, timeout=timeout)
        else:
            wanted = _load(files[0], names)
            differs = criteria.compare_exits(wanted, given, timeout=timeout)
        status = 0 if (differs.sound if sound else differs.exact) else 1
        warned = list(criteria_tables.warnings_of(given))
        return Answer(
            lambda: [*differs.lines(), *warned],
            lambda: {**differs.document(), "warnings": warned},
            status,
            differs.page,
        )
    fields = _load(files[1], names)
    verdicts = criteria.check(criteria.read_spec(files[0]), fields, timeout=timeout)
    holds = all(one.sound if sound else one.exact for one in verdicts)
    warned = list(criteria_tables.warnings_of(fields))
    return Answer(
        lambda: [*(one.line() for one in verdicts), *warned],
        lambda: {
            "holds": holds,
            "vectors": [one.document() for one in verdicts],
            "warnings": warned,
        },
        0 if holds else 1,
        verdicts.page,
    )


@app.command(epilog=examples("criteria learn"))
@answered
def learn(
    trace: Annotated[Path, typer.Argument(help="A trace: recorded by `run`, or imported.")],
    scheme: SchemeOption = "vt-x",
    mark: Annotated[
        str,
        typer.Option(
            help="Boolean column that marks needed exits (default: needed, else inferred)."
        ),
    ] = "",
    hold_out: Annotated[float, typer.Option(help="Share of the faults to test on.")] = 0.25,
    unseen: Annotated[
        UnseenCodes, typer.Option(help="What happens to codes that are not in the trace.")
    ] = UnseenCodes.exit,
    fields: FieldsOption = None,
    operator: OperatorOption = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Learn a criteria table over this value: rip, cpl, page, ... (repeatable)."
        ),
    ] = None,
    rules: Annotated[int, typer.Option(min=1, help="With --by: maximum number of rules.")] = 4,
    form: FormOption = Form.all,
    output: OutputOption = None,
    timeout: TimeoutOption = 60.0,
) -> Answer:
    """Learn the filter that keeps the exits that a VMM needed, and test it on held-out faults.

    With --by a criteria table, which looks at more than the error code.
    """
    from trapgate import criteria

    if by:
        table = criteria.learn_table(
            trace,
            by,
            mark=mark,
            hold_out=hold_out,
            unseen=unseen.value,
            rules=rules,
            timeout=timeout,
        )
        if output is not None:
            write_fields(output, table.toml())
        return Answer(
            lambda: [*table.lines(), "", table.toml().rstrip()], table.document, page=table.page
        )
    learned = criteria.learn(
        trace,
        scheme,
        mark=mark,
        hold_out=hold_out,
        unseen=unseen.value,
        fields=fields,
        operators=operator,
        timeout=timeout,
    )
    return defined(learned.definition, form, output, learned)


if __name__ == "__main__":
    sys.exit(app())
