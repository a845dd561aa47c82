"""What a PC's firmware leaves in memory.

`tables` combines the tables that describe the machine to a kernel (ACPI, MultiProcessor),
`bios_image` has a BIOS's vectors, stubs, data area and `font`. It may import `devices`. Begin with
`tables`.
"""

from trapgate.vmm.firmware.area import AREA, SIZE, bios_area

__all__ = ["AREA", "SIZE", "bios_area"]
