"""Hostile guest files: whatever the bytes, an image within memory or one error."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.guest_files import MEGABYTE, boot_sector, bzimage, elf, multiboot_header
from trapgate.vmm.loaders import GuestImageError, parse_guest

MEMORY = 32 * MEGABYTE

SEEDS = [
    bzimage(payload=b"\x90" * 256),
    elf([(1, MEGABYTE, MEGABYTE, b"\xf4" * 32, 64), (1, 0, 0x20_0000, b"d", 9)]),
    elf([(1, MEGABYTE, MEGABYTE, multiboot_header(3).ljust(32, b"\0"), 64)], bits=32),
    multiboot_header(1 << 16, MEGABYTE, MEGABYTE, 0, 0, MEGABYTE) + b"\xf4" * 32,
    boot_sector(b"\xf4"),
    b"\xf4\x90",
]
NUMBERS = st.one_of(
    st.integers(0, 255),
    st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63), (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        size = draw(st.sampled_from([1, 2, 4, 8]))
        at = draw(st.integers(0, max(len(data) - size, 0)))
        data[at : at + size] = (draw(NUMBERS) & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@settings(max_examples=400, deadline=500)
@given(
    data=st.one_of(damaged(), st.binary(max_size=700)),
    memory=st.one_of(st.just(MEMORY), st.integers(0, MEMORY)),
    append=st.text(max_size=40),
    initrd=st.one_of(st.none(), st.binary(max_size=64)),
)
@example(data=b"\x7fELF\x01\x01", memory=MEMORY, append="", initrd=None)
@example(data=b"\x02\xb0\xad\x1b", memory=MEMORY, append="\udcff", initrd=b"x")
def test_only_the_one_error_escapes(
    data: bytes, memory: int, append: str, initrd: bytes | None
) -> None:
    refusal = ""
    try:
        image = parse_guest(data, file="f\n", memory=memory, append=append, initrd=initrd)
    except GuestImageError as error:
        refusal = str(error)
    assert refusal.isprintable()
    if refusal:
        return
    end = 0
    for start, content in sorted(image.segments):
        assert end <= start
        end = start + len(content)
    assert end <= memory
    assert image.description.isprintable()
    assert 0 <= image.entry < memory
