"""The screen: graphics modes by the built-in BIOS, pictures of them, and the page for a browser.

What is expected is VESA's and IBM's: VBE Core 3.0, "Return VBE Controller Information" and so on;
IBM VGA, "Video Modes".
"""

import io
import json
import re
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from struct import unpack, unpack_from
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.guests.test_bios import Caller
from tests.guests.test_firmware import image as disk_image
from trapgate.cli import app
from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.storage import Memory
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.ui.display import Display
from trapgate.vmm.ui.screen import png

MEMORY = 64 << 20
FRAME_BUFFER = MEMORY - (8 << 20)
BLOCK = 0x5000
FILLED = 0x004F


class Screen(Caller):
    """A machine with room for a frame buffer."""

    memory = MEMORY

    def vbe(self, function: int, **registers: int) -> int:
        """A VBE function with ES:DI = 0:5000H; its status."""
        self.vm.vmcs["GUEST_ES_SELECTOR"] = self.vm.vmcs["GUEST_ES_BASE"] = 0
        self.call(0x10, before=b"", ax=0x4F00 | function, di=BLOCK, **registers)
        return int(self.registers.rax) & 0xFFFF

    def pixels(self) -> Any:
        """The screen, height x width x 3."""
        return self.vm.devices.vga.pixels(self.vm.processor.memory)

    def store(self, address: int, data: bytes) -> None:
        """Store to the guest's memory."""
        self.vm.processor.memory.write(address, data)


def modes_of(screen: Screen) -> list[int]:
    offset, segment = unpack("<HH", screen.read(BLOCK + 14, 4))
    words = unpack("<111H", screen.read(segment * 16 + offset, 222))
    return list(words[: words.index(0xFFFF)])


def test_controller_information() -> None:
    screen = Screen()
    screen.store(BLOCK, b"VBE2" + b"\xee" * 508)
    assert screen.vbe(0) == FILLED
    assert screen.read(BLOCK, 6) == b"VESA\x00\x03"
    assert unpack("<H", screen.read(BLOCK + 18, 2)) == (8 << 20 >> 16,)
    assert {0x101, 0x103, 0x105, 0x111, 0x114, 0x115, 0x117, 0x118} <= set(modes_of(screen))
    # Who does not ask for VBE 2.0 gets 256 bytes and no more.
    screen.store(BLOCK, b"\xee" * 512)
    assert screen.vbe(0) == FILLED
    assert screen.read(BLOCK + 256, 256) == b"\xee" * 256


def test_every_mode_says_what_it_is_and_shows_it() -> None:
    """A pixel of a known colour at a place computed from the mode's information alone."""
    screen = Screen()
    screen.vbe(0)
    for number in modes_of(screen):
        assert screen.vbe(1, cx=number) == FILLED
        block = screen.read(BLOCK, 256)
        attributes, pitch, width, height = unpack_from("<H14xHHH", block)
        assert attributes & 0x99 == 0x99, "supported, in colour, graphics, linear"
        bits = block[25]
        (base,) = unpack_from("<I", block, 40)
        assert base == FRAME_BUFFER
        assert base + pitch * height <= MEMORY
        assert screen.vbe(2, bx=number | 0x4000) == FILLED
        assert screen.vbe(3) == FILLED
        assert screen.registers.rbx & 0xFFFF == number | 0x4000
        assert not screen.pixels().any(), "the mode begins with an empty screen"
        value = 0x2C  # of the palette: yellow
        if bits > 8:
            # Full red, no green, full blue, by the masks.
            (red, red_at), (_, _), (blue, blue_at) = (block[n : n + 2] for n in (31, 33, 35))
            value = ((1 << red) - 1) << red_at | ((1 << blue) - 1) << blue_at
        wide = (bits + 7) // 8
        place = base + pitch * (height - 1) + (width - 2) * wide
        screen.store(place, value.to_bytes(wide, "little"))
        pixels = screen.pixels()
        assert pixels.shape == (height, width, 3)
        assert tuple(pixels[height - 1, width - 2]) == (
            (255, 0, 255) if bits > 8 else (255, 255, 0)
        )
        assert np.count_nonzero(pixels.any(axis=2)) == 1


