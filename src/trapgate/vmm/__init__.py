"""A VMM in Python: exit handlers, devices, firmware tables, guest loaders and the console.

`machine.VirtualMachine` is a PC with one virtual processor, `platform` what its handlers see of
it, `handlers` the table from exit reasons to what is done. It imports `processor` and below.
Begin with `machine`.
"""
