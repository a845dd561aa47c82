"""What a PC's firmware leaves in memory.

`tables` puts together what tells a kernel about the machine (ACPI, MP), `bios_image` has a BIOS's
vectors, stubs, data area and `font`. It imports `devices`. Begin with `tables`.
"""

from trapgate.vmm.firmware.area import AREA, SIZE, bios_area

__all__ = ["AREA", "SIZE", "bios_area"]
