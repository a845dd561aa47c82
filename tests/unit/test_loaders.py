"""Guest loaders: what each kind of file becomes, and what is refused in which words."""

import os
from itertools import pairwise
from pathlib import Path
from struct import unpack_from

import pytest

from tests.unit.guest_files import (
    MEGABYTE,
    boot_sector,
    bzimage,
    elf,
    multiboot_header,
)
from trapgate.errors import TrapgateError
from trapgate.sdm import cells, registers
from trapgate.vmm.loaders import GuestImage, GuestImageError, GuestKind, load_guest, parse_guest

MEMORY = 64 * MEGABYTE


def name_of(parameter: bytes | str) -> str:
    """Test names say what is refused; the files would be long and unreadable."""
    return parameter if isinstance(parameter, str) else f"{len(parameter)} bytes"


def parse(
    data: bytes, append: str = "", memory: int = MEMORY, disk: bytes | None = None
) -> GuestImage:
    image = parse_guest(
        data, file="dir/guest", memory=memory, append=append, initrd=disk, initrd_name="disk"
    )
    check(image, memory)
    return image


def check(image: GuestImage, memory: int) -> None:
    """What must be true of every image."""
    assert set(image.fields) <= set(cells.ENCODINGS)
    assert set(image.registers) <= set(registers.NAMES)
    ranges = sorted((s.address, s.address + len(s.data)) for s in image.segments)
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))
    assert ranges[0][0] >= 0
    assert ranges[-1][1] <= memory
    assert image.long_mode == (image.fields["GUEST_IA32_EFER"] == 0x500)
    assert image.fields["GUEST_RFLAGS"] == 2
    assert image.fields["GUEST_TR_ACCESS_RIGHTS"] == 0x8B


def memory_of(image: GuestImage, address: int, size: int) -> bytes:
    for start, data in image.segments:
        if start <= address < start + len(data):
            return data[address - start : address - start + size]
    raise AssertionError(f"nothing at {address:#x}")


def number(image: GuestImage, address: int, size: int = 4) -> int:
    return int.from_bytes(memory_of(image, address, size), "little")


def text(image: GuestImage, address: int) -> bytes:
    return memory_of(image, address, 4096).split(b"\0")[0]


def translate(image: GuestImage, linear: int) -> int:
    """Walk the image's 4-level tables."""
    table = image.fields["GUEST_CR3"]
    for shift in (39, 30, 21):
        entry = number(image, table + 8 * (linear >> shift & 511), 8)
        assert entry & 3 == 3
        table = entry & ~0xFFF
        if entry & 0x80:
            return (entry & ~0x1FFFFF) + (linear & 0x1FFFFF)
    raise AssertionError("no large page")


def refusal(data: bytes, append: str = "", memory: int = MEMORY, disk: bytes | None = None) -> str:
    with pytest.raises(GuestImageError) as caught:
        parse(data, append, memory, disk)
    assert isinstance(caught.value, TrapgateError)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(("dir/guest: ", "disk: "))
    return message


def test_64_bit_linux() -> None:
    kernel = bzimage()
    image = parse(kernel, "console=ttyS0", disk=b"cpio" * 100)
    assert (image.kind, image.bits) == (GuestKind.LINUX, 64)
    assert image.entry == 0x100_0200
    assert memory_of(image, 0x100_0000, 4096) == kernel[2048:]
    assert "9.9.9-test" in image.description
    fields = image.fields
    assert fields["GUEST_CR0"] == 0x8000_0031
    assert fields["GUEST_CR4"] == 0x20
    assert fields["GUEST_CS_ACCESS_RIGHTS"] == 0xA09B
    assert (fields["GUEST_CS_SELECTOR"], fields["GUEST_SS_SELECTOR"]) == (0x10, 0x18)
    for linear in (0, 0x1234567, 0xFFFF_FFFF, image.entry):
        assert translate(image, linear) == linear
    gdt = memory_of(image, fields["GUEST_GDTR_BASE"], 32)
    assert gdt[16:].hex() == "ffff0000009baf00" + "ffff00000093cf00"

    page = image.registers["RSI"]
    assert memory_of(image, page + 0x202, 4) == b"HdrS"
    assert number(image, page + 0x210, 1) == 0xFF
    assert text(image, number(image, page + 0x228)) == b"console=ttyS0"
    assert number(image, page + 0x214) == 0x100_0000
    disk, size = number(image, page + 0x218), number(image, page + 0x21C)
    assert disk % 4096 == 0
    assert memory_of(image, disk, size) == b"cpio" * 100
    assert disk >= 0x100_0000 + 0x20_0000
    entries = [
        unpack_from("<QQI", memory_of(image, page + 0x2D0 + 20 * i, 20))
        for i in range(number(image, page + 0x1E8, 1))
    ]
    assert entries[0] == (0, 0x9FC00, 1)
    assert entries[-1] == (MEGABYTE, MEMORY - MEGABYTE, 1)
    assert number(image, 0x40E, 2) == 0x9FC0
    assert number(image, 0x413, 2) == 639


