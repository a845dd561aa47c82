"""Numbers of 80 bits, as x87 registers hold them: sign and exponent, 16 bits, and a mantissa of 64.

SDM, volume 1, "Double Extended-Precision". A mantissa with the integer bit set is negative here.
"""

from trapgate.compiler.dialect import core, inlined

LARGEST = 0x7FFF
SIGN = 0x8000
EXPONENT_OF_1 = 16383
WRAPPED = 24576
"""Added to the exponent of a result that is too small while underflow is unmasked, taken from
that of one too large (SDM, "Numeric Overflow Exception (#O)")."""

_C0, _C2, _C3 = 0x100, 0x400, 0x4000
ZERO, FINITE, INFINITE, OTHER = range(4)
"""What a register may hold; the last: a NaN, or what is not a number of this format."""


@core
def number_kind(high: int, low: int) -> int:
    """Which of these sign and exponent `high` and mantissa `low` are."""
    if high & LARGEST == LARGEST:
        return INFINITE if low == -(1 << 63) else OTHER
    if high & LARGEST == 0:
        return ZERO if low == 0 else FINITE
    return FINITE if low < 0 else OTHER


@core
def examined(high: int, low: int, empty: bool) -> int:
    """C0, C2 and C3 of the status word as FXAM sets them (SDM, "FXAM")."""
    if empty:
        return _C3 | _C0
    kind = number_kind(high, low)
    if kind == ZERO:
        return _C3
    if kind == INFINITE:
        return _C2 | _C0
    if kind == FINITE:
        return _C2 if high & LARGEST != 0 else _C3 | _C2
    # A NaN, or what the processor does not support.
    return _C0 if high & LARGEST == LARGEST and low < 0 else 0


@core
@inlined
def normalised(exponent: int, mantissa: int) -> tuple[int, int]:
    """(Exponent, mantissa with its integer bit set) of a mantissa that is not 0."""
    while mantissa >= 0:
        # Bit 62 becomes the sign of the integer.
        top = -(1 << 63) if mantissa & 1 << 62 else 0
        mantissa = (mantissa & (1 << 62) - 1) << 1 | top
        exponent -= 1
    return exponent, mantissa


@core
def packed(exponent: int, mantissa: int) -> tuple[int, int]:
    """(Biased exponent, mantissa) as a register holds them; nothing is lost of a denormal."""
    if mantissa == 0:
        return 0, 0
    exponent, mantissa = normalised(exponent, mantissa)
    if exponent > 0:
        return exponent, mantissa
    # The sign bit of this integer is a bit like others.
    mantissa = (mantissa >> 1) & (1 << 63) - 1
    return 0, mantissa >> min(-exponent, 63)


@core
def scaled(high: int, low: int, power: int) -> tuple[int, int]:
    """A number that is not infinite times a power of 2; no exponent becomes less than 1.

    Only where a number much greater is added to it is it small enough for that.
    """
    if low == 0:
        return high, low
    exponent, mantissa = normalised(max(high & LARGEST, 1), low)
    return high & SIGN | max(exponent + power, 1), mantissa
