"""From wishes to field values (figure 9, ¶86-87): the best sound filter, verified twice."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trapgate.criteria.answer import Definition, VectorAnswer, WhyNot
from trapgate.criteria.covers.cover import Remedy, remedies
from trapgate.criteria.covers.schemes import (
    EVERYTHING,
    FILTER_SCHEMES,
    FilterScheme,
    Limits,
    best,
    exactness_core,
    limits_of,
    schemes_named,
    soundness_core,
)
from trapgate.criteria.errors import InexpressibleError, ProofError, UndecidedError
from trapgate.criteria.problems.codes import Truths, vector_label
from trapgate.criteria.problems.filters import Filter, filter_in, simplified
from trapgate.criteria.problems.problem import NEVER, Deadline, weight_and_count
from trapgate.criteria.proofs.proof import Claim, Proof, prove, try_all
from trapgate.criteria.proofs.tasks import Task, Weights, remarks, tasks_of, weightless
from trapgate.criteria.wishes.spec import DELIVER, EXIT, FREE, Spec
from trapgate.sdm.fields import Field
from trapgate.sdm.vectors import PF, TABLE, Vector
from trapgate.vmcs.vmcs import Vmcs

_REASON_SECONDS = 5.0
"""Explanations (why not exact, what would be) may take so long, each; then they are left out."""

_BIT_ONLY = "control bit"


@dataclass(frozen=True)
class _Choice:
    """One vector's filter, its packed cost, and the scheme that it is of."""

    task: Task
    filter: Filter
    cost: int
    scheme: str


def define(
    spec: Spec,
    scheme: str = "",
    *,
    weights: Weights | None = None,
    fields: int | None = None,
    operators: Collection[str] | None = None,
    timeout: float | None = None,
) -> Definition:
    """Field values that make exit what `spec` wants, and nothing else if that can be.

    `scheme` is one of `schemes.scheme_names()`; if empty, the SPEC's, or vt-x. `auto`
    takes the best that `fields` (at most so many) and `operators` allow. `weights` says
    how often each code occurs; if not given, all codes count the same. `timeout` is in
    seconds.

    Raises:
        UnknownSchemeError: no such scheme or operator.
        InexpressibleError: the scheme cannot make all exit that must.
        UndecidedError: out of time: the answer is unknown.
        MissingSolverError: z3-solver or python-sat is not installed.
    """
    tasks = tasks_of(spec, weights)
    return compiled(
        tasks,
        scheme or spec.scheme or "vt-x",
        others=spec.others,
        limits=limits_of(fields, operators),
        deadline=Deadline(timeout),
        notes=[*remarks(spec), *weightless(tasks, weights)],
        path=spec.path,
    )


def compiled(
    tasks: Sequence[Task],
    scheme: str = "vt-x",
    *,
    others: str = "deliver",
    limits: Limits = EVERYTHING,
    deadline: Deadline = NEVER,
    notes: Sequence[str] = (),
    path: str = "",
    idle_bits: int = 0,
) -> Definition:
    """The same from tasks; `idle_bits` are set in the exception bitmap besides."""
    named = schemes_named(scheme, path)
    best_choices: tuple[tuple[int, int], FilterScheme, list[_Choice]] | None = None
    first_refusal: InexpressibleError | None = None
    for one in named:
        if len(named) > 1 and not one.within(limits):
            continue
        try:
            choices = _choices(tasks, one, limits, deadline)
        except InexpressibleError as refusal:
            first_refusal = first_refusal or refusal
            continue
        rank = (sum(choice.cost for choice in choices), _fields_used(choices))
        if best_choices is None or rank < best_choices[0]:
            best_choices = rank, one, choices
    if best_choices is None:
        if first_refusal is None:
            fields = "1 field" if limits.fields == 1 else f"{limits.fields} fields"
            raise InexpressibleError(
                f"no scheme makes do with {fields} and the operators "
                f"{', '.join(sorted(limits.operators))}; allow more",
                (),
                path=path,
            )
        raise first_refusal
    _, chosen, choices = best_choices
    values, profile = _field_values(choices, others)
    values[Field.EXCEPTION_BITMAP] |= idle_bits
    answers = [_answer(choice) for choice in choices]
    definition = Definition(chosen.name, profile, values, tuple(answers), tuple(notes))
    # What is verified is what the TOML says, read back as `trapgate run --vmcs` reads it.
    vmcs = Vmcs.from_toml(definition.toml())
    verified = [
        replace(answer, proof=_verified(choice, filter_in(vmcs, answer.vector), deadline))
        for choice, answer in zip(choices, answers, strict=True)
    ]
    explained = [
        _explained(choice, answer, chosen, limits)
        for choice, answer in zip(choices, verified, strict=True)
    ]
    return replace(definition, answers=tuple(explained))


