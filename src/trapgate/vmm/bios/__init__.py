"""Firmware of our own: a PC BIOS's real-mode services, carried out by the VMM in Python.

`image` has what it leaves in memory (vectors, stubs, data area), and what is there without it.
The services are `video` (with `drawn_text` and `font`), `disk`, `keyboard`, `apm`, `pci` and
`system`; `call` is what they see of their caller. `boot` finds what to start, and `firmware.Bios`
puts all of it together. It imports `devices` and below. Begin with `firmware`.
"""
