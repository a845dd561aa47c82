"""Faults, instructions and rule tables as terms of z3.

`fault_terms` has the facts that hold of every fault, `table_worlds` what a table of rules does
with one, `search` finds a fault for which a term is true. It imports `problems`. Begin with
`fault_terms`.
"""
