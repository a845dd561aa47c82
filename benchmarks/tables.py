"""What a criteria table costs each fault, on the native path.

There is no peer, so these count the processor's time. The 8 rules are such that every fault goes
through all of them to their last clause. It is a store's.
"""

import functools
import time

from benchmarks.guests import fault_loop
from benchmarks.measure import Benchmark, SkipSide, rate
from benchmarks.ours import prepared
from trapgate.decision.condition_rules import rules_for
from trapgate.decision.conditions import parse
from trapgate.decision.criteria_rules import Action, Rule
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm.reasons import ExitReason

criteria_table = Benchmark(
    "criteria-table", "a page fault delivered in ring 0, with and without a criteria table",
    "faults/s", "higher", "at most 100 ns for 8 rules of 3 clauses",
)  # fmt: skip


def rules_of(count: int, condition: str) -> tuple[Rule, ...]:
    """`count` rules of one condition, none of which ever matches."""
    (rule,) = rules_for(parse(condition), Action.EXIT)
    return (rule,) * count


TABLES = {
    "no table": (),
    "1 rule of 3 clauses": rules_of(1, "vector == PF and cpl == 0 and address < 0x1000"),
    "8 rules of 3 clauses": rules_of(8, "vector == PF and cpl == 0 and address < 0x1000"),
    "8 rules of 3 clauses, a walk": rules_of(8, "vector == PF and cpl == 0 and walk_level == 4"),
    "8 rules of 3 clauses, the data": rules_of(8, "vector == PF and cpl == 0 and data_size == 3"),
}


def seconds_of(count: int, *, rules: tuple[Rule, ...]) -> float:
    """Seconds of the processor for `count` faults under the rules."""
    processor, vmcs = prepared(fault_loop(count, store=True), "native", user=False)
    vmcs.criteria_table = rules
    began = time.process_time()
    outcome = processor.vmlaunch(vmcs)
    seconds = time.process_time() - began
    if not (isinstance(outcome, VmExit) and outcome.reason is ExitReason.IO_INSTRUCTION):
        raise SkipSide(f"the guest did not get to its end: {outcome}")
    return seconds


for name, table in TABLES.items():
    run = functools.partial(seconds_of, rules=table)
    criteria_table.side(name)(functools.partial(rate, run, 100_000, 2_100_000))
