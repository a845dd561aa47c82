"""Control-transfer rules: does a fault with this error code exit to the VMM?

Each rule is one expression, written once and read by many interpreters: `int` (the
processor), machine code's 64 bits, NumPy arrays, Polars expressions and z3 bit-vectors. So
there is no `if`, `and`, `or`, `not` or chained comparison here, only operators that
all of them overload, and a test refuses the others. Hazards that shaped the code:

* the truth value of a z3 term is silently False, and `~True` is -2: booleans are
  combined with `&`, `|` and `!=` (exclusive or) only;
* z3 compares bit-vectors as signed numbers: "below" is built from the borrow of a
  32-bit subtraction instead;
* Polars has no shifts: bits are placed by multiplication;
* Polars propagates null, but `False & null` is False: a null error code is harmless
  where `has_code` is False;
* a Python bool on the left of `&` does not know z3: the computed term stands left.

Arguments common to all rules: `control` is the fault's bit in the redirection map
(¶42) and `has_code` says whether the fault has an error code (¶43), both booleans of
the interpreter's own kind (see `control_bit`); `code` is the error code, an unsigned
number of 32 bits in 32 bits or more. The other arguments are VMCS fields of the same
kind as `code`, or plain integers. All rules answer True for a VM exit. A fault without
an error code is decided by its control bit; figures 3 and 5 say so, and for the
embodiments that do not consider such faults (¶38, ¶47, figure 4, ¶56) we say so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trapgate.compiler.dialect import core

SIGN = 0x80000000
WORD = 0xFFFFFFFF


@core
def control_bit(bitmap: Any, weight: Any) -> Any:
    """The boolean value of a redirection map's bit; `weight` is 2 to its number (¶42)."""
    return (bitmap & weight) != 0


@core
def mapped_code(code: Any, window: Any, scale: Any) -> Any:
    """The error code's bits that narrow fields map, in their places (¶41).

    `window` is 2**width - 1 for fields of `width` bits; `scale` is 2**n where bit 0 of
    a field stands for bit n of the error code.
    """
    return code & (window * scale)


@core
def mapped_field(field: Any, window: Any, scale: Any) -> Any:
    """A narrow field's bits moved to the error-code bits that they stand for (¶41)."""
    return (field & window) * scale


@core
def below(left: Any, right: Any) -> Any:
    """Unsigned `left < right` for 32-bit values: whether left - right borrows."""
    inverse = left ^ WORD
    return (((inverse & right) | ((inverse | right) & (left - right))) & SIGN) != 0


@core
def figure_3(control: Any, has_code: Any, code: Any, mask: Any, match: Any) -> Any:
    """Figure 3: the control bit, inverted if the code does not match (¶40-46; VT-x's rule)."""
    return control != (((code & mask) != match) & has_code)


@core
def exchanged(control: Any, has_code: Any, code: Any, mask: Any, match: Any) -> Any:
    """Figure 3 with the polarity exchanged: inverted if the code does match (¶44)."""
    return control != (((code & mask) == match) & has_code)


@core
def without_control(control: Any, has_code: Any, code: Any, mask: Any, match: Any) -> Any:
    """No control bit: a code that matches is the guest's, any other exits (¶47)."""
    return control != ((control != ((code & mask) != match)) & has_code)


@core
def match_exits(control: Any, has_code: Any, code: Any, mask: Any, match: Any) -> Any:
    """No control bit, the other way round: a code that matches exits, any other stays (¶50)."""
    return control != ((control != ((code & mask) == match)) & has_code)


@core
def figure_4(
    control: Any,
    has_code: Any,
    code: Any,
    mask_1: Any,
    match_1: Any,
    mask_2: Any,
    match_2: Any,
) -> Any:
    """Figure 4: a code that matches either of two pairs exits (¶51-53)."""
    hit = ((code & mask_1) == match_1) | ((code & mask_2) == match_2)
    return control != ((control != hit) & has_code)


@core
def figure_5(control: Any, has_code: Any, code: Any, any_mask: Any, mask: Any, match: Any) -> Any:
    """Figure 5: the control bit, inverted unless a bit of `any_mask` is set or the pair matches.

    ¶54-58: INT1 = EC AND MASK1 has any bit set, or EC AND MASK2 == MATCH.
    """
    miss = ((code & any_mask) == 0) & ((code & mask) != match)
    return control != (miss & has_code)


@core
def any_or_match(
    control: Any, has_code: Any, code: Any, any_mask: Any, mask: Any, match: Any
) -> Any:
    """Figure 5 without the control bit: either condition exits (¶56)."""
    hit = ((code & any_mask) != 0) | ((code & mask) == match)
    return control != ((control != hit) & has_code)


@core
def equal(control: Any, has_code: Any, code: Any, value: Any) -> Any:
    """¶38: exits if the code equals `value`."""
    return control != ((control != (code == value)) & has_code)


@core
def not_equal(control: Any, has_code: Any, code: Any, value: Any) -> Any:
    """¶38: exits if the code differs from `value`."""
    return control != ((control != (code != value)) & has_code)


@core
def less(control: Any, has_code: Any, code: Any, value: Any) -> Any:
    """¶38: exits if the code is less than `value`, unsigned."""
    return control != ((control != below(code, value)) & has_code)


@core
def less_or_equal(control: Any, has_code: Any, code: Any, value: Any) -> Any:
    """¶38: exits if the code is at most `value`, unsigned."""
    return control != ((control == below(value, code)) & has_code)


@core
def greater(control: Any, has_code: Any, code: Any, value: Any) -> Any:
    """¶38: exits if the code is greater than `value`, unsigned."""
    return control != ((control != below(value, code)) & has_code)


