"""One run: back to the beginning, on to the moment, the fault, and on to an end."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable
from typing import NamedTuple

from trapgate.campaign.bench import AT_POINT, Bench, Counts, Halt
from trapgate.campaign.errors import ClassError
from trapgate.campaign.faults import SET_1, Fault, Flip
from trapgate.campaign.golden import Reference
from trapgate.campaign.outcomes import ERROR, NOT_APPLIED, Ending, classify
from trapgate.campaign.places import AbsentError, general_number
from trapgate.errors import TrapgateError
from trapgate.sdm import cells as f

_LONGEST_DETAIL = 500


class Result(NamedTuple):
    """What became of a run.

    `outcome` is its class, `end` one of `outcomes.ENDS`, `detail` says more in words. `rip` is
    where the fault was put in, `instructions` how many were executed from there on.
    """

    outcome: str
    end: str
    status: int
    detail: str
    rip: int
    instructions: int
    output: str
    """The first 16 digits of the output's SHA-256 where it is not the golden run's."""


def _nothing() -> None:
    pass


def execute(
    reference: Reference, moment: int, fault: Fault, there: Callable[[], None] = _nothing
) -> Result:
    """Run a fault at a moment. What goes wrong with Trapgate is an outcome too.

    `there` is called when the moment has come, before the fault is put in. Raises ClassError if a
    function of the plan's fails.
    """
    try:
        return _execute(reference, moment, fault, there)
    except ClassError:
        raise
    except (
        TrapgateError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
        return Result(ERROR, "", 0, detail[:_LONGEST_DETAIL], 0, 0, "")


def _execute(reference: Reference, moment: int, fault: Fault, there: Callable[[], None]) -> Result:
    bench = reference.bench
    vm = bench.vm
    if not bench.go_to(moment):
        raise TrapgateError(f"the golden run ends before {moment}")
    words = vm.vmcs.words
    rip = words[f.GUEST_RIP] + words[f.GUEST_CS_BASE]
    begun = vm.processor.time
    there()
    try:
        fault.apply(vm)
    except AbsentError as error:
        return Result(NOT_APPLIED, "", 0, str(error), rip, 0, "")
    ending = _run_to_end(reference, fault)
    outcome = classify(ending, bench.plan.detected, bench.plan.classes)
    detail = ", ".join(ending.extra) if ending.same_end and ending.same_output else ending.message
    digest = "" if ending.same_output else hashlib.sha256(ending.output).hexdigest()[:16]
    time = (vm.processor.time if ending.time is None else ending.time) - begun
    return Result(outcome, ending.end, ending.status, detail[:_LONGEST_DETAIL], rip, time, digest)


def _run_to_end(reference: Reference, fault: Fault) -> Ending:
    """To the end; or to a checkpoint where all is again as in the golden run, whose end follows."""
    bench = reference.bench
    if fault.holds:
        return ending_of(reference, _run_with_stuck_fault(reference, fault), fault)
    for checkpoint in reference.ahead(bench.vm.processor.time) if reference.checkpoints else ():
        halt = bench.run_towards(checkpoint.snapshot.time)
        if halt is not None:
            return ending_of(reference, halt, fault)
        if checkpoint.snapshot.is_reached():
            golden = reference.golden
            extra = _extra_faults(bench, checkpoint.counts, fault)
            how = golden.how, golden.status, golden.message, golden.output
            return Ending(*how, extra, True, True, True, time=golden.end)
    return ending_of(reference, bench.run_to(reference.limit), fault)


def _run_with_stuck_fault(reference: Reference, fault: Fault) -> Halt:
    """Continue to the golden run's end with a fault that is there again before each instruction.

    The engine sees to bits of a general register. All else is done again by and by, so the guest
    is executed one instruction at a time.
    """
    bench = reference.bench
    vm = bench.vm
    engine = vm.processor.engine
    limit = min(reference.limit, reference.golden.end)
    register = general_number(fault.place) if isinstance(fault, Flip) else -1
    if isinstance(fault, Flip) and register >= 0 and engine.has_stuck_bits and len(vm.cpus) == 1:
        mask = 1 << fault.bit
        engine.stick(register, mask, mask if fault.mode == SET_1 else 0)
        try:
            vm.step(limit - vm.processor.time)
        finally:
            engine.unstick()
        return bench.run_to(reference.limit)
    while vm.processor.time < limit and vm.stopped is None:
        vm.step(1)
        try:
            fault.apply(vm)
        except AbsentError:
            continue  # it may be there again later
    return bench.run_to(reference.limit)


def ending_of(reference: Reference, halt: Halt, fault: Fault) -> Ending:
    """The end of the bench's run, compared with the golden run's."""
    bench, golden = reference.bench, reference.golden
    output = bench.output
    same_end = halt.end == golden.how and halt.status == golden.status
    same_output = output == golden.output
    extra: tuple[str, ...] = ()
    same_state = False
    if same_end and same_output:
        extra = _extra_faults(bench, reference.counts, fault)
        same_state = reference.last.differing_pages() == 0 and (
            halt.end != AT_POINT.end or bench.registers() == reference.registers
        )
    return Ending(
        halt.end, halt.status, halt.message, output, extra, same_end, same_output, same_state
    )


def _extra_faults(bench: Bench, golden: Counts, fault: Fault) -> tuple[str, ...]:
    """Faults that the guest took and the golden run did not: the one put in, and others."""
    return tuple(dict.fromkeys((*fault.raises, *bench.extra_faults(golden))))
