"""What a filter has to achieve: which error codes exit, which do not, and the cost of a failure.

`codes` describes the error codes of a vector, `problem` says which must exit and which must not,
`filters` turns VMCS fields into a filter, `solvers` imports z3 and the SAT solver. It may import
`vmcs` and below. Begin with `problem`.
"""