def test_what_vbe_refuses() -> None:
    screen = Screen()
    assert screen.vbe(1, cx=0x1FF) == 0x014F
    assert screen.vbe(2, bx=0x4000 | 0x1FF) == 0x014F
    assert screen.vbe(2, bx=0x101) == 0x014F, "there are no windows"
    assert screen.vbe(6, bx=1) == 0x034F, "not in a text mode"
    assert screen.vbe(0x0A, bx=0) == 0x014F
    assert screen.vbe(2, bx=0x4118) == FILLED
    assert screen.vbe(7, bx=0, cx=0, dx=9999) == 0x014F
    assert screen.vbe(9, bx=0, cx=2, dx=255) == 0x014F
    small = Caller()  # 32 MiB
    small.call(0x10, ax=0x4F00, di=BLOCK)
    assert small.registers.rax & 0xFFFF == 0x4F00, "not there"


def test_longer_lines_and_scrolling() -> None:
    screen = Screen()
    screen.vbe(2, bx=0x4101)
    assert screen.vbe(6, bx=0, cx=1024) == FILLED
    assert [screen.registers.rbx & 0xFFFF, screen.registers.rcx & 0xFFFF] == [1024, 1024]
    assert screen.vbe(7, bx=0, cx=8, dx=3) == FILLED
    screen.store(FRAME_BUFFER + 3 * 1024 + 8, b"\x0f")
    assert tuple(screen.pixels()[0, 0]) == (255, 255, 255)
    assert screen.vbe(7, bx=1) == FILLED
    assert [screen.registers.rcx & 0xFFFF, screen.registers.rdx & 0xFFFF] == [8, 3]


def test_the_palette_of_vbe_and_of_a_vga_are_one() -> None:
    screen = Screen()
    screen.vbe(2, bx=0x4101)
    screen.store(BLOCK, bytes((63, 0, 21, 0)))  # blue, green, red
    assert screen.vbe(9, bx=0, cx=1, dx=0) == FILLED
    assert tuple(screen.pixels()[0, 0]) == (85, 0, 255)
    screen.call(0x10, ax=0x1015, bx=0)
    assert screen.registers.rdx >> 8 & 0xFF == 21
    assert screen.registers.rcx & 0xFFFF == 63


def test_the_memory_map_keeps_the_frame_buffer() -> None:
    screen = Screen()
    entries, going = [], 0
    while True:
        screen.vm.vmcs["GUEST_ES_SELECTOR"] = screen.vm.vmcs["GUEST_ES_BASE"] = 0
        screen.call(0x15, ax=0xE820, bx=going, cx=24, dx=0x534D4150, di=BLOCK)
        entries.append(unpack("<QQI", screen.read(BLOCK, 20)))
        going = int(screen.registers.rbx) & 0xFFFFFFFF
        if not going:
            break
    assert (1 << 20, FRAME_BUFFER - (1 << 20), 1) in entries
    assert (FRAME_BUFFER, 8 << 20, 2) in entries


def test_mode_13h() -> None:
    screen = Screen()
    screen.call(0x10, ax=0x0013)
    screen.store(0xA0000 + 320 * 199 + 319, b"\x04")
    screen.call(0x10, ax=0x1010, bx=200, dx=0x3F00, cx=0x0000)  # entry 200: red
    screen.call(0x10, ax=0x0C00 | 200, cx=5, dx=7)  # a pixel
    pixels = screen.pixels()
    assert pixels.shape == (200, 320, 3)
    assert tuple(pixels[199, 319]) == (170, 0, 0)
    assert tuple(pixels[7, 5]) == (255, 0, 0)
    assert np.count_nonzero(pixels.any(axis=2)) == 2
    assert screen.vm.devices.vga.text(screen.vm.processor.memory) == []
    screen.call(0x10, ax=0x0003)
    assert screen.pixels() is None


