"""VMX instructions, VM entries and exits, for a VMM in Python and for one that is x86 code.

The processor's copy of the x86 VMM's current VMCS, `n`, is in force while that VMM's guest runs;
VMCS 0, the Python VMM's, while the x86 VMM itself runs; what decides works on whichever is in
force. It may import `instructions` and below. Begin with `entry.enter`, then `transition`.
"""
