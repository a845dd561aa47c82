"""What helps when a guest or a VM entry fails: the VMCS doctor, post-mortems, the gdb stub.

Begin with `doctor` (which needs no engine), `postmortem`, or `gdb`. They import `vmm` and
what lies below it; nothing but `cli` imports them.
"""