@pytest.mark.parametrize(
    ("mode", "width", "byte", "colours"),
    [
        (4, 320, 0b00_01_10_11, [(0, 0, 0), (85, 255, 255), (255, 85, 255), (255, 255, 255)]),
        (6, 640, 0b0101_0000, [(0, 0, 0), (255, 255, 255), (0, 0, 0), (255, 255, 255)]),
    ],
)
def test_modes_of_the_cga(
    mode: int, width: int, byte: int, colours: list[tuple[int, int, int]]
) -> None:
    screen = Screen()
    screen.call(0x10, ax=mode)
    screen.store(0xB8000 + 0x2000 + 80, bytes((byte,)))  # line 3
    pixels = screen.pixels()
    assert pixels.shape == (200, width, 3)
    assert [tuple(pixel) for pixel in pixels[3, :4].tolist()] == colours
    assert not np.delete(pixels, 3, axis=0).any()


def test_pictures() -> None:
    screen = Screen()
    memory, vga = screen.vm.processor.memory, screen.vm.devices.vga
    screen.store(0xB8000, b"\xdb\x0c" * 80)  # full blocks in light red
    picture = Image.open(io.BytesIO(png(vga, memory)))
    assert picture.size == (720, 400)
    assert picture.getpixel((4, 8)) == (255, 85, 85)
    assert picture.getpixel((4, 24)) == (0, 0, 0)
    screen.vbe(2, bx=0x4118)
    screen.store(FRAME_BUFFER, b"\x01\x02\x03")
    picture = Image.open(io.BytesIO(png(vga, memory)))
    assert (picture.size, picture.getpixel((0, 0))) == ((1024, 768), (3, 2, 1))


def sector(code: bytes) -> bytes:
    """A disk that runs `code`."""
    return code.ljust(510, b"\0") + b"\x55\xaa" + bytes(512)


@pytest.mark.native
def test_stores_of_a_guest_to_planes() -> None:
    """Mode 12H, write mode 2: REP STOSB of colour 5 to the first line; then a pixel by the BIOS."""
    code = (
        b"\xb8\x12\x00\xcd\x10"  # mov ax, 12h; int 10h
        b"\xb8\x00\xa0\x8e\xc0"  # mov ax, a000h; mov es, ax
        b"\xba\xce\x03\xb8\x05\x02\xef\xb8\x08\xff\xef"  # graphics 5 = 2, 8 = ffh
        b"\x31\xff\xb0\x05\xb9\x50\x00\xf3\xaa"  # xor di, di; mov al, 5; mov cx, 80; rep stosb
        b"\xb8\x0e\x0c\xb9\x07\x00\xba\x09\x00\xcd\x10"  # pixel (7, 9) in 14
        b"\xfa\xf4"
    )
    vm = VirtualMachine(16 << 20, board=Board(disks=(Memory(sector(code)),), bios=True))
    vm.boot()
    before = vm.snapshot()
    vm.run(timeout=60)
    pixels = vm.devices.vga.pixels(vm.processor.memory)
    assert pixels is not None
    assert pixels.shape == (480, 640, 3)
    assert (pixels[0] == (170, 0, 170)).all()
    assert tuple(pixels[9, 7]) == (255, 255, 85)
    assert np.count_nonzero(pixels[1:].any(axis=2)) == 1
    picture = png(vm.devices.vga, vm.processor.memory)
    vm.restore(before)
    assert vm.devices.vga.is_text
    vm.run(timeout=60)
    assert png(vm.devices.vga, vm.processor.memory) == picture


STRIPES = bytes((0xAA, 0x0F)) * 8
"""A character of 16 lines."""


def lit(picture: Any, left: int, width: int = 9, height: int = 16) -> list[str]:
    """The first row's character at a column of pixels: a digit for each that is not black."""
    part: Any = np.asarray(picture)[:height, left : left + width].sum(axis=2)
    return ["".join("#" if dot else "." for dot in line) for line in part]


