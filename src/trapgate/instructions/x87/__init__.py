"""Arithmetic of x87 instructions with integers, which gives the same results on every host.

Inside: registers as sign, exponent and mantissa (`extended_numbers`), numbers of 128 bits and more,
remainders, transcendental functions, and rounding. It may import what `instructions` may. Begin
with `extended_numbers`.
"""
