"""VM entry by an x86 VMM, and the VM exit back to it.

SDM, "VM Entries" and "VM Exits". `host` is VMCS 0, whose guest-state area holds the x86 VMM's
own state; `n` is its current VMCS, `x` the VMX state of the processor.
"""
