"""What is asked of a filter: error codes, who has to exit or not, what a failure costs.

`codes` lays out the codes of a vector, `problem` says which exit and which do not, `filters`
what the fields of a VMCS are, `solvers` where z3 and the SAT solver come from. It imports
`vmcs` and below. Begin with `problem`.
"""
