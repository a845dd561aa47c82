"""A VGA's planes against a model bit by bit, what the processor sees at A0000H, and Bochs' VGA.

IBM VGA, "Video Memory Read and Write Operations"; Bochs, "VBE Display API".
"""

import random

import pytest

from trapgate.vmm.devices.bochs_vga import BochsVga
from trapgate.vmm.devices.pixels import PlanarMode, planar
from trapgate.vmm.devices.planes import Planes
from trapgate.vmm.devices.vga import VgaRegisters

GRAPHICS, SEQUENCER, CRTC = 0x3CE, 0x3C4, 0x3D4
FRAME_BUFFER, SIZE = 0x380_0000, 1 << 20


class Windows:
    """Remembers what the processor is to see."""

    def __init__(self) -> None:
        self.open: dict[int, object] = {}

    def open_window(self, number: int, start: int, size: int, target: int) -> None:
        self.open[number] = (start, size, target) if size else None

    def open_planes(self) -> None:
        self.open[0] = "planes"


class Ram:
    """Memory that only counts what is cleared."""

    cleared = 0

    def read(self, address: int, count: int) -> bytes:
        return bytes(count)

    def write(self, address: int, data: bytes) -> None:
        self.cleared += len(data)


def stored(old: int, latch: int, value: int, plane: int, g: bytearray) -> int:
    """What a plane's byte becomes, a bit at a time."""
    new = 0
    for bit in range(8):
        rotated = value >> (bit + (g[3] & 7)) % 8 & 1
        before = latch >> bit & 1
        colour = g[0] >> plane & 1
        changes = g[8] >> bit & 1
        mode = g[5] & 3
        if mode == 1:
            new |= before << bit
            continue
        if mode == 0:
            one = colour if g[1] >> plane & 1 else rotated
        elif mode == 2:
            one = value >> plane & 1
        else:
            one, changes = colour, changes & rotated
        one = (one, one & before, one | before, one ^ before)[g[3] >> 3 & 3]
        new |= (one if changes else before) << bit
    return new


def test_loads_and_stores_as_bit_by_bit() -> None:
    r = random.Random(5)
    graphics, sequencer = bytearray(256), bytearray(256)
    planes = Planes(graphics, sequencer)
    planes.begin()
    model = [[0] * 4 for _ in range(4)]
    latches = [0] * 4
    for _ in range(4000):
        graphics[:9] = bytes(r.randrange(256) for _ in range(9))
        graphics[5] = r.choice((0, 1, 2, 3, 8))
        sequencer[2] = r.randrange(256)
        at, value = r.randrange(4), r.randrange(256)
        if r.randrange(2):
            planes.write(at, 1, value, 0)
            for plane in range(4):
                if sequencer[2] >> plane & 1:
                    model[at][plane] = stored(
                        model[at][plane], latches[plane], value, plane, graphics
                    )
            continue
        latches = list(model[at])
        expected = latches[graphics[4] & 3]
        if graphics[5] & 8:
            expected = sum(
                all(
                    not graphics[7] >> plane & 1
                    or latches[plane] >> bit & 1 == graphics[2] >> plane & 1
                    for plane in range(4)
                )
                << bit
                for bit in range(8)
            )
        assert planes.read(at, 1, 0) == expected
    assert list(planes.bytes[:16]) == [byte for address in model for byte in address]


def test_wide_accesses_are_bytes_one_after_the_other() -> None:
    graphics, sequencer = bytearray(256), bytearray(256)
    graphics[8], sequencer[2] = 0xFF, 1
    planes = Planes(graphics, sequencer)
    planes.begin()
    planes.write(0xFFFE, 4, 0x44332211, 0)
    assert [planes.read(at, 1, 0) for at in (0xFFFE, 0xFFFF, 0, 1)] == [0x11, 0x22, 0x33, 0x44]
    assert planes.read(0xFFFE, 8, 0) == 0x44332211


def put(vga: VgaRegisters, port: int, index: int, value: int) -> None:
    vga.write(port, 1, index, 0)
    vga.write(port + 1, 1, value, 0)


def test_what_the_processor_sees() -> None:
    """Planes in planar modes: not chained, not at B8000H, not under VBE; and that of characters."""
    windows = Windows()
    vga = VgaRegisters(windows)
    assert windows.open == {}
    put(vga, SEQUENCER, 4, 6)
    put(vga, GRAPHICS, 6, 5)
    assert (windows.open[0], vga.is_planar) == ("planes", True)
    put(vga, SEQUENCER, 4, 14)
    assert (windows.open[0], vga.is_planar) == (None, False)
    put(vga, SEQUENCER, 4, 6)
    put(vga, GRAPHICS, 6, 0x0D)
    assert windows.open[0] is None
    put(vga, GRAPHICS, 6, 4)
    assert windows.open[0] == "planes"
    assert not vga.is_planar
    put(vga, SEQUENCER, 4, 2)
    assert windows.open[0] is None


@pytest.mark.parametrize("registers", [b"", bytes(range(256)), b"\xff" * 256])
def test_any_registers_give_a_picture(registers: bytes) -> None:
    vga = VgaRegisters(Windows())
    for index, value in enumerate(registers):
        put(vga, CRTC, index, value)
    put(vga, SEQUENCER, 4, 6)
    for mode in (0x00, 0x40):
        put(vga, GRAPHICS, 5, mode)
        put(vga, GRAPHICS, 6, 5)
        pixels = vga.pixels(Ram())
        assert pixels is not None
        assert pixels.ndim == 3
        assert not pixels.any()


