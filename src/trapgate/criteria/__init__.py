"""The criteria compiler: from wishes to VMCS fields, with a proof (figure 9, ¶86-87).

Each command is a module: `define` compiles wishes, `merge` combines several filters, `learn` works
from a trace, `explain` describes fields in words, and `check` proves that they do what was wished.
Subpackages hold what the commands share: `wishes` reads files, `terms` states faults for z3,
`covers` and `rule_tables` search, `proofs` verifies on the rules that the processor runs
(`trapgate.decision.rules`), `problems` defines the questions. It may import `vmcs`, `trace` and
below, and never reaches the engine. Begin with `define`.
"""

from trapgate.criteria.answer import Definition, VectorAnswer
from trapgate.criteria.check import Verdict, check
from trapgate.criteria.covers.schemes import FILTER_SCHEMES, OPERATORS, scheme_names
from trapgate.criteria.define import define
from trapgate.criteria.define_table import FoundCriteria, check_wishes, define_criteria
from trapgate.criteria.difference import Difference, compare_exits
from trapgate.criteria.errors import (
    ContradictionError,
    CriteriaError,
    InexpressibleError,
    MissingSolverError,
    ProofError,
    SpecError,
    UndecidedError,
    UnknownSchemeError,
)
from trapgate.criteria.explain import Explanation, Warn, compare, explain
from trapgate.criteria.explain_table import TableReading, read_table
from trapgate.criteria.learn import Learned, learn
from trapgate.criteria.learn_table import LearnedTable, learn_table
from trapgate.criteria.merge import Merged, Party, Share, merge
from trapgate.criteria.merge_tables import MOST_RULES as MOST_MERGED_RULES
from trapgate.criteria.merge_tables import MergedTables, merge_tables
from trapgate.criteria.problems.filters import Filter, filter_in
from trapgate.criteria.proofs.closed_form import PageFaultFilter, merged, prove_closed_form
from trapgate.criteria.rule_tables.clause_candidates import operators_named
from trapgate.criteria.vmcs02 import Vmcs02Check, check_vmcs02
from trapgate.criteria.wishes.fault_rows import read_rows, rows_for
from trapgate.criteria.wishes.fault_wishes import FaultWishes, parse_wishes, read_wishes
from trapgate.criteria.wishes.spec import Spec, parse_spec, read_spec
from trapgate.criteria.wishes.trace_faults import weights_in
from trapgate.decision.criteria_rules import MOST_RULES

__all__ = [
    "FILTER_SCHEMES",
    "MOST_MERGED_RULES",
    "MOST_RULES",
    "OPERATORS",
    "ContradictionError",
    "CriteriaError",
    "Definition",
    "Difference",
    "Explanation",
    "FaultWishes",
    "Filter",
    "FoundCriteria",
    "InexpressibleError",
    "Learned",
    "LearnedTable",
    "Merged",
    "MergedTables",
    "MissingSolverError",
    "PageFaultFilter",
    "Party",
    "ProofError",
    "Share",
    "Spec",
    "SpecError",
    "TableReading",
    "UndecidedError",
    "UnknownSchemeError",
    "VectorAnswer",
    "Verdict",
    "Vmcs02Check",
    "Warn",
    "check",
    "check_vmcs02",
    "check_wishes",
    "compare",
    "compare_exits",
    "define",
    "define_criteria",
    "explain",
    "filter_in",
    "learn",
    "learn_table",
    "merge",
    "merge_tables",
    "merged",
    "operators_named",
    "parse_spec",
    "parse_wishes",
    "prove_closed_form",
    "read_rows",
    "read_spec",
    "read_table",
    "read_wishes",
    "rows_for",
    "scheme_names",
    "weights_in",
]
