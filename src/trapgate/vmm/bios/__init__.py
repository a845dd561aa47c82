"""Firmware of our own: a PC BIOS's real-mode services, carried out by the VMM in Python.

`image` has what it leaves in memory (vectors, stubs, data area), and what is there without it;
`call` what a service sees of its caller, `video` (with `drawn_text` and `font`), `disk`,
`keyboard`, `apm`, `pci` and `system` the services, `boot` what is started from the drives;
`firmware.Bios` puts them together. It imports `devices` and below. Begin with `firmware`.
"""