def test_32_bit_linux() -> None:
    image = parse(bzimage(extended_flags=0))
    assert image.bits == 32
    assert image.entry == 0x100_0000
    assert image.fields["GUEST_CR0"] == 0x31
    assert image.fields["GUEST_CS_ACCESS_RIGHTS"] == 0xC09B
    assert image.fields["GUEST_SS_ACCESS_RIGHTS"] == 0xC093
    assert image.registers["RSI"] > 0


def test_old_or_fixed_linux_loads_at_1_mb() -> None:
    assert parse(bzimage(version=0x0206)).entry == MEGABYTE
    assert parse(bzimage(relocatable=0)).entry == MEGABYTE + 0x200


def test_linux_initrd_limit_is_kept() -> None:
    image = parse(bzimage(initrd_limit=0x1FF_FFFF), disk=b"x" * 5000)
    page = image.registers["RSI"]
    assert number(image, page + 0x218) == 0x1FF_E000


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (bzimage()[:0x220], "setup header: the file is truncated"),
        (bzimage(version=0x0205), "boot protocol version: 2.05 is too old"),
        (bzimage(flags=0), "loadflags: this is a zImage"),
        (bzimage()[:3000], "syssize: the kernel should have 4096 bytes"),
        (bzimage()[:2048], "truncated"),
        (bzimage(init_size=MEMORY), "--memory 80M or more"),
        (bzimage(preferred=1 << 63), "which no guest has"),
        (bzimage(preferred=0x1000), "pref_address: 0x1000 is not an address"),
        (bzimage(system=0xFFFFFFFF), "truncated"),
    ],
    ids=name_of,
)
def test_bad_linux(kernel: bytes, words: str) -> None:
    assert words in refusal(kernel)


def test_linux_options_that_do_not_fit() -> None:
    assert "--append: 11 bytes are too long; this guest takes at most 10" in refusal(
        bzimage(command_limit=10), "x" * 11
    )
    assert "--append: contains a zero byte" in refusal(bzimage(), "a\0b")
    assert "--initrd" in refusal(bzimage(), disk=bytes(MEMORY))
    assert "disk: size: the file is empty" in refusal(bzimage(), disk=b"")


def test_memory_with_a_hole_below_4_gb() -> None:
    image = parse(bzimage(), memory=6 << 30)
    page = image.registers["RSI"]
    entries = [
        unpack_from("<QQI", memory_of(image, page + 0x2D0 + 20 * i, 20))
        for i in range(number(image, page + 0x1E8, 1))
    ]
    assert entries[-2:] == [(MEGABYTE, 0xE000_0000 - MEGABYTE, 1), (1 << 32, 2 << 30, 1)]


def test_64_bit_elf_with_a_higher_half_entry() -> None:
    high = 0xFFFF_FFFF_8010_0000
    image = parse(
        elf([(1, high, MEGABYTE, b"\xf4" * 16, 0x2000), (1, 0, 0x20_0000, b"data", 4)],
            entry=high + 8),
        "a b",
    )  # fmt: skip
    assert (image.kind, image.bits, image.entry) == (GuestKind.ELF, 64, MEGABYTE + 8)
    assert memory_of(image, 0x20_0000, 4) == b"data"
    page = image.registers["RSI"]
    assert text(image, number(image, page + 0x228)) == b"a b"


