"""ACPI tables of the machine: RSDP, RSDT, XSDT, FADT, FACS, DSDT, MADT, HPET and SPCR.

ACPI Specification, "ACPI Software Programming Model", revision 2.0. They describe what
is there and nothing else: no PCI, no button but for power, no sleeping states but S3 and S5.
"""

from struct import pack

from trapgate.vmm.devices import apic, hpet, ioapic, power
from trapgate.vmm.firmware import aml

SCI = 9
"""Interrupt line of the fixed hardware, level-triggered and active high."""

OVERRIDES = ((0, 2, 0x0), (SCI, SCI, 0xD))
"""ISA interrupts that differ: (IRQ, I/O APIC pin, MPS INTI flags)."""

_RESET_PORT, _RESET_VALUE = 0xCF9, 0x06
_HEADER = 36
_BOOT_FLAGS = 0b1111  # legacy devices and 8042; no VGA, no message-signalled interrupts
_FLAGS = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 10 | 1 << 12
# WBINVD and C1 work; no sleep button; reset register; headless


def checksummed(data: bytes, place: int, start: int = 0, end: int | None = None) -> bytes:
    """`data` with the byte at `place` such that the bytes `start`..`end` sum to 0."""
    total = sum(data[start:end]) - data[place]
    return data[:place] + bytes((-total & 0xFF,)) + data[place + 1 :]


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: its header, then `body`."""
    header = pack(
        "<4sIBB6s8sI4sI",
        signature,
        _HEADER + len(body),
        revision,
        0,
        b"TRPGTE",
        b"TRAPGATE",
        1,
        b"TRPG",
        1,
    )
    return checksummed(header + body, 9)


def _address(space: int, bits: int, address: int) -> bytes:
    """A generic address structure; `space` 1 is I/O ports."""
    return pack("<BBBBQ", space, bits, 0, 0, address)


def rsdp(rsdt: int, xsdt: int) -> bytes:
    """The root pointer, revision 2 (36 bytes)."""
    data = pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, b"TRPGTE", 2, rsdt, 36, xsdt, 0)
    return checksummed(checksummed(data, 8, 0, 20), 32)


def root(signature: bytes, tables: tuple[int, ...]) -> bytes:
    """RSDT (32-bit addresses) or XSDT (64-bit ones)."""
    size = 8 if signature == b"XSDT" else 4
    return table(signature, 1, b"".join(address.to_bytes(size, "little") for address in tables))


def facs() -> bytes:
    """The firmware control structure: the global lock, which nobody holds."""
    return pack("<4sI", b"FACS", 64) + bytes(24) + b"\x01" + bytes(31)


def fadt(facs_at: int, dsdt_at: int) -> bytes:
    """The fixed description table, revision 3 (244 bytes)."""
    body = pack(
        "<IIBBHIBBBB",
        facs_at,
        dsdt_at,
        0,
        0,  # no preferred profile
        SCI,
        0,  # no SMI command port: ACPI is always on
        0,
        0,
        0,
        0,
    )
    body += pack("<8I", power.PM1_EVENT, 0, power.PM1_CONTROL, 0, 0, power.PM_TIMER, 0, 0)
    # Lengths of the blocks; no _CST, C2, C3; no cache flushing by reads; the CMOS century.
    body += pack("<8B4H5B", 4, 2, 0, 4, 0, 0, 0, 0, 101, 1001, 0, 0, 0, 0, 0, 0, 0x32)
    body += pack("<HxI", _BOOT_FLAGS, _FLAGS)
    body += _address(1, 8, _RESET_PORT) + bytes((_RESET_VALUE, 0, 0, 0))
    body += pack("<QQ", facs_at, dsdt_at)
    nothing = _address(0, 0, 0)
    body += _address(1, 32, power.PM1_EVENT) + nothing
    body += _address(1, 16, power.PM1_CONTROL) + nothing
    body += nothing + _address(1, 32, power.PM_TIMER) + nothing + nothing
    return table(b"FACP", 3, body)


def madt(processors: int) -> bytes:
    """The interrupt controllers: a local APIC for each processor, one I/O APIC, two 8259s."""
    body = pack("<II", apic.BASE_ADDRESS, 1)
    for number in range(processors):
        body += pack("<BBBBI", 0, 8, number, number, 1)
    body += pack("<BBBBII", 1, 12, processors, 0, ioapic.BASE_ADDRESS, 0)
    for irq, pin, flags in OVERRIDES:
        body += pack("<BBBBIH", 2, 10, 0, irq, pin, flags)
    body += pack("<BBBHB", 4, 6, 0xFF, 0, 1)
    return table(b"APIC", 3, body)


def timers() -> bytes:
    """HPET, the table of the event timer (IA-PC HPET Specification, "HPET Description Table")."""
    address = _address(0, 64, hpet.BASE_ADDRESS)
    return table(b"HPET", 1, pack("<I", hpet.IDENTITY) + address + pack("<BHB", 0, 128, 0))


def console() -> bytes:
    """SPCR, revision 2: COM1 with 115,200 baud, as a VT100."""
    body = bytes(4) + _address(1, 8, 0x3F8)
    body += pack("<BBIBBBBBB", 0b11, 4, 4, 7, 0, 1, 0, 0, 0)
    body += pack("<HHBBBIBI", 0xFFFF, 0xFFFF, 0, 0, 0, 0, 0, 0)
    return table(b"SPCR", 2, body)


def dsdt() -> bytes:
    """The devices that software could not find otherwise, and how to turn off."""
    devices = (
        ("PIC0", "PNP0000", ((0x20, 2), (0xA0, 2), (0x4D0, 2)), (2,)),
        ("TIM0", "PNP0100", ((0x40, 4),), (0,)),
        ("RTC0", "PNP0B00", ((0x70, 2),), (8,)),
        ("KBD0", "PNP0303", ((0x60, 1), (0x64, 1)), (1,)),
        ("COM1", "PNP0501", ((0x3F8, 8),), (4,)),
    )
    terms = b"".join(
        aml.device(
            name,
            aml.hardware_id(identifier),
            aml.name("_UID", aml.integer(1)),
            aml.resources(*(aml.ports(*block) for block in blocks), *map(aml.irq, irqs)),
        )
        for name, identifier, blocks, irqs in devices
    )
    zero = aml.integer(0)
    sleep = b"".join(
        aml.name(state, aml.package(aml.integer(kind), aml.integer(kind), zero, zero))
        for state, kind in (("_S3_", power.SUSPENDED), ("_S5_", power.OFF))
    )
    return table(b"DSDT", 2, sleep + aml.scope("_SB_", terms))
