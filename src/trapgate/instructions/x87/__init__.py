"""Arithmetic of x87 instructions on whole numbers, which needs no engine and is the same anywhere.

Inside: registers as sign, exponent and mantissa (`extended_numbers`, where to begin), numbers of
128 bits and more, remainders, transcendental functions, and how a result is rounded. It imports
what `instructions` may.
"""