def _fields_used(choices: Sequence[_Choice]) -> int:
    return sum(len(choice.filter.values) for choice in choices)


def _choices(
    tasks: Sequence[Task], scheme: FilterScheme, limits: Limits, deadline: Deadline
) -> list[_Choice]:
    choices = [_by_control_bit(task) for task in tasks]
    asking = [
        number
        for number, choice in enumerate(choices)
        if choice.cost and scheme.serves(choice.task.vector)
    ]
    problems = [tasks[number].problem() for number in asking]
    unserved: list[int] = []
    if scheme.shared and len(asking) > 1:
        # One set of fields serves them all, or leaves some to what every processor has.
        figure_3 = FILTER_SCHEMES["figure-3"]
        for number, problem in zip(asking, problems, strict=True):
            if tasks[number].vector == PF and figure_3.within(limits):
                pair = best([problem], figure_3, limits, deadline)[0]
                assert pair is not None
                choices[number] = _Choice(tasks[number], pair.filter, pair.cost, figure_3.name)
            unserved.append(choices[number].cost)
    served = best(problems, scheme, limits, deadline, unserved) if asking else ()
    for number, problem, found in zip(asking, problems, served, strict=True):
        if found is not None:
            choices[number] = _Choice(tasks[number], found.filter, found.cost, scheme.name)
        elif core := soundness_core(problem, scheme, limits):
            raise _inexpressible(core, tasks[number], scheme)
    return _without_idle_mask_bits(choices)


def _without_idle_mask_bits(choices: Sequence[_Choice]) -> list[_Choice]:
    """Without mask bits that tell apart only codes that nobody asks about and none raises."""
    filtered = [choice for choice in choices if choice.filter.scheme]
    known = []
    for choice in filtered:
        layout, codes = choice.task.layout, choice.task.codes()
        assert layout is not None
        occurs = np.asarray(layout.occurs(codes), dtype=np.bool_)
        known.append(codes[occurs | (choice.task.goals != FREE)])
    simple = dict(
        zip(
            (choice.task.vector for choice in filtered),
            simplified([choice.filter for choice in filtered], known),
            strict=True,
        )
    )
    return [
        replace(choice, filter=simple.get(choice.task.vector, choice.filter)) for choice in choices
    ]


def _inexpressible(core: Sequence[int], task: Task, scheme: FilterScheme) -> InexpressibleError:
    assert task.layout is not None
    told = " and ".join(f"{code:#x} ({task.layout.describe(code)})" for code in core)
    verb = "exit" if len(core) == 1 else "exit together"
    return InexpressibleError(
        f"cannot make {vector_label(task.vector)} {told} {verb}, whatever its fields hold; "
        "use another scheme",
        core,
        field=scheme.name,
    )


def _by_control_bit(task: Task) -> _Choice:
    """What the control bit alone can do."""
    exits = bool((task.goals == EXIT).any())
    cost = 0
    if exits and task.layout is not None:
        cost = int(task.problem().cost.sum())
    return _Choice(task, Filter("", exits), cost, _BIT_ONLY)


