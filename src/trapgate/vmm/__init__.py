"""A VMM in Python: exit handlers, devices, firmware tables, guest loaders and the console.

`machine.VirtualMachine` is a PC with its virtual processors; `exits` says what is done about VM
exits, `cpus`, `devices`, `firmware`, `bios` and `loaders` what the PC consists of, `snapshots` how
it is kept (`saved_machine` gets it from a file), `ui` how it is seen, `direct` how guests keep
their page tables. It imports `processor` and below. Begin with `machine`.
"""
