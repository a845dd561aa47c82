"""The embodiments with names as criteria tables: special cases of one mechanism.

Each function gives the rules that decide as the fields do. `control` is the fault's bit of the
redirection map (¶42). The masks and values may be terms of another world, for proofs.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from trapgate.decision.criteria_rules import WORD, Action, Clause, Operator, Rule
from trapgate.decision.fault_filters import (
    FRAME,
    FRAME_64,
    LARGE,
    PRESENT,
    WRITABLE,
)
from trapgate.decision.fault_values import BY_NAME
from trapgate.paging.frame_map import OWN
from trapgate.sdm.vectors import PF

_CODE = BY_NAME["code"]
_EXECUTE_DISABLE = 1 << 63


def _about_vector(vector: int, *clauses: Clause) -> tuple[Clause, ...]:
    return Clause(BY_NAME["vector"], Operator.EQUAL, vector), *clauses


def _with_code(*clauses: Clause) -> tuple[Clause, ...]:
    """Holds for faults that have an error code, and for them alone (¶43)."""
    return clauses or (Clause(_CODE, Operator.BELOW_OR_EQUAL, WORD),)


def _match(mask: Any, match: Any) -> Clause:
    return Clause(_CODE, Operator.EQUAL, match, mask=mask)


def _two_ways(
    vector: int, conditions: list[Clause], matching: Action, other: Action, without_code: Action
) -> tuple[Rule, ...]:
    """Codes for which one of the conditions holds, all other codes, and no code at all."""
    return (
        *(Rule(matching, _about_vector(vector, condition)) for condition in conditions),
        Rule(other, _about_vector(vector, *_with_code())),
        Rule(without_code, _about_vector(vector)),
    )


def _by_bit(control: bool) -> tuple[Action, Action]:
    """What a set control bit means, and its opposite."""
    return (Action.EXIT, Action.DELIVER) if control else (Action.DELIVER, Action.EXIT)


def figure_3(vector: int, control: bool, mask: Any, match: Any) -> tuple[Rule, ...]:
    """Figure 3: the control bit, inverted if the code does not match (¶40-46)."""
    as_it_is, inverted = _by_bit(control)
    return _two_ways(vector, [_match(mask, match)], as_it_is, inverted, as_it_is)


def exchanged(vector: int, control: bool, mask: Any, match: Any) -> tuple[Rule, ...]:
    """Figure 3 with the polarity exchanged (¶44)."""
    as_it_is, inverted = _by_bit(control)
    return _two_ways(vector, [_match(mask, match)], inverted, as_it_is, as_it_is)


def without_control(vector: int, control: bool, mask: Any, match: Any) -> tuple[Rule, ...]:
    """No control bit: a code that matches is the guest's, any other exits (¶47)."""
    by_bit, _ = _by_bit(control)
    return _two_ways(vector, [_match(mask, match)], Action.DELIVER, Action.EXIT, by_bit)


def match_exits(vector: int, control: bool, mask: Any, match: Any) -> tuple[Rule, ...]:
    """No control bit: a code that matches exits, any other is the guest's (¶50)."""
    by_bit, _ = _by_bit(control)
    return _two_ways(vector, [_match(mask, match)], Action.EXIT, Action.DELIVER, by_bit)


def figure_4(
    vector: int, control: bool, mask_1: Any, match_1: Any, mask_2: Any, match_2: Any
) -> tuple[Rule, ...]:
    """Figure 4: a code that matches either of two pairs exits (¶51-53)."""
    by_bit, _ = _by_bit(control)
    pairs = [_match(mask_1, match_1), _match(mask_2, match_2)]
    return _two_ways(vector, pairs, Action.EXIT, Action.DELIVER, by_bit)


def figure_5(vector: int, control: bool, any_mask: Any, mask: Any, match: Any) -> tuple[Rule, ...]:
    """Figure 5: the control bit, inverted unless a bit of `any_mask` is set or the pair matches."""
    as_it_is, inverted = _by_bit(control)
    conditions = [Clause(_CODE, Operator.ANY_BIT, any_mask), _match(mask, match)]
    return _two_ways(vector, conditions, as_it_is, inverted, as_it_is)


def any_or_match(
    vector: int, control: bool, any_mask: Any, mask: Any, match: Any
) -> tuple[Rule, ...]:
    """Figure 5 without the control bit: either condition exits (¶56)."""
    by_bit, _ = _by_bit(control)
    conditions = [Clause(_CODE, Operator.ANY_BIT, any_mask), _match(mask, match)]
    return _two_ways(vector, conditions, Action.EXIT, Action.DELIVER, by_bit)


