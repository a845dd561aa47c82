"""The older tables of the MultiProcessor Specification 1.4, for kernels that know no ACPI."""

from struct import pack

from trapgate.vmm.devices import apic, ioapic
from trapgate.vmm.firmware.acpi import OVERRIDES, checksummed

_LINES = 16
_CASCADE = 2
_ISA = 0
_INT, _NMI, _EXTINT = 0, 1, 3


def floating_pointer(configuration: int) -> bytes:
    """The 16 bytes that kernels search for; there is no IMCR."""
    return checksummed(pack("<4sIBBB5x", b"_MP_", configuration, 1, 4, 0), 10)


def configuration(signature: int, features: int, processors: int) -> bytes:
    """The configuration table; `signature` and `features` are EAX and EDX of CPUID leaf 1.

    The I/O APIC has the ID after those of the `processors`.
    """
    pins = {irq: pin for irq, pin, _ in OVERRIDES}
    flags = {irq: flag for irq, _, flag in OVERRIDES}
    entries = [
        # Enabled, the first one the boot processor; family, model and stepping.
        *(
            pack("<BBBBII8x", 0, number, 0x14, 1 if number else 3, signature & 0xFFF, features)
            for number in range(processors)
        ),
        pack("<BB6s", 1, _ISA, b"ISA   "),
        pack("<BBBBI", 2, processors, 0x11, 1, ioapic.BASE_ADDRESS),
    ]
    entries += [
        pack("<BBHBBBB", 3, _INT, flags.get(irq, 0), _ISA, irq, processors, pins.get(irq, irq))
        for irq in range(_LINES)
        if irq != _CASCADE
    ]
    entries += [
        pack("<BBHBBBB", 4, _EXTINT, 0, _ISA, 0, 0xFF, 0),
        pack("<BBHBBBB", 4, _NMI, 0, _ISA, 0, 0xFF, 1),
    ]
    body = b"".join(entries)
    header = pack(
        "<4sHBB8s12sIHHIHBx",
        b"PCMP",
        44 + len(body),
        4,
        0,
        b"TRAPGATE",
        b"PC          ",
        0,
        0,
        len(entries),
        apic.BASE_ADDRESS,
        0,
        0,
    )
    return checksummed(header + body, 7)
