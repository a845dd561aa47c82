"""Explanations of failures: the VMCS doctor, post-mortems, the gdb stub.

`doctor` examines a VMCS that a hypervisor printed, and needs no engine; `postmortem` says why a
guest died; `gdb` serves a debugger. They may import `vmm` and below, and nothing but
`cli` imports them. Begin with the `__init__` of the one that you need.
"""