def drawn(lines: bytes, ninth: str = ".") -> list[str]:
    return [f"{line:08b}".replace("0", ".").replace("1", "#") + ninth for line in lines]


@pytest.mark.native
def test_characters_that_a_guest_loads_are_drawn() -> None:
    """IBM VGA, "Character Generator": into plane 2, 32 bytes each, with the planes at A0000H."""
    code = bytes.fromhex(
        "fc bac403 b80204 ef b80407 ef bace03 b80402 ef b80500 ef b80600 ef"
        "b800a0 8ec0 bf2008 b90800 b8aa0f f3ab"  # of 41H
        "bac403 b80203 ef b80403 ef bace03 b80400 ef b80510 ef b8060e ef"
        "b800b8 8ec0 31ff b8410f ab b8420f ab faf4"
    )
    vm = VirtualMachine(16 << 20, board=Board(disks=(Memory(sector(code)),), bios=True))
    vm.boot()
    vm.run(timeout=60)
    assert vm.devices.vga.text(vm.processor.memory)[0] == "AB"
    picture = Image.open(io.BytesIO(png(vm.devices.vga, vm.processor.memory)))
    assert picture.size == (720, 400)
    assert lit(picture, 0) == drawn(STRIPES)
    # B is still the host's, which is neither nothing nor that.
    assert lit(picture, 9) not in (drawn(STRIPES), drawn(bytes(16)))


def test_characters_loaded_by_the_bios() -> None:
    """INT 10H, AX = 1100H, 1110H and 1103H: sets of characters, and which of them are shown."""
    screen = Screen()
    memory, vga = screen.vm.processor.memory, screen.vm.devices.vga

    def load(function: int, font: int, glyph: bytes, first: int) -> None:
        screen.store(0x6000, glyph)
        screen.vm.vmcs["GUEST_ES_SELECTOR"] = screen.vm.vmcs["GUEST_ES_BASE"] = 0
        height = len(glyph)
        bx = height << 8 | font
        screen.call(0x10, before=b"", ax=0x1100 | function, bx=bx, cx=1, dx=first, bp=0x6000)

    def shows(*colours: int) -> Any:
        screen.store(0xB8000, b"".join(bytes((0xC1, colour)) for colour in colours))
        return Image.open(io.BytesIO(png(vga, memory)))

    load(0x00, 0, STRIPES, 0xC1)
    load(0x00, 5, b"\x3c" * 16, 0xC1)
    picture = shows(0x07, 0x0F)
    # Characters C0H to DFH are one dot wider in the modes whose lines are to meet.
    assert lit(picture, 0) == [line[:8] + line[7] for line in drawn(STRIPES)]
    assert lit(picture, 9) == lit(picture, 0)
    # Set 5 for characters whose attribute has bit 3: bits 5, 3 and 2.
    screen.call(0x10, before=b"", ax=0x1103, bx=0b100100)
    picture = shows(0x07, 0x0F)
    assert lit(picture, 0) == [line[:8] + line[7] for line in drawn(STRIPES)]
    assert lit(picture, 9) == drawn(b"\x3c" * 16)
    # Ten lines each: as many rows as 400 lines have of them.
    load(0x10, 0, b"\x81" * 10, 0xC1)
    picture = shows(0x07)
    assert picture.size == (720, 400)
    assert lit(picture, 0, height=20)[:10] == [line[:8] + "#" for line in drawn(b"\x81" * 10)]
    # A mode's beginning loads the BIOS's own.
    screen.call(0x10, before=b"", ax=3)
    assert lit(shows(0x07), 0) != [line[:8] + line[7] for line in drawn(STRIPES)]
    assert vga.glyph(0xC1, 0x07) is None
    for function in (0x01, 0x02, 0x04):
        load(0x00, 0, STRIPES, 0xC1)
        assert vga.glyph(0xC1, 0x07) == STRIPES
        screen.call(0x10, before=b"", ax=0x1100 | function, bx=0)
        assert vga.glyph(0xC1, 0x07) is None
    # More than there is room for is left out.
    load(0x00, 7, bytes(range(255)), 0xFF)
    screen.call(0x10, before=b"", ax=0x1100, bx=0xFF07, cx=0xFFFF, dx=0xFFF0, bp=0xFFFF)


