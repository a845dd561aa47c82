"""Functions that translated x87 instructions call, to be as exact as a processor.

Inside: exceptions before and after an instruction (`exceptions`), rounding and C1, stores to
memory, exponents out of range, pointers to instruction and operand, and functions that replace the
engine's. The arithmetic that needs no engine is in `instructions.x87`. It may import that,
`emission` and `library`. Begin with `exceptions`.
"""
