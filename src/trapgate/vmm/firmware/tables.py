"""The ACPI tables as files for real firmware, with the script that says how to place them.

The firmware configuration device's `etc/table-loader`: entries of 128 bytes that allocate a
file's memory, add an address to a pointer, and mend a checksum.
"""

from pathlib import Path
from struct import pack

from trapgate.vmm.firmware import acpi, aml

_TABLES, _ROOT = "etc/acpi/tables", "etc/acpi/rsdp"
_HIGH, _BELOW_1_MB = 1, 2
_WINDOW_END = 0xFEBF_FFFF
_VGA_FIRMWARE = "vgabios-stdvga.bin"
_SERIAL_CONSOLE = 0x3F8


def _allocate(file: str, alignment: int, zone: int) -> bytes:
    return pack("<I56sIB63x", 1, file.encode(), alignment, zone)


def _pointer(file: str, to: str, offset: int, size: int) -> bytes:
    return pack("<I56s56sIB7x", 2, file.encode(), to.encode(), offset, size)


def _checksum(file: str, offset: int, start: int, length: int) -> bytes:
    return pack("<I56sIII56x", 3, file.encode(), offset, start, length)


def pci_root(window: int) -> bytes:
    """The host bridge: its bus, ports, and the memory from `window` on that it forwards."""
    return aml.scope(
        "_SB_",
        aml.device(
            "PCI0",
            aml.hardware_id("PNP0A03"),
            aml.name("_UID", aml.integer(0)),
            aml.name("_PRT", aml.package()),
            aml.resources(
                aml.buses(0, 0xFF),
                aml.ports(0xCF8, 8),
                aml.port_window(0, 0xCF7),
                aml.port_window(0xD00, 0xFFFF),
                aml.memory_window(0xA0000, 0xBFFFF),
                aml.memory_window(window, _WINDOW_END),
            ),
        ),
    )


def files(memory: int, processors: int = 1) -> dict[str, bytes]:
    """The tables of a machine of `memory` bytes, their root, and the script."""
    window = 0x8000_0000 if memory <= 0x8000_0000 else 0xC000_0000
    script = [_allocate(_TABLES, 64, _HIGH), _allocate(_ROOT, 16, _BELOW_1_MB)]
    image = bytearray(acpi.facs())

    def place(data: bytes) -> int:
        image.extend(bytes(-len(image) % 16))
        at = len(image)
        image.extend(data)
        return at

    plain = acpi.dsdt()
    dsdt = place(acpi.table(b"DSDT", 2, plain[36:] + pci_root(window)))
    fadt = place(acpi.fadt(0, dsdt))
    others = map(place, (acpi.madt(processors), acpi.timers(), acpi.console()))
    described = (fadt, *others)
    rsdt = place(acpi.root(b"RSDT", described))
    xsdt = place(acpi.root(b"XSDT", described))
    for offset, size in ((36, 4), (40, 4), (132, 8), (140, 8)):
        script.append(_pointer(_TABLES, _TABLES, fadt + offset, size))
    for n in range(len(described)):
        script.append(_pointer(_TABLES, _TABLES, rsdt + 36 + 4 * n, 4))
        script.append(_pointer(_TABLES, _TABLES, xsdt + 36 + 8 * n, 8))
    for at in (fadt, rsdt, xsdt):
        length = int.from_bytes(image[at + 4 : at + 8], "little")
        script.append(_checksum(_TABLES, at + 9, at, length))
    script.append(_pointer(_ROOT, _TABLES, 16, 4))
    script.append(_pointer(_ROOT, _TABLES, 24, 8))
    script.append(_checksum(_ROOT, 8, 0, 20))
    script.append(_checksum(_ROOT, 32, 0, 36))
    return {
        _TABLES: bytes(image),
        _ROOT: acpi.rsdp(rsdt, xsdt),
        "etc/table-loader": b"".join(script),
    }


def files_beside(
    bios: Path, memory: int, processors: int = 1, *, serial: bool = True
) -> dict[str, bytes]:
    """What SeaBIOS in the file `bios` is given, with the VGA's firmware if that lies beside it.

    `serial` has it use COM1 as its console, beside the screen. Raises OSError.
    """
    found = files(memory, processors)
    if serial:
        found["etc/sercon-port"] = _SERIAL_CONSOLE.to_bytes(8, "little")
    screen = bios.parent / _VGA_FIRMWARE
    if screen.is_file():
        found["pci1234,1111.rom"] = screen.read_bytes()
    return found