@pytest.mark.native
def test_mode_x() -> None:
    """Mode 13H, not chained: a byte to plane 2 at address 80 is pixel 2 of line 1."""
    code = (
        b"\xb8\x13\x00\xcd\x10\xb8\x00\xa0\x8e\xc0"
        b"\xba\xc4\x03\xb8\x04\x06\xef\xb8\x02\x04\xef"  # sequencer 4 = 6, 2 = 4
        b"\xba\xd4\x03\xb8\x14\x00\xef\xb8\x17\xe3\xef"  # CRTC 14h = 0, 17h = e3h
        b"\x26\xc6\x06\x50\x00\x28\xfa\xf4"  # mov byte es:[80], 28h; cli; hlt
    )
    vm = VirtualMachine(16 << 20, board=Board(disks=(Memory(sector(code)),), bios=True))
    vm.boot()
    vm.run(timeout=60)
    pixels = vm.devices.vga.pixels(vm.processor.memory)
    assert pixels is not None
    assert pixels.shape == (200, 320, 3)
    assert np.argwhere(pixels.any(axis=2)).tolist() == [[1, 2]]
    assert tuple(pixels[1, 2]) == (255, 0, 0)


def boots(tmp_path: Path) -> Path:
    disk = tmp_path / "disk.img"
    disk.write_bytes(disk_image())
    return disk


def test_the_command_takes_a_picture(tmp_path: Path) -> None:
    """The guest shows a line and waits for a key for ever."""
    picture = tmp_path / "screen.png"
    options = [
        "--memory",
        "16M",
        "--until-screen",
        "read by f.rmware",
        "--screenshot",
        str(picture),
    ]
    result = CliRunner().invoke(app, ["run", "--disk", str(boots(tmp_path)), *options])
    assert result.exit_code == 0, result.output
    assert "the expression appeared on the screen" in result.stderr
    with Image.open(picture) as image:
        assert image.size == (720, 400)
        assert image.getbbox() is not None


