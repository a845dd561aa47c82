"""The VMX instructions, for a VMM that is itself x86 code.

The processor's copy of the x86 VMM's current VMCS, `n`, is in force while that VMM's guest
runs; VMCS 0, the Python VMM's, while the x86 VMM itself runs. `decide`, `delivery` and
`intercepts` work on whichever is in force and know no difference.
"""