def _comparison(operator: Operator, negated: bool) -> Callable[..., tuple[Rule, ...]]:
    def rules(vector: int, control: bool, value: Any) -> tuple[Rule, ...]:
        by_bit, _ = _by_bit(control)
        condition = Clause(_CODE, operator, value, negated=negated)
        return _two_ways(vector, [condition], Action.EXIT, Action.DELIVER, by_bit)

    return rules


def member(vector: int, control: bool, used: int, *values: Any) -> tuple[Rule, ...]:
    """¶38: exits if the code is one of the values whose bit in `used` (an integer) is set."""
    by_bit, _ = _by_bit(control)
    conditions = [
        Clause(_CODE, Operator.EQUAL, value) for n, value in enumerate(values) if used >> n & 1
    ]
    return _two_ways(vector, conditions, Action.EXIT, Action.DELIVER, by_bit)


TRANSFER: Final[Mapping[str, Callable[..., tuple[Rule, ...]]]] = {
    "figure-3": figure_3,
    "exchanged": exchanged,
    "no-control": without_control,
    "match-exits": match_exits,
    "figure-4": figure_4,
    "figure-5": figure_5,
    "any-or-match": any_or_match,
    "equal": _comparison(Operator.EQUAL, False),
    "not-equal": _comparison(Operator.EQUAL, True),
    "less": _comparison(Operator.BELOW, False),
    "less-or-equal": _comparison(Operator.BELOW_OR_EQUAL, False),
    "greater": _comparison(Operator.BELOW_OR_EQUAL, True),
    "greater-or-equal": _comparison(Operator.BELOW, True),
    "member": member,
}
"""The schemes of `rules.SCHEMES`: vector, control bit, then the fields' values in their order."""


def _entry(name: str, operator: Operator, operand: int, *, negated: bool = False) -> Clause:
    return Clause(BY_NAME[name], operator, operand, negated=negated)


def _clear(name: str, bits: int) -> Clause:
    return _entry(name, Operator.ANY_BIT, bits, negated=True)


_IS_PTE = _entry("table_entry", Operator.EQUAL, 1)


def figure_7() -> tuple[Rule, ...]:
    """Figure 7: a write to a PTE that does not set P completes."""
    return (Rule(Action.COMPLETE, (_IS_PTE, _clear("new_entry", PRESENT))),)


def figure_8(*, wide: bool, page_size: bool) -> tuple[Rule, ...]:
    """Figure 8: also one that finds P set, keeps the PFN and grants nothing.

    `wide` says that entries have 8 bytes, `page_size` that PS means a large page.
    """
    kept = FRAME_64 | LARGE if wide else FRAME | (LARGE if page_size else 0)
    denying = _EXECUTE_DISABLE if wide else 0
    keeps = (
        _IS_PTE,
        _entry("old_entry", Operator.ANY_BIT, PRESENT),
        _clear("set_bits", kept | WRITABLE),
        _clear("cleared_bits", kept | denying),
    )
    return *figure_7(), Rule(Action.COMPLETE, keeps)


def own_frame() -> tuple[Rule, ...]:
    """The own-frame filter (¶72, ¶85): a PTE may come to lead to any frame of the guest's own."""
    own = _entry("new_frame_type", Operator.ANY_BIT, OWN)
    return (
        Rule(Action.COMPLETE, (_IS_PTE, _clear("new_entry", PRESENT))),
        Rule(Action.COMPLETE, (_IS_PTE, own)),
    )


def paragraph_80() -> tuple[Rule, ...]:
    """¶80: a write to a PTE or a PDE that does not set P completes."""
    either = _entry("table_entry", Operator.BELOW_OR_EQUAL, 2)
    return (Rule(Action.COMPLETE, (either, _clear("new_entry", PRESENT))),)


def ordered(
    order: str, completing: tuple[Rule, ...], control: bool, mask: Any, match: Any
) -> tuple[Rule, ...]:
    """Page faults by a fault filter and figure 3, in an order of `fault_filters.ORDERS`.

    `completing` are the filter's rules. Before (figure 6), for what would exit (¶60), alone
    (¶66), or for what would go to the guest (¶67).
    """
    criteria = figure_3(PF, control, mask, match)
    if order == "paragraph-66":
        return *completing, Rule(Action.EXIT, _about_vector(PF))
    if order == "figure-6":
        return *completing, *criteria
    matches = _match(mask, match)
    would_exit = matches if control else replace(matches, negated=True)
    asked = would_exit
    if order == "paragraph-67":
        asked = replace(would_exit, negated=not would_exit.negated)
    return *(Rule(rule.action, (*rule.clauses, asked)) for rule in completing), *criteria
