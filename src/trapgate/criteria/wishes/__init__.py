"""What a user wishes, read from files: specifications, tables of wishes, faults of a trace.

`spec` reads wishes about error codes, `fault_wishes` those about whole faults, `trace_faults` the
faults that a trace recorded. It may import `terms` and `problems`. Begin with `spec`.
"""