def _field_values(choices: Sequence[_Choice], others: str) -> tuple[dict[Field, int], str]:
    bitmap = 0
    named = {choice.task.vector: choice for choice in choices}
    for row in TABLE:
        vector = int(row.vector)
        if vector == Vector.NMI:
            continue
        if vector not in named or not (named[vector].task.goals != 0).any():
            bitmap |= (others == "exit") << vector
    extended = 0
    values: dict[Field, int] = {
        Field.EXCEPTION_BITMAP: 0,
        Field.PAGE_FAULT_ERROR_CODE_MASK: 0,
        Field.PAGE_FAULT_ERROR_CODE_MATCH: 0,
    }
    extension: dict[Field, int] = {}
    for choice in choices:
        vector, rule = choice.task.vector, choice.filter.rule
        if (choice.task.goals != 0).any():
            bitmap |= choice.filter.control << vector
        if rule is None:
            continue
        if rule.name != "figure-3" or vector != PF:
            extended |= 1 << vector
            extension[Field.TRANSFER_CRITERION] = rule.criterion
            if rule.fields == ("COMPARISON_VALUE",):
                extension[Field.COMPARISON_OPERATOR] = rule.operator
        for name, value in zip(rule.fields_for(vector), choice.filter.values, strict=True):
            (values if Field[name] in values else extension)[Field[name]] = value
    values[Field.EXCEPTION_BITMAP] = bitmap
    if not extended:
        return values, "vt-x"
    values[Field.TRANSFER_CRITERION_VECTORS] = extended
    values[Field.ERROR_CODE_FIELD_WIDTH] = 0
    return values | extension, "extended"


def _answer(choice: _Choice) -> VectorAnswer:
    task = choice.task
    must = int((task.goals == EXIT).sum())
    if task.layout is None:
        return VectorAnswer(task.vector, None, choice.scheme, choice.filter, must)
    codes = task.codes()
    needless = codes[_needless(task, choice.filter)]
    weight, _ = weight_and_count(choice.cost)
    return VectorAnswer(
        task.vector,
        task.layout,
        choice.scheme,
        choice.filter,
        must,
        tuple(needless.tolist()),
        weight,
    )


def _needless(task: Task, filter_: Filter) -> Truths:
    needless: Truths = filter_.exits(task.codes()) & (task.goals == DELIVER)
    return needless


def _verified(choice: _Choice, filter_: Filter, deadline: Deadline) -> Proof | None:
    task = choice.task
    if task.layout is None:
        if task.goals[0] and filter_.control != (task.goals[0] == EXIT):
            raise ProofError(f"{vector_label(task.vector)} goes the wrong way; please report this")
        return Proof(False, True, 1)
    if not task.goals.any():
        return None
    needless = _needless(task, choice.filter)
    if weight_and_count(choice.cost)[1] != int(needless.sum()):
        raise ProofError("the needless exits were miscounted; please report this")
    try_all(filter_, task.codes(), task.goals, needless)
    return prove(filter_, Claim(task.layout, task.must, task.spare, needless), deadline)


def _explained(
    choice: _Choice, answer: VectorAnswer, scheme: FilterScheme, limits: Limits
) -> VectorAnswer:
    if answer.exact:
        return answer
    problem = choice.task.problem()
    why: WhyNot | None = None
    contended = False
    if scheme.serves(answer.vector):
        try:
            core = exactness_core(problem, scheme, limits, Deadline(_REASON_SECONDS))
            contended = core is None
            why = None if core is None else WhyNot(tuple(core[0]), tuple(core[1]))
        except UndecidedError:
            why = None
    ways: tuple[Remedy, ...] | None
    try:
        ways = tuple(remedies(problem, limits.operators, Deadline(_REASON_SECONDS)))
    except UndecidedError:
        ways = None
    return replace(answer, why_not=why, contended=contended, remedies=ways)
