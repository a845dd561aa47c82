"""Faults, instructions and rule tables as terms of z3.

`fault_terms` states what holds of every fault, `table_backends` what a table of rules does with a
fault, `search` finds a fault for which a term is true. It may import `problems`. Begin with
`fault_terms`.
"""
