"""A VMM in Python: exit handlers, devices, firmware tables, guest loaders and the console.

`machine.VirtualMachine` is a PC with its virtual processors. `exits` handles VM exits; `cpus`,
`devices`, `firmware`, `bios` and `loaders` make up the PC; `snapshots` saves it, `ui` shows it, and
`direct` runs it under direct paging. It may import `processor` and below. Begin with `machine`.
"""
