"""The operators of the criteria table's clauses, one expression each (¶59).

Expressions as in `trapgate.decision.rules`, and for its reasons: the same lines judge integers,
arrays, columns and bit-vectors, and the compiler makes machine code of them. All numbers have 64
bits, and no constant here is one that only signed or only unsigned numbers could hold: `ones` has
all bits set and `sign` just the uppermost, in the world's own kind. `value` is what the clause's
mask has left.
"""

from typing import Any

from trapgate.compiler.dialect import core


@core
def masked(value: Any, mask: Any) -> Any:
    """The bits of a value that a clause looks at."""
    return value & mask


@core
def below_64(left: Any, right: Any, ones: Any, sign: Any) -> Any:
    """Unsigned `left < right` for 64-bit values: whether left - right borrows."""
    inverse = left ^ ones
    return (((inverse & right) | ((inverse | right) & (left - right))) & sign) != 0


@core
def is_equal(value: Any, operand: Any) -> Any:
    """The bits equal the operand."""
    return value == operand


@core
def in_range(value: Any, lowest: Any, highest: Any, ones: Any, sign: Any) -> Any:
    """Unsigned `lowest <= value <= highest`."""
    outside = below_64(value, lowest, ones, sign) | below_64(highest, value, ones, sign)
    return outside != (ones == ones)


@core
def any_bit(value: Any, operand: Any) -> Any:
    """One of the operand's bits is set, or several."""
    return (value & operand) != 0


@core
def all_bits(value: Any, operand: Any) -> Any:
    """Every bit of the operand is set."""
    return (value & operand) == operand
