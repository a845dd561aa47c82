"""What belongs to one virtual processor: identity, MTRRs, and its turns.

`cpu` is the processor as devices and handlers see it, `identity` what CPUID and MSRs report,
`turns` which of several processors runs next. It may import `devices`. Begin with `cpu`.
"""
