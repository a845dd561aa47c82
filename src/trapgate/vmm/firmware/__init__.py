"""What a PC's firmware leaves in memory: tables that tell a kernel about the machine."""

from trapgate.vmm.firmware.area import AREA, SIZE, bios_area

__all__ = ["AREA", "SIZE", "bios_area"]
