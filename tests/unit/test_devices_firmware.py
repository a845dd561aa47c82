"""fw_cfg, ACPI's fixed hardware, and the tables that firmware leaves, read as kernels read them."""

from struct import unpack_from

import pytest

from trapgate.vmm.devices import MachineEvent, MachineEventKind, Pc
from trapgate.vmm.devices.board import MOST_PROCESSORS
from trapgate.vmm.firmware import AREA, SIZE, bios_area
from trapgate.vmm.firmware.aml import integer, package
from trapgate.vmm.loaders.layout import Layout, memory_map

MEMORY = 64 << 20
PM_HERTZ = 3_579_545


def pc() -> Pc:
    return Pc(MEMORY, lambda byte: None, ranges=memory_map(MEMORY))


def item(machine: Pc, key: int, size: int) -> bytes:
    machine.write(0x510, 2, key, 0)
    return bytes(machine.read(0x511, 1, 0) for _ in range(size))


def test_fw_cfg_items() -> None:
    machine = pc()
    assert item(machine, 0, 6) == b"QEMU\0\0"
    assert item(machine, 1, 4) == b"\1\0\0\0"  # no DMA
    assert int.from_bytes(item(machine, 3, 8), "little") == MEMORY
    assert item(machine, 5, 2) == item(machine, 0x0F, 2) == b"\1\0"
    assert item(machine, 0x7777, 4) == bytes(4)
    assert item(machine, 0x4000, 4) == b"QEMU"


def test_fw_cfg_files() -> None:
    machine = pc()
    directory = item(machine, 0x19, 4 + 64)
    count, size, key, _, name = unpack_from(">IIHH56s", directory)
    assert (count, name.rstrip(b"\0")) == (1, b"etc/e820")
    entries = [unpack_from("<QQI", item(machine, key, size), n) for n in range(0, size, 20)]
    assert entries == memory_map(MEMORY)


def test_fw_cfg_takes_nothing_else() -> None:
    machine = pc()
    item(machine, 0, 0)
    machine.write(0x511, 1, 0x55, 0)
    machine.write(0x510, 1, 3, 0)
    machine.write(0x510, 4, 3, 0)
    assert machine.read(0x511, 2, 0) == 0
    assert machine.read(0x510, 2, 0) == 0xFFFF
    assert machine.read(0x514, 4, 0) == 0xFFFFFFFF
    assert [machine.read(0x511, 1, 0) for _ in range(4)] == list(b"QEMU")


def test_off_through_acpi() -> None:
    machine = pc()
    assert machine.read(0x604, 2, 0) == 1
    machine.write(0x604, 2, 3 << 10 | 1 << 13, 0)  # S3: not there
    assert machine.bus.event is None
    machine.write(0x604, 2, 5 << 10, 0)
    assert machine.bus.event is None
    assert machine.read(0x604, 2, 0) == 5 << 10 | 1
    machine.write(0x604, 2, 5 << 10 | 1 << 13, 0)
    assert machine.bus.event == MachineEvent(MachineEventKind.POWER_OFF, "ACPI, S5")


def test_power_management_timer() -> None:
    machine = pc()
    second = machine.bus.clock.hertz
    assert machine.read(0x608, 4, 0) == 0
    assert machine.read(0x608, 4, second) == PM_HERTZ
    assert machine.read(0x608, 4, 10 * second) == 10 * PM_HERTZ & 0xFFFFFF
    assert machine.read(0x609, 2, second) == PM_HERTZ >> 8 & 0xFFFF


def test_power_management_timer_interrupts() -> None:
    machine = pc()
    for index, value in ((0x11 + 18, 0), (0x10 + 18, 0x8000 | 0x69)):
        machine.store(0xFEC00000, 4, index, 0)
        machine.store(0xFEC00010, 4, value, 0)
    machine.write(0x602, 2, 0xFFFF, 0)
    assert machine.read(0x602, 2, 0) == 0x521
    deadline = machine.next_deadline(0)
    assert deadline is not None
    ticks = deadline * PM_HERTZ // machine.bus.clock.hertz
    assert ticks == 1 << 23
    machine.advance(deadline)
    assert machine.acknowledge() == 0x69
    assert machine.read(0x600, 4, deadline) & 1
    machine.store(0xFEE000B0, 4, 0, deadline)
    assert machine.pending()  # the line is high until the status is cleared
    assert machine.acknowledge() == 0x69
    machine.write(0x600, 2, 1, deadline)
    machine.store(0xFEE000B0, 4, 0, deadline)
    assert not machine.pending()


