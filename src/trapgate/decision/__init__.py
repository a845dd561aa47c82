"""From fault information and criteria in the VMCS to one of three dispositions (¶28-86).

Pure functions: `faults` says what is known of a fault, `rules` has the control-transfer criteria
and `fault_filters` the fault filtering criteria, one expression each, `decide` puts them in
order. It may import `operands` and below. Begin with `decide.decide`.
"""
