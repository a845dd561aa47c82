"""What a user wishes, from files: specifications, tables of wishes, faults of a trace.

`spec` reads wishes about error codes, `fault_wishes` those about whole faults, `trace_faults`
what a trace recorded. It imports `terms` and `problems`. Begin with `spec`.
"""
