"""Where the tables lie: in the BIOS area below 1 MB, which kernels search."""

from trapgate.vmm.cpus.identity import cpuid
from trapgate.vmm.firmware import acpi, mp

AREA = 0xF_0000
"""Physical address of the tables; the root pointers come first."""
SIZE = 0x1000

_MP = AREA + 0x40
FACS = AREA + 0x80
WAKING_VECTOR = FACS + 12
"""Where software leaves the physical address to continue at after S3, in real mode; 32 bits."""


def bios_area(processors: int = 1) -> bytes:
    """The tables of a machine with `processors`, to be put at `AREA`: at most `SIZE` bytes."""
    image = bytearray(0xC0)

    def place(data: bytes) -> int:
        image.extend(bytes(-len(image) % 16))
        address = AREA + len(image)
        image.extend(data)
        return address

    dsdt = place(acpi.dsdt())
    tables = (
        place(acpi.fadt(FACS, dsdt)),
        *map(place, (acpi.madt(processors), acpi.timers(), acpi.console())),
    )
    roots = (place(acpi.root(b"RSDT", tables)), place(acpi.root(b"XSDT", tables)))
    signature, _, _, features = cpuid(1, 0)
    configuration = place(mp.configuration(signature, features, processors))
    for address, data in (
        (AREA, acpi.rsdp(*roots)),
        (_MP, mp.floating_pointer(configuration)),
        (FACS, acpi.facs()),
    ):
        image[address - AREA : address - AREA + len(data)] = data
    assert len(image) <= SIZE
    return bytes(image)
