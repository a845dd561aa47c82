"""What the engine's translated x87 instructions call of ours, to be as exact as a processor.

Inside: exceptions before and behind an instruction (`exceptions`, where to begin), rounding and C1,
stores to memory, exponents out of range, pointers to instruction and operand, and the functions
that are computed in place of the engine's. What needs no engine stands in `instructions.x87`,
which it imports, and `emission` and `library`.
"""