def test_32_bit_elf_in_low_memory_keeps_its_place() -> None:
    image = parse(elf([(1, 0x1000, 0x1000, b"\xf4" * 0x3000, 0x9000)], bits=32))
    assert (image.bits, image.entry) == (32, 0x1000)
    assert image.registers["RSI"] >= 0xA000
    assert image.fields["GUEST_GDTR_BASE"] >= 0xA000


def test_elf_over_the_bios_data_area_goes_without_it() -> None:
    image = parse(elf([(1, 0, 0, b"\xf4" * 0x500, 0x500)], bits=32))
    assert memory_of(image, 0x40E, 2) == b"\xf4\xf4"


GOOD = (1, MEGABYTE, MEGABYTE, b"\xf4" * 64, 64)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (elf([GOOD])[:40], "ELF header: the file is truncated"),
        (elf([GOOD])[:100], "e_phoff"),
        (elf([GOOD])[:150], "program header 0: its data at 0x78 lie beyond"),
        (elf([GOOD], machine=183), "e_machine: 183 is not x86-64's 62"),
        (elf([GOOD], bits=32, machine=62), "e_machine: 62 is not i386's 3"),
        (elf([GOOD], kind=3), "e_type: 3 is not an executable"),
        (elf([GOOD, (3, 0, 0, b"/lib/ld.so", 10)]), "asks for an interpreter"),
        (elf([GOOD], entry=0x10), "e_entry: 0x10 lies in no segment"),
        (elf([(1, 0, MEGABYTE, b"x" * 64, 8)]), "p_filesz 0x40 exceeds p_memsz 0x8"),
        (elf([(1, 0, 1 << 40, b"x", 8)]), "link it to run at physical addresses that exist"),
        (elf([(1, 0, MEGABYTE, b"x", 100 << 20)]), "give the guest --memory 101M or more"),
        (elf([(1, 0, MEGABYTE, b"x", (1 << 64) - 1)]), "beyond the guest's 64M"),
        (elf([GOOD, (1, 0, MEGABYTE + 63, b"x", 1)]), "overlaps program header 0"),
        (elf([(4, 0, 0, b"", 0)]), "e_phnum: nothing to load"),
        (b"\x7fELF\x02\x02" + bytes(200), "e_ident"),
        (b"\x7fELF\x02\x01" + bytes(10) + b"\x02\0\x3e\0" + bytes(200), "e_phnum: 0 program"),
        (b"\x7fELF", "truncated"),
    ],
    ids=name_of,
)
def test_bad_elf(file: bytes, words: str) -> None:
    assert words in refusal(file)


def test_many_headers_for_the_same_bytes_are_refused_quickly() -> None:
    one = elf([GOOD])
    header = one[64:120]
    count = 60_000
    file = bytearray(one[:64] + header * count + bytes(64))
    file[56:58] = count.to_bytes(2, "little")
    assert "overlaps" in refusal(bytes(file))


def test_multiboot_elf() -> None:
    code = multiboot_header(3).ljust(64, b"\xf4")
    image = parse(elf([(1, MEGABYTE, MEGABYTE, code, 8192)], bits=32, entry=MEGABYTE + 12),
                  "one two", disk=b"module!")  # fmt: skip
    assert (image.kind, image.bits, image.entry) == (GuestKind.MULTIBOOT, 32, MEGABYTE + 12)
    assert image.registers["RAX"] == 0x2BADB002
    information = image.registers["RBX"]
    flags, lower, upper = unpack_from("<III", memory_of(image, information, 12))
    assert flags & 0b1001101 == 0b1001101
    assert (lower, upper) == (639, (MEMORY - MEGABYTE) >> 10)
    assert text(image, number(image, information + 16)) == b"guest one two"
    assert number(image, information + 20) == 1
    start, end, name, _ = unpack_from(
        "<IIII", memory_of(image, number(image, information + 24), 16)
    )
    assert start % 4096 == 0
    assert memory_of(image, start, end - start) == b"module!"
    assert text(image, name) == b"disk"
    length, at = unpack_from("<II", memory_of(image, information + 44, 8))
    entries = [unpack_from("<IQQI", memory_of(image, at + i, 24)) for i in range(0, length, 24)]
    assert entries[0] == (20, 0, 0x9FC00, 1)
    assert entries[-1] == (20, MEGABYTE, MEMORY - MEGABYTE, 1)
    assert text(image, number(image, information + 64)) == b"trapgate"


