"""Firmware of our own: a PC BIOS's real-mode services, carried out by the VMM in Python.

The services are `video` (with `drawn_text`), `disk`, `keyboard`, `apm`, `pci` and `system`; `call`
is what they see of their caller. `boot` finds what to start, and `firmware.Bios` puts all of it
together. It imports `loaders` and below. Begin with `firmware`.
"""