def test_a_guest_that_halts_for_good_ends_all_the_same(tmp_path: Path) -> None:
    guest = tmp_path / "halts.bin"
    guest.write_bytes(b"\xfa\xf4")
    options = ["--memory", "16M", "--until-screen", "never", "--display", "0", "--timeout", "60"]
    result = CliRunner().invoke(app, ["run", str(guest), *options])
    assert result.exit_code == 0, result.output
    assert "the guest halted with interrupts disabled" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--until-screen", "("], "--until-screen: '(' is not a regular expression"),
        (["--display", "nonsense"], "--display: 'nonsense' is not [HOST:]PORT"),
        (["--display", "99999"], "--display: '99999' is not [HOST:]PORT"),
        (["--until-screen", "read", "--screenshot", "/nowhere/x.png"], "/nowhere/x.png"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path: Path, options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["run", "--disk", str(boots(tmp_path)), *options])
    assert result.exit_code == 2, result.output
    assert words in result.stderr.splitlines()[-1]


class Served:
    """A machine that waits for a key, running in a thread, and its page."""

    def __init__(self) -> None:
        self.vm = VirtualMachine(16 << 20, board=Board(disks=(Memory(disk_image()),), bios=True))
        self.vm.boot()
        memory = self.vm.processor.memory
        self.display = Display(self.vm.devices, memory, "127.0.0.1", 0)
        self.vm.watchers.append(self.display.look)
        self.thread = threading.Thread(target=lambda: self.vm.run(timeout=60))
        self.thread.start()

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(HTTPConnection(self.display.address, timeout=30)) as connection:
            connection.request(method, path, body or None, named)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def post(self, events: object, **headers: str) -> int:
        body = json.dumps(events).encode()
        return self.ask("POST", "/events", body, Content_Type="application/json", **headers)[0]


def test_the_page_shows_the_screen_and_types() -> None:
    served = Served()
    try:
        assert served.ask("GET", "/")[0] == 200
        for _ in range(50):
            status, picture = served.ask("GET", "/screen.png")
            assert status == 200
            if Image.open(io.BytesIO(picture)).getbbox() is not None:
                break
            time.sleep(0.05)
        assert Image.open(io.BytesIO(picture)).size == (720, 400)
        assert served.post([{"key": "KeyZ", "down": True}, {"key": "KeyZ", "down": False}]) == 204
        served.thread.join(30)
        assert not served.thread.is_alive()
        assert served.vm.stopped is not None
        assert served.vm.devices.vga.text(served.vm.processor.memory)[1] == "z"
    finally:
        served.post([{"key": "KeyZ", "down": True}])
        served.thread.join(60)
        served.display.close()


def test_the_page_is_nobody_elses() -> None:
    served = Served()
    try:
        port = served.display.address.rpartition(":")[2]
        assert served.ask("GET", "/", Host="evil.example")[0] == 403
        assert served.post([], Origin="http://evil.example") == 403
        assert served.post([], Origin=f"http://127.0.0.1:{port}") == 204
        for body, kind in (
            (b"[]", "text/plain"),
            *((text, "application/json") for text in (b"{", b"[1]", b"[" * 4000, b" " * 5000)),
        ):
            assert served.ask("POST", "/events", body, Content_Type=kind)[0] == 400
        strange = [{"key": 5}, {"right": "x"}, {"right": 10**30, "down": 0, "buttons": 0}]
        assert served.post(strange) == 204
        assert served.ask("GET", "/etc/passwd")[0] == 404
        assert served.thread.is_alive()
    finally:
        served.post([{"key": "KeyZ", "down": True}])
        served.thread.join(60)
        served.display.close()


def test_the_page_in_a_browser(tmp_path: Path, browser: Any) -> None:
    command = [sys.executable, "-c", "from trapgate.cli import app; app()"]
    options = ["run", "--disk", str(boots(tmp_path)), "--memory", "16M", "--display", "0"]
    with subprocess.Popen(
        [*command, *options, "--timeout", "120"], stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stderr is not None
        line = next(line for line in run.stderr if "display:" in line)
        found = re.search(r"http://\S+", line)
        assert found is not None
        browser.get(found.group())
        screen = browser.find_element("id", "screen")
        for _ in range(100):
            if screen.get_property("naturalWidth") == 720:
                break
            time.sleep(0.1)
        assert screen.get_property("naturalWidth") == 720
        screen.send_keys("z")
        rest = run.stderr.read()
    assert run.returncode == 0, rest
    assert re.search("on the screen:\nread by firmware\nz\n", rest), rest


def test_mouse_packets() -> None:
    """Three bytes for each movement, once the guest has asked for them (IBM PS/2, "Mouse")."""
    keyboard = Screen().vm.devices.keyboard

    def mouse(command: int) -> list[int]:
        keyboard.write(0x64, 1, 0xD4, 0)
        keyboard.write(0x60, 1, command, 0)
        return received()

    def received() -> list[int]:
        found = []
        while keyboard.read(0x64, 1, 0) & 1:
            found.append(keyboard.read(0x60, 1, 0))
        return found

    received()
    keyboard.move(5, -3, 1)
    assert received() == [], "it was not asked to report"
    assert mouse(0xF4) == [0xFA]
    keyboard.move(5, -3, 1)
    assert received() == [0x09, 5, 3]
    keyboard.move(-2, 4, 4)
    assert received() == [0x3C, 0xFE, 0xFC]
    assert mouse(0xF5) == [0xFA]
    keyboard.move(1, 1, 0)
    assert received() == []