def test_multiboot_modules(tmp_path: Path) -> None:
    for name in ("disk", "one", "two"):
        (tmp_path / name).write_bytes(name.encode() * 2000)
    code = multiboot_header(3).ljust(64, b"\xf4")
    (tmp_path / "kernel").write_bytes(elf([(1, MEGABYTE, MEGABYTE, code, 8192)], bits=32))
    image = load_guest(
        tmp_path / "kernel",
        memory=MEMORY,
        initrd=tmp_path / "disk",
        modules=[f"{tmp_path}/one", f"{tmp_path}/two console=ttyS0 quiet"],
    )
    check(image, MEMORY)
    information = image.registers["RBX"]
    assert number(image, information + 20) == 3
    table = memory_of(image, number(image, information + 24), 48)
    found = []
    for at in (0, 16, 32):
        start, end, line, _ = unpack_from("<IIII", table, at)
        assert start % 4096 == 0
        found.append((memory_of(image, start, end - start), text(image, line)))
    assert found == [
        (b"disk" * 2000, b"disk"),
        (b"one" * 2000, b"one"),
        (b"two" * 2000, b"two console=ttyS0 quiet"),
    ]


def test_modules_are_for_multiboot_kernels(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(bzimage())
    (tmp_path / "empty").write_bytes(b"")
    kernel = str(tmp_path / "kernel")
    with pytest.raises(GuestImageError, match="only multiboot kernels take modules"):
        load_guest(kernel, memory=MEMORY, modules=[kernel])
    with pytest.raises(GuestImageError, match=r"empty: size: .*leave out this --module"):
        load_guest(kernel, memory=MEMORY, modules=[f"{tmp_path}/empty x"])


def test_multiboot_in_a_64_bit_elf_starts_in_32_bits() -> None:
    image = parse(elf([(1, MEGABYTE, MEGABYTE, multiboot_header(0).ljust(32, b"\xf4"), 64)]))
    assert (image.kind, image.bits) == (GuestKind.MULTIBOOT, 32)


def kludge(load: int, load_end: int, bss_end: int, entry: int, skip: int = 16) -> bytes:
    header = multiboot_header(1 << 16, load + skip, load, load_end, bss_end, entry)
    return b"\x90" * skip + header + b"\xf4" * 100


def test_multiboot_by_address_fields() -> None:
    image = parse(kludge(0x20_0000, 0, 0x30_0000, 0x20_0040))
    assert image.entry == 0x20_0040
    assert memory_of(image, 0x20_0010, 4) == b"\x02\xb0\xad\x1b"
    assert image.registers["RBX"] != 0


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (kludge(0x20_0000, 0x20_1000, 0, 0x20_0000), "load_end_addr: 4096 bytes"),
        (kludge(0x20_0000, 0x10_0000, 0, 0x20_0000), "load_end_addr"),
        (kludge(0x20_0000, 0, 0x20_0010, 0x20_0000), "bss_end_addr: 0x200010 lies before"),
        (kludge(0x20_0000, 0, 0, 0x10_0000), "entry_addr: 0x100000 lies outside"),
        (kludge(0xFFFF_0000, 0, 0, 0xFFFF_0000), "load_addr: 0x94 bytes at 0xffff0000"),
        (multiboot_header(1 << 16, 0x1000, 0x2000, 0, 0, 0), "load_addr: header_addr"),
        (multiboot_header(1 << 16, 0x3000, 0x2000, 0, 0, 0), "load_addr: header_addr"),
        (multiboot_header(1 << 16), "address fields: the file is truncated"),
        (multiboot_header(0), "the file is not an ELF and bit 16 is clear"),
        (multiboot_header(1 << 4), "features 0x10"),
    ],
    ids=name_of,
)
def test_bad_multiboot(file: bytes, words: str) -> None:
    assert words in refusal(file)