@core
def greater_or_equal(control: Any, has_code: Any, code: Any, value: Any) -> Any:
    """¶38: exits if the code is at least `value`, unsigned."""
    return control != ((control == below(code, value)) & has_code)


@core
def member(
    control: Any,
    has_code: Any,
    code: Any,
    used: Any,
    value_0: Any,
    value_1: Any,
    value_2: Any,
    value_3: Any,
    value_4: Any,
    value_5: Any,
    value_6: Any,
    value_7: Any,
) -> Any:
    """¶38: exits if the code is one of the values whose bit in `used` (bits 7:0) is set."""
    hit = (
        ((code == value_0) & ((used & 0x01) != 0))
        | ((code == value_1) & ((used & 0x02) != 0))
        | ((code == value_2) & ((used & 0x04) != 0))
        | ((code == value_3) & ((used & 0x08) != 0))
        | ((code == value_4) & ((used & 0x10) != 0))
        | ((code == value_5) & ((used & 0x20) != 0))
        | ((code == value_6) & ((used & 0x40) != 0))
        | ((code == value_7) & ((used & 0x80) != 0))
    )
    return control != ((control != hit) & has_code)


CRITERION_FIGURE_3 = 0
CRITERION_EXCHANGED = 1
CRITERION_WITHOUT_CONTROL = 2
CRITERION_FIGURE_4 = 3
CRITERION_FIGURE_5 = 4
CRITERION_ANY_OR_MATCH = 5
CRITERION_COMPARISON = 6
CRITERION_MEMBER = 7
CRITERION_MATCH_EXITS = 8
"""The values of the extension field TRANSFER_CRITERION."""

OPERATOR_EQUAL = 0
OPERATOR_NOT_EQUAL = 1
OPERATOR_LESS = 2
OPERATOR_LESS_OR_EQUAL = 3
OPERATOR_GREATER = 4
OPERATOR_GREATER_OR_EQUAL = 5
"""The values of the extension field COMPARISON_OPERATOR."""

PAIR = {
    8: "VECTOR_8",
    10: "VECTOR_10",
    11: "VECTOR_11",
    12: "VECTOR_12",
    13: "VECTOR_13",
    14: "PAGE_FAULT",
    17: "VECTOR_17",
    21: "VECTOR_21",
}
"""The beginning of the names of the mask and match fields of each vector with an error code."""

MASK = "{}_ERROR_CODE_MASK"
MATCH = "{}_ERROR_CODE_MATCH"


@dataclass(frozen=True)
class Scheme:
    """One embodiment of the control-transfer criteria.

    `function` takes control, has_code and code, then the values of `fields` in their
    order; a "{}" in a field's name stands for the vector's own (`fields_for`).
    `criterion` and `operator` are the values that select it in a VMCS, `paragraph` is
    its place in the seed, `uses_control` tells whether the control bit has a say about
    a fault that has an error code.
    """

    name: str
    function: Callable[..., Any]
    fields: tuple[str, ...]
    paragraph: str
    criterion: int
    operator: int = 0
    uses_control: bool = False

    def fields_for(self, vector: int) -> tuple[str, ...]:
        """The VMCS fields it reads for `vector`; KeyError for one without an error code."""
        return tuple(field.format(PAIR[vector]) for field in self.fields)


_VALUE = ("COMPARISON_VALUE",)

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("figure-3", figure_3, (MASK, MATCH), "figure 3", CRITERION_FIGURE_3, 0, True),
        Scheme("exchanged", exchanged, (MASK, MATCH), "¶44", CRITERION_EXCHANGED, 0, True),
        Scheme("no-control", without_control, (MASK, MATCH), "¶47", CRITERION_WITHOUT_CONTROL),
        Scheme("match-exits", match_exits, (MASK, MATCH), "¶50", CRITERION_MATCH_EXITS),
        Scheme(
            "figure-4",
            figure_4,
            (MASK, MATCH, "SECOND_ERROR_CODE_MASK", "SECOND_ERROR_CODE_MATCH"),
            "figure 4",
            CRITERION_FIGURE_4,
        ),
        Scheme(
            "figure-5",
            figure_5,
            ("ANY_BIT_MASK", MASK, MATCH),
            "figure 5",
            CRITERION_FIGURE_5,
            0,
            True,
        ),
        Scheme(
            "any-or-match",
            any_or_match,
            ("ANY_BIT_MASK", MASK, MATCH),
            "¶56",
            CRITERION_ANY_OR_MATCH,
        ),
        Scheme("equal", equal, _VALUE, "¶38", CRITERION_COMPARISON, OPERATOR_EQUAL),
        Scheme("not-equal", not_equal, _VALUE, "¶38", CRITERION_COMPARISON, OPERATOR_NOT_EQUAL),
        Scheme("less", less, _VALUE, "¶38", CRITERION_COMPARISON, OPERATOR_LESS),
        Scheme(
            "less-or-equal",
            less_or_equal,
            _VALUE,
            "¶38",
            CRITERION_COMPARISON,
            OPERATOR_LESS_OR_EQUAL,
        ),
        Scheme("greater", greater, _VALUE, "¶38", CRITERION_COMPARISON, OPERATOR_GREATER),
        Scheme(
            "greater-or-equal",
            greater_or_equal,
            _VALUE,
            "¶38",
            CRITERION_COMPARISON,
            OPERATOR_GREATER_OR_EQUAL,
        ),
        Scheme(
            "member",
            member,
            ("MEMBERS_USED", *(f"MEMBER_{n}" for n in range(8))),
            "¶38",
            CRITERION_MEMBER,
        ),
    )
}
"""Every scheme by name; whoever replays or proves a policy finds its rule here."""