# A reader of its own: nothing from the module under test, only the specification's offsets.


class Tables:
    def __init__(self, area: bytes) -> None:
        self.area = area

    def at(self, address: int, size: int) -> bytes:
        assert address >= AREA
        assert address + size <= AREA + len(self.area)
        return self.area[address - AREA : address - AREA + size]

    def find(self, signature: bytes) -> int:
        found = [n for n in range(0, len(self.area), 16) if self.area.startswith(signature, n)]
        assert len(found) == 1
        return AREA + found[0]

    def table(self, address: int) -> bytes:
        _, size = unpack_from("<4sI", self.at(address, 8))
        data = self.at(address, size)
        assert sum(data) & 0xFF == 0
        return data


@pytest.fixture(scope="module")
def tables() -> Tables:
    area = bios_area()
    assert len(area) <= SIZE
    return Tables(area)


def described(tables: Tables) -> dict[bytes, bytes]:
    root = tables.find(b"RSD PTR ")
    pointer = tables.at(root, 36)
    assert sum(pointer[:20]) & 0xFF == sum(pointer) & 0xFF == 0
    _, _, _, revision, rsdt, length, xsdt = unpack_from("<8sB6sBIIQ", pointer)
    assert (revision, length) == (2, 36)
    narrow, wide = tables.table(rsdt), tables.table(xsdt)
    addresses = [unpack_from("<I", narrow, n)[0] for n in range(36, len(narrow), 4)]
    assert addresses == [unpack_from("<Q", wide, n)[0] for n in range(36, len(wide), 8)]
    found = {tables.table(address)[:4]: tables.table(address) for address in addresses}
    assert set(found) == {b"FACP", b"APIC", b"HPET", b"SPCR"}
    return found


def test_acpi_fixed_description(tables: Tables) -> None:
    fadt = described(tables)[b"FACP"]
    assert (len(fadt), fadt[8]) == (244, 3)
    facs, dsdt = unpack_from("<II", fadt, 36)
    assert facs % 64 == 0
    assert tables.at(facs, 8) == b"FACS\x40\0\0\0"
    assert tables.table(dsdt)[:4] == b"DSDT"
    assert unpack_from("<HI", fadt, 46) == (9, 0)  # SCI; ACPI is always on
    assert unpack_from("<II", fadt, 56) == (0x600, 0)
    assert unpack_from("<II", fadt, 64) == (0x604, 0)
    assert unpack_from("<I", fadt, 76) == (0x608,)
    assert (fadt[88], fadt[89], fadt[91]) == (4, 2, 4)
    assert fadt[108] == 0x32
    assert unpack_from("<H", fadt, 109)[0] & 3 == 3
    assert unpack_from("<I", fadt, 112)[0] >> 10 & 1  # there is a reset register
    assert unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 0, 0xCF9, 6)
    assert unpack_from("<QQ", fadt, 132) == (facs, dsdt)
    assert unpack_from("<BBBBQ", fadt, 148) == (1, 32, 0, 0, 0x600)
    assert unpack_from("<BBBBQ", fadt, 172) == (1, 16, 0, 0, 0x604)
    assert unpack_from("<BBBBQ", fadt, 208) == (1, 32, 0, 0, 0x608)


def test_acpi_interrupt_controllers(tables: Tables) -> None:
    madt = described(tables)[b"APIC"]
    assert unpack_from("<II", madt, 36) == (0xFEE00000, 1)
    entries = []
    at = 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    assert entries == [
        bytes((0, 8, 0, 0, 1, 0, 0, 0)),
        bytes((1, 12, 1, 0)) + 0xFEC00000.to_bytes(4, "little") + bytes(4),
        bytes((2, 10, 0, 0, 2, 0, 0, 0, 0, 0)),
        bytes((2, 10, 0, 9, 9, 0, 0, 0, 13, 0)),
        bytes((4, 6, 255, 0, 0, 1)),
    ]


def test_acpi_event_timer_and_console(tables: Tables) -> None:
    timer = described(tables)[b"HPET"]
    assert unpack_from("<I", timer, 36) == (0x8086A201,)
    assert unpack_from("<BBBBQ", timer, 40) == (0, 64, 0, 0, 0xFED00000)
    console = described(tables)[b"SPCR"]
    assert (len(console), console[8], console[36]) == (80, 2, 0)
    assert unpack_from("<BBBBQ", console, 40) == (1, 8, 0, 0, 0x3F8)
    assert unpack_from("<BBI", console, 52) == (3, 4, 4)


