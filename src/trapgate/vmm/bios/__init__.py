"""A built-in BIOS: a PC's real-mode services, carried out by the VMM in Python.

The services are `video` (with `drawn_text`), `disk`, `keyboard`, `apm`, `pci` and `system`; `call`
holds the caller's registers and memory. `boot` finds the drive to start from, and `firmware.Bios`
combines all of it. It may import `loaders` and below. Begin with `firmware`.
"""