def bochs() -> tuple[BochsVga, VgaRegisters, Windows, Ram]:
    windows, ram = Windows(), Ram()
    vga = VgaRegisters(windows)
    return BochsVga(vga, FRAME_BUFFER, SIZE, windows, ram), vga, windows, ram


def set_mode(adapter: BochsVga, *values: int) -> None:
    for index, value in enumerate(values, 1):
        adapter.write(0x1CE, 2, index, 0)
        adapter.write(0x1CF, 2, value, 0)


class Screen:
    """Text memory with a letter for each 40 characters of it."""

    def read(self, address: int, count: int) -> bytes:
        at = range(address - 0xB8000, address - 0xB8000 + count)
        return bytes(7 if n & 1 else 0x41 + n // 80 % 26 for n in at)


def set_crtc(vga: VgaRegisters, **registers: int) -> None:
    """Registers of the CRT controller by number, as in `x18`."""
    for name, value in registers.items():
        vga.write(CRTC, 1, int(name[1:], 16), 0)
        vga.write(CRTC + 1, 1, value, 0)


def test_text_begins_again_at_the_line_compared() -> None:
    vga = VgaRegisters(Windows())
    # 40 x 25 of 16 lines; rows from 20 on are those at the beginning of memory.
    set_crtc(vga, x01=39, x07=0x0F, x09=0x0F, x12=0x8F, x13=20, x0C=0, x0D=80, x18=0x3F)
    assert [line[0] for line in vga.text(Screen())] == [
        *(chr(0x41 + 2 + n) for n in range(4)),
        *(chr(0x41 + n) for n in range(21)),
    ]
    # The ninth bit: row 20.
    set_crtc(vga, x07=0x1F)
    assert [line[0] for line in vga.text(Screen())][18:] == ["U", "V", "A", "B", "C", "D", "E"]


@pytest.mark.parametrize("pans_below", [True, False])
def test_planes_split_and_panned(pans_below: bool) -> None:
    planes = bytearray(4 * 0x10000)
    for address, byte in ((0x1000, 0xF0), (0x1002, 0x80), (0x1050, 0x0F), (0, 0xC0), (0x50, 0x03)):
        planes[4 * address] = byte
    mode = PlanarMode(2, 4, 0x50, 0x1000, False, split=2, panned=1, pans_below=pans_below)
    # Colour 1 is white, colour 0 black.
    shown = planar(mode, bytes(planes), bytes(3) + b"\x3f\x3f\x3f" + bytes(3 * 14))
    lines = ["".join("1" if pixel.all() else "0" for pixel in line) for line in shown]
    below = ["1000000000000000", "0000011000000000"]
    assert lines == [
        "1110000000000001",
        "0001111000000000",
        *(below if pans_below else ["1100000000000000", "0000001100000000"]),
    ]


def test_a_mode_of_bochs_vga() -> None:
    adapter, vga, windows, ram = bochs()
    adapter.write(0x1CE, 2, 0, 0)
    assert adapter.read(0x1CF, 2, 0) == 0xB0C5
    set_mode(adapter, 640, 400, 16, 0x41)
    assert vga.linear is not None
    assert (vga.linear.width, vga.linear.height, vga.linear.pitch) == (640, 400, 1280)
    assert ram.cleared == SIZE
    assert windows.open.get(0) is None
    pixels = vga.pixels(Ram())
    assert pixels is not None
    assert pixels.shape == (400, 640, 3)
    # Scrolled, and with longer lines.
    for index, value in ((6, 1024), (8, 3), (9, 2)):
        adapter.write(0x1CE, 2, index, 0)
        adapter.write(0x1CF, 2, value, 0)
    assert (vga.linear.pitch, vga.linear.start) == (2048, 2 * 2048 + 6)
    adapter.write(0x1CE, 2, 4, 0)
    adapter.write(0x1CF, 2, 0, 0)
    assert vga.linear is None


def test_banks_are_at_a0000h() -> None:
    adapter, _, windows, _ = bochs()
    set_mode(adapter, 640, 480, 8, 0x81, 3)
    assert windows.open[0] == (0xA0000, 0x10000, FRAME_BUFFER + 0x30000)
    set_mode(adapter, 640, 480, 8, 0)
    assert windows.open[0] is None


def test_the_frame_buffer_is_where_pci_says() -> None:
    adapter, _, windows, _ = bochs()
    function = adapter.function
    function.write(0x10, 4, 0xFFFF_FFFF)
    assert function.read(0x10, 4) == (1 << 32) - SIZE | 8
    function.write(0x10, 4, 0xE000_0000)
    assert windows.open.get(1) is None
    function.write(4, 2, 2)
    assert windows.open[1] == (0xE000_0000, SIZE, FRAME_BUFFER)
    function.write(4, 2, 0)
    assert windows.open[1] is None


def test_nonsense_shows_nothing_beyond_its_memory() -> None:
    r = random.Random(7)
    adapter, vga, windows, _ = bochs()
    shown = 0
    for _ in range(5000):
        adapter.write(0x1CE, 2, r.choice((*range(12), r.randrange(1 << 16))), 0)
        adapter.write(0x1CF, 2, r.choice((r.randrange(1 << 16), r.randrange(1024), 8, 32, 0x41)), 0)
        adapter.read(0x1CF, 2, 0)
        mode = vga.linear
        if mode is not None:
            shown += 1
            end = mode.start + mode.pitch * (mode.height - 1) + mode.width * mode.bytes_per_pixel
            assert end <= SIZE
        window = windows.open.get(0)
        if isinstance(window, tuple):
            assert FRAME_BUFFER <= window[2] <= FRAME_BUFFER + SIZE - 0x10000
    assert shown