def test_acpi_names_the_sleeping_states(tables: Tables) -> None:
    fadt = described(tables)[b"FACP"]
    dsdt = tables.table(unpack_from("<I", fadt, 40)[0])
    assert b"\x08_S5_\x12" in dsdt
    package_at = dsdt.index(b"_S5_") + 4
    assert dsdt[package_at + 2 : package_at + 5] == b"\x04\x0a\x05"
    assert b"\x08_S3_\x12\x06\x04\x01\x01" in dsdt
    for identifier in ("41d00501", "41d00b00", "41d00303", "41d00100", "41d00000"):
        assert bytes.fromhex("085f484944" + "0c" + identifier) in dsdt


def test_aml_constants_and_lengths() -> None:
    assert integer(1) == b"\x01"
    assert integer(0xFF) == b"\x0a\xff"
    assert integer(0x100) == b"\x0b\x00\x01"
    assert integer(0x10000) == b"\x0c\x00\x00\x01\x00"
    with pytest.raises(ValueError, match="wider"):
        integer(1 << 32)
    long = package(*[integer(0x12345678)] * 100)
    assert long[:3] == bytes((0x12, 0x40 | 503 & 0xF, 503 >> 4))
    assert len(long) == 504


def test_multiprocessor_tables(tables: Tables) -> None:
    pointer = tables.at(tables.find(b"_MP_"), 16)
    assert sum(pointer) & 0xFF == 0
    address, length, revision = unpack_from("<IBB", pointer, 4)
    assert (length, revision, pointer[11:]) == (1, 4, bytes(5))
    size = unpack_from("<H", tables.at(address, 6), 4)[0]
    table = tables.at(address, size)
    assert table[:4] == b"PCMP"
    assert sum(table) & 0xFF == 0
    count, lapic = unpack_from("<HI", table, 34)
    assert lapic == 0xFEE00000
    at = 44
    kinds: dict[int, list[bytes]] = {}
    for _ in range(count):
        length = 20 if table[at] == 0 else 8
        kinds.setdefault(table[at], []).append(table[at : at + length])
        at += length
    assert at == size
    assert [len(kinds[kind]) for kind in range(5)] == [1, 1, 1, 15, 2]
    assert kinds[0][0][1:4] == bytes((0, 0x14, 3))
    assert unpack_from("<BBBBI", kinds[2][0]) == (2, 1, 0x11, 1, 0xFEC00000)
    wires = {entry[5]: entry[7] for entry in kinds[3]}
    assert wires == {irq: 2 if irq == 0 else irq for irq in range(16) if irq != 2}
    assert [(entry[1], entry[7]) for entry in kinds[4]] == [(3, 0), (1, 1)]


def test_tables_tell_of_every_processor() -> None:
    tables = [bios_area(count) for count in (1, 2, MOST_PROCESSORS)]
    assert all(len(area) <= SIZE for area in tables)
    for area, count in zip(tables, (1, 2, MOST_PROCESSORS), strict=True):
        at = area.index(b"APIC")
        madt = area[at : at + unpack_from("<I", area, at + 4)[0]]
        local = [bytes((0, 8, number, number, 1, 0, 0, 0)) for number in range(count)]
        assert madt[44:].startswith(b"".join(local) + bytes((1, 12, count, 0)))
        at = area.index(b"PCMP")
        config = area[at : at + unpack_from("<H", area, at + 4)[0]]
        assert sum(config) & 0xFF == 0
        flags = [tuple(config[44 + 20 * n : 44 + 20 * n + 4]) for n in range(count)]
        assert flags == [(0, n, 0x14, 1 if n else 3) for n in range(count)]
        assert config[44 + 20 * count + 8 : 44 + 20 * count + 10] == bytes((2, count))


def test_a_guest_that_lies_in_the_bios_area_stays_whole() -> None:
    layout = Layout("guest", 1 << 20)
    layout.claim(AREA + 0x100, 16, "guest")
    assert all(segment.address != AREA for segment in layout.bios_data())
    layout = Layout("guest", 1 << 20)
    assert [segment.data for segment in layout.bios_data() if segment.address == AREA] == [
        bios_area()
    ]
