"""VMX instructions, VM entries and exits, for a VMM in Python and for one that is x86 code.

While an x86 VMM's guest runs, the processor's copy `n` of that VMM's current VMCS is in force.
While the x86 VMM itself runs, VMCS 0 is, the Python VMM's. What decides works on the one in force.
It may import `instructions` and below. Begin with `entry.enter`, then `transition`.
"""