def test_multiboot_magic_with_a_wrong_checksum_is_no_header() -> None:
    file = b"\x02\xb0\xad\x1b" + b"\xff" * 20
    assert parse(file).kind is GuestKind.FLAT


def test_boot_sector() -> None:
    image = parse(boot_sector(b"\xfa\xf4"), memory=MEGABYTE)
    assert (image.kind, image.bits, image.entry) == (GuestKind.BOOT_SECTOR, 16, 0x7C00)
    assert image.fields["GUEST_CR0"] & 0x8000_0001 == 0
    assert image.fields["GUEST_IDTR_LIMIT"] == 0x3FF
    assert image.registers == {"RDX": 0x80}
    offset, segment = unpack_from("<HH", memory_of(image, 0x10 * 4, 4))
    assert memory_of(image, segment * 16 + offset, 1) == b"\x80"
    offset, segment = unpack_from("<HH", memory_of(image, 0x08 * 4, 4))
    assert memory_of(image, segment * 16 + offset, 1) == b"\xcf"
    assert "--append" in refusal(boot_sector(b"\xf4"), "x")
    assert "--initrd" in refusal(boot_sector(b"\xf4"), disk=b"x")


def test_flat_code() -> None:
    image = parse(b"\xf4\xeb\xfd", "words", disk=b"disk")
    assert (image.kind, image.bits, image.entry) == (GuestKind.FLAT, 32, MEGABYTE)
    page = image.registers["RSI"]
    assert text(image, number(image, page + 0x228)) == b"words"
    assert memory_of(image, number(image, page + 0x218), 4) == b"disk"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "size: the file is empty"),
        (bytes(4096), "nothing but zero bytes"),
        (b"just some text\n", "this is a text"),
        ("Grüße\n".encode() * 20000, "this is a text"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip-compressed"),
        (b"MZ" + bytes(100), "a DOS or Windows program"),
        (b"#!/bin/sh\n", "a script"),
    ],
    ids=name_of,
)
def test_no_guest_at_all(file: bytes, words: str) -> None:
    assert words in refusal(file)


def test_machine_without_memory() -> None:
    assert "--memory 65M or more" in refusal(b"\x90" * MEMORY)
    assert "--memory: 4096 bytes are too few" in refusal(b"\xf4", memory=4096)
    assert "--initrd" in refusal(b"\xf4", memory=MEGABYTE + 4096, disk=b"x" * 5000)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(1 << 33)
    (tmp_path / "guest").write_bytes(b"\xf4")
    for name, words in (
        ("missing", "No such file or directory"),
        ("", "this is a directory"),
        ("fifo", "not a regular file"),
        ("huge", "8192M is more than any guest"),
        ("zero\0byte", "no such name is possible"),
    ):
        with pytest.raises(GuestImageError) as caught:
            load_guest(os.path.join(tmp_path, name), memory=MEMORY)  # noqa: PTH118
        assert words in str(caught.value)
        assert str(caught.value).isprintable()
    with pytest.raises(GuestImageError, match="nodisk"):
        load_guest(tmp_path / "guest", memory=MEMORY, initrd=tmp_path / "nodisk")
    assert load_guest(tmp_path / "guest", memory=MEMORY).kind is GuestKind.FLAT


def test_images_cannot_be_changed() -> None:
    image = parse(b"\xf4")
    with pytest.raises(TypeError):
        image.fields["GUEST_RIP"] = 0  # type: ignore[index]
    with pytest.raises(AttributeError):
        image.bits = 64  # type: ignore[misc]
