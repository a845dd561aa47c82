"""What belongs to one virtual processor: its APIC, identity and MTRRs, and whose turn it is.

`cpu` is the processor as devices and handlers see it, `identity` what CPUID and MSRs say, `turns`
which of several runs next. It imports `devices`. Begin with `cpu`.
"""
