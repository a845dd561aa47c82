"""From fault information and criteria in the VMCS to one of three dispositions (¶28-86).

Pure functions: `faults` holds what is known about a fault, `rules` the control-transfer criteria
and `fault_filters` the fault filtering criteria, one expression each; `decide` applies them in
order. It may import `operands`, `paging`, `compiler` and `sdm`. Begin with `decide.decide`.
"""
