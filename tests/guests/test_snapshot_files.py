"""Machines that go on in another process, from a file; and files that are none."""

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.guests.test_polled_ports import real_mode
from tests.guests.test_snapshots import END, MEMORY, machine, state
from trapgate import guests
from trapgate.cli import app
from trapgate.demo import x86 as demo_x86
from trapgate.trace import Trace, TraceWriter
from trapgate.vmm import saved_machine
from trapgate.vmm.actions import End
from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.storage import open_image
from trapgate.vmm.direct.machine import DirectMachine
from trapgate.vmm.direct.protected import ProtectedMachine
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.saved_machine import SavedMachine
from trapgate.vmm.snapshots.state import SnapshotError

ENGINES = pytest.mark.parametrize("engine", ["native", "portable"])
ROOT = Path(__file__).parents[2]


def again(vm: VirtualMachine, folder: Path) -> VirtualMachine:
    vm.save(folder / "machine")
    return SavedMachine(folder / "machine").machine()


@ENGINES
@pytest.mark.parametrize("workload", ["demand", "fork", "faults"])
@pytest.mark.parametrize("start", [0, 10_200_000, 10_140_123])
def test_a_saved_machine_goes_on_as_it_did(
    workload: str, start: int, engine: str, tmp_path: Path
) -> None:
    vm = machine(workload, engine)
    vm.step(start)
    other = again(vm, tmp_path)
    assert state(other) == state(vm)
    for one in (vm, other):
        one.step(END)
    assert state(other) == state(vm)
    if vm.stopped is None:
        third = again(other, tmp_path)
        for one in (vm, third):
            one.step(END)
        assert state(third) == state(vm)


_ELSEWHERE = """
import sys
from pathlib import Path
from tests.guests.test_snapshots import END, state
from trapgate.vmm.saved_machine import SavedMachine
vm = SavedMachine(Path(sys.argv[1])).machine()
vm.step(END)
print(repr(sorted(state(vm).items())))
"""


def test_it_goes_on_in_another_process(tmp_path: Path) -> None:
    vm = machine("demand")
    vm.step(10_200_000)
    vm.save(tmp_path / "machine")
    told = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, tmp_path / "machine"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    vm.step(END)
    assert told.stdout.strip() == repr(sorted(state(vm).items()))


@pytest.fixture(scope="module")
def whole() -> dict[str, object]:
    vm = machine("demand")
    vm.step(10_220_000)
    found = state(vm)
    del found["exits"]
    return found


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(10_100_000, 10_219_999), min_size=1, max_size=3, unique=True))
def test_wherever_it_is_cut(
    cuts: list[int], whole: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    vm = machine("demand")
    for cut in sorted(cuts):
        vm.step(cut - vm.processor.time)
        vm = again(vm, folder)
    vm.step(10_220_000 - vm.processor.time)
    found = state(vm)
    # Each cut is an exit more.
    del found["exits"]
    assert found == whole


def test_an_x86_vmm_and_its_guest_go_on(tmp_path: Path) -> None:
    memory = demo_x86.MEMORY
    vm = VirtualMachine(memory)
    line = f"hypervisor.elf policy=all {guests.command_line('demand')}"
    image, kernel = guests.hypervisor(), guests.image()
    vm.load(parse_guest(image, file="hypervisor.elf", memory=memory, append=line, initrd=kernel))
    for start in (500_000, 10_300_000, 10_320_123):
        vm.step(start - vm.processor.time)
        other = again(vm, tmp_path)
        assert state(other) == state(vm)
        for one in (vm, other):
            one.step(END)
        assert state(other) == state(vm)
        vm = other
    assert vm.summary().nested is not None


@ENGINES
def test_x87_and_sse_registers_go_on(engine: str, tmp_path: Path) -> None:
    # fninit; fldpi; fld1; fldz; fdivp (#Z flag); fldcw [600H]; ldmxcsr [604H]; movups xmm3, [600H]
    # ... then in the loaded machine: fxsave [700H]; hlt
    code = "dbe3 d9eb d9e8 d9ee def9 d92e0006 0fae160406 0f101e0006 9090 0fae060007 f4"
    vm = real_mode(bytes.fromhex(code), engine)
    vm.vmcs["GUEST_CR4"] |= 1 << 9
    vm.vmcs["CR4_READ_SHADOW"] |= 1 << 9
    vm.processor.memory.write(
        0x600, bytes.fromhex("7f0e0000807f000001020304050607080910111213141516")
    )
    vm.step(9)
    other = again(vm, tmp_path)
    for one in (vm, other):
        one.run(max_instructions=10)
    saved = [one.processor.memory.read(0x700, 512) for one in (vm, other)]
    assert saved[0] == saved[1]
    assert saved[0][:4] != bytes(4)
    assert saved[0][160 + 3 * 16 : 164 + 3 * 16] == bytes.fromhex("7f0e0000")


def test_output_devices_and_what_was_typed_go_on(tmp_path: Path) -> None:
    # L: in al, 3FDh; test al, 1; jz L; in al, 3F8h; out 3F8h, al; jmp L
    vm = real_mode(bytes.fromhex("bafd03 ec a801 74f8 baf803 ec ee ebf1"), "native")
    vm.type(b"abcdef")
    vm.step(40)
    assert 0 < len(vm.output) < 6
    other = again(vm, tmp_path)
    other.step(200)
    assert other.output == b"abcdef"


def test_the_trace_goes_on(tmp_path: Path) -> None:
    vm = machine("demand")
    with TraceWriter(tmp_path / "whole.parquet") as writer:
        vm.processor.trace_to(writer.append)
        vm.step(10_200_000)
        vm.save(tmp_path / "machine")
        seen = int(vm.processor.head[4])
        vm.step(END)
        vm.processor.drain()
    with TraceWriter(tmp_path / "rest.parquet") as writer:
        other = SavedMachine(tmp_path / "machine").machine(trace=writer)
        other.step(END)
        other.processor.drain()
    with Trace(tmp_path / "whole.parquet") as one, Trace(tmp_path / "rest.parquet") as two:
        rows, rest = one.table().to_pylist(), two.table().to_pylist()
    assert rest
    assert rows[seen:] == rest


# Disks.


def with_disk(option: str) -> VirtualMachine:
    return VirtualMachine(1 << 20, board=Board(disks=(open_image(option),)))


def test_a_disk_that_is_a_file_is_asked_for_again(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * 512)
    vm = with_disk(str(image))
    vm.board.disks[0].write(3, b"x" * 512)
    in_memory = vm.snapshot()
    vm.board.disks[0].write(4, b"y" * 512)
    vm.restore(in_memory)
    assert vm.board.disks[0].read(4, 1) != b"y" * 512
    vm.save(tmp_path / "machine")
    saved = SavedMachine(tmp_path / "machine")
    other = saved.machine(board=Board(disks=(open_image(str(image)),)))
    assert other.board.disks[0].read(3, 2) == b"x" * 512 + bytes(range(256)) * 2
    with pytest.raises(SnapshotError, match="1 disks"):
        saved.machine()
    del vm, other, in_memory
    (tmp_path / "other.img").write_bytes(b"\1" * 131072)
    with pytest.raises(SnapshotError, match="other disk images"):
        saved.machine(board=Board(disks=(open_image(str(tmp_path / "other.img")),)))


@pytest.mark.parametrize("setting", ["write", "overlay={}"])
def test_what_goes_to_files_cannot_be_taken_back(setting: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    vm = with_disk(f"{image},{setting.format(tmp_path / 'over')}")
    with pytest.raises(SnapshotError, match="leave out write and overlay"):
        vm.snapshot()


def test_our_bios_goes_on(tmp_path: Path) -> None:
    # Boot sector: mov ax, 0E41h; int 10h; inc al ... prints A B C ... by the BIOS.
    sector = bytes.fromhex("b8410e cd10 fec0 ebfa").ljust(510, b"\0") + b"\x55\xaa"
    image = tmp_path / "floppy.img"
    image.write_bytes(sector.ljust(1_474_560, b"\0"))
    board = Board(floppies=(open_image(str(image)),), bios=True)
    vm = VirtualMachine(1 << 20, board=board)
    vm.boot()
    vm.step(3_000)
    assert vm.output.startswith(b"ABC")
    vm.save(tmp_path / "machine")
    board = Board(floppies=(open_image(str(image)),), bios=True)
    other = SavedMachine(tmp_path / "machine").machine(board=board)
    for one in (vm, other):
        one.step(3_000)
    assert state(other) == state(vm)


# What cannot be saved, and what cannot be loaded.


def test_what_cannot_be_saved_is_refused_in_words(tmp_path: Path) -> None:
    several = VirtualMachine(2 << 20, board=Board(processors=2))
    with pytest.raises(SnapshotError, match="several processors"):
        several.save(tmp_path / "machine")
    for direct in (ProtectedMachine(16 << 20), DirectMachine(16 << 20)):
        with pytest.raises(SnapshotError, match="direct paging"):
            direct.save(tmp_path / "machine")
    over = real_mode(b"\xe6\xf4", "native")
    assert over.run().end is End.DEBUG_EXIT
    with pytest.raises(SnapshotError, match="the machine has ended"):
        over.save(tmp_path / "machine")
    with pytest.raises(SnapshotError, match="cannot be written"):
        machine("demand").save(tmp_path / "nowhere" / "machine")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = machine("demand")
    vm.save(tmp_path / "machine")
    before = (tmp_path / "machine").read_bytes()
    vm.step(1_000)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SnapshotError, match="No space left"):
        vm.save(tmp_path / "machine")
    assert [one.name for one in tmp_path.iterdir()] == ["machine"]
    assert (tmp_path / "machine").read_bytes() == before


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "machine"
    vm = machine("demand")
    vm.step(10_200_000)
    vm.save(path)
    return path.read_bytes()


def refused(data: bytes, folder: Path, word: str = ".") -> None:
    (folder / "machine").write_bytes(data)
    with pytest.raises(SnapshotError, match=word) as told:
        SavedMachine(folder / "machine").machine()
    assert "\n" not in str(told.value)
    assert str(folder / "machine") in str(told.value)


def test_every_bit_counts(file: bytes, tmp_path: Path) -> None:
    chance = random.Random(1)
    places = [*range(60 * 8), *(chance.randrange(len(file) * 8) for _ in range(200))]
    for place in places:
        data = bytearray(file)
        data[place >> 3] ^= 1 << (place & 7)
        refused(bytes(data), tmp_path)


def test_files_that_are_cut_off_or_too_long(file: bytes, tmp_path: Path) -> None:
    chance = random.Random(2)
    lengths = [*range(60), *(chance.randrange(len(file)) for _ in range(60)), len(file) - 1]
    for length in lengths:
        refused(file[:length], tmp_path)
    refused(file + b"\0", tmp_path, "damaged")
    refused(b"", tmp_path, "not a snapshot")
    with pytest.raises(SnapshotError, match="cannot be read"):
        SavedMachine(tmp_path / "nothing")
    with pytest.raises(SnapshotError, match="cannot be read"):
        SavedMachine(tmp_path)


def test_other_versions_models_and_engines_are_refused(
    file: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "machine").write_bytes(file)
    for name, word in (
        ("version", "Trapgate"),
        ("layout", "sources"),
        ("processor_model", "model"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(saved_machine, name, lambda *_: "another")
            refused(file, tmp_path, word)
    refused(file[:8] + b"\2" + file[9:], tmp_path, "format 2")
    (tmp_path / "machine").write_bytes(file)
    saved = SavedMachine(tmp_path / "machine")
    with pytest.raises(SnapshotError, match="native engine"):
        saved.restore(VirtualMachine(MEMORY, engine="portable"))
    with pytest.raises(SnapshotError, match="other memory"):
        saved.restore(VirtualMachine(1 << 20))
    with pytest.raises(SnapshotError, match="other firmware"):
        saved.machine(board=Board(firmware=True))


def forged(data: bytes, change: Callable[[dict[str, Any], list[bytearray]], None]) -> bytes:
    """The file with something changed and its digest put right."""
    head = struct.Struct("<8sII32s")
    magic, form, length, _ = head.unpack_from(data)
    (size,) = struct.unpack_from("<I", data, head.size)
    at = head.size + 4
    description = json.loads(pa.decompress(data[at : at + length], size, "zstd", asbytes=True))
    at += length
    parts = []
    for packed, raw in description["sizes"]:
        part = pa.decompress(data[at : at + packed], raw, "zstd", asbytes=True) if raw else b""
        parts.append(bytearray(part))
        at += packed
    change(description, parts)
    packed_parts = [pa.compress(bytes(part), codec="zstd", asbytes=True) for part in parts]
    sizes = [[len(p), len(part)] for p, part in zip(packed_parts, parts, strict=True)]
    if description.get("sizes") is not None:
        description["sizes"] = sizes
    text = json.dumps(description).encode()
    packed_text = pa.compress(text, codec="zstd", asbytes=True)
    body = b"".join([struct.pack("<I", len(text)), packed_text, *packed_parts])
    return head.pack(magic, form, len(packed_text), hashlib.sha256(body).digest()) + body


_STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    1 << 70,
    1.5,
    "x",
    [],
    {},
    [[1]],
    {"at": "pc"},
    {"wire": True},
)


def _places(one: Any) -> list[tuple[Any, Any]]:
    """Every place in a description where a value stands."""
    found: list[tuple[Any, Any]] = []
    todo = [one]
    while todo:
        one = todo.pop()
        items = one.items() if isinstance(one, dict) else enumerate(one)
        for key, value in items:
            found.append((one, key))
            if isinstance(value, dict | list):
                todo.append(value)
    return found


_RUN = """
import sys
from pathlib import Path
from trapgate.errors import TrapgateError
from trapgate.vmm.saved_machine import SavedMachine
for name in sys.argv[1:]:
    try:
        vm = SavedMachine(Path(name)).machine()
    except TrapgateError:
        continue
    try:
        vm.step(2_000)
    except Exception as error:
        print("ran into", repr(error)[:100])
print("there")
"""


def test_forged_files_do_not_crash_the_host(file: bytes, tmp_path: Path) -> None:
    chance = random.Random(3)
    names = []
    for number in range(160):

        def change(
            description: dict[str, Any], parts: list[bytearray], number: int = number
        ) -> None:
            if number % 2:
                for _ in range(1 + number % 3):
                    owner, key = chance.choice(_places(description["values"]))
                    owner[key] = chance.choice(_STRANGE)
                return
            part = chance.choice([part for part in parts[:9] if part])
            cells = np.frombuffer(part, np.int64)
            for _ in range(chance.choice((1, 4))):
                place = chance.randrange(cells.size)
                cells[place] = chance.choice((0, -1, 1, 1 << 40, -(1 << 63), 255))

        path = tmp_path / f"forged {number}"
        path.write_bytes(forged(file, change))
        names.append(str(path))
    told = subprocess.run(
        [sys.executable, "-c", _RUN, *names], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert told.returncode == 0, told.stderr[-2000:]
    assert told.stdout.endswith("there\n")


@pytest.mark.parametrize(
    ("part", "cell", "value"),
    [(5, 1, 1 << 40), (5, 0, -1), (5, 7, 9), (5, 4, -1), (7, 2, 5000), (7, 10, 99)],
)
def test_what_would_lead_compiled_code_astray_is_refused(
    file: bytes, part: int, cell: int, value: int, tmp_path: Path
) -> None:
    def change(description: dict[str, Any], parts: list[bytearray]) -> None:
        np.frombuffer(parts[part], np.int64)[cell] = value

    refused(forged(file, change), tmp_path, "no machine has")


def test_pages_outside_of_memory_and_other_sizes_are_refused(file: bytes, tmp_path: Path) -> None:
    def outside(description: dict[str, Any], parts: list[bytearray]) -> None:
        np.frombuffer(parts[description["arrays"] + 1], np.int64)[0] = MEMORY >> 12

    def larger(description: dict[str, Any], parts: list[bytearray]) -> None:
        description["memory"] = 1 << 50

    def short(description: dict[str, Any], parts: list[bytearray]) -> None:
        del parts[1][8:]

    refused(forged(file, outside), tmp_path, "outside of memory")
    refused(forged(file, larger), tmp_path, "bytes of memory")
    refused(forged(file, short), tmp_path, "other sizes")


# The command.


def test_the_command_saves_and_loads(tmp_path: Path) -> None:
    image, saved = tmp_path / "guest.elf", tmp_path / "machine"
    image.write_bytes(guests.image())
    run = CliRunner().invoke
    common = ["run", str(image), "--memory", "16M", "--append", guests.command_line("demand")]
    whole = json.loads(run(app, [*common, "--json"]).stdout)
    for option, more in (
        (f"{saved}@fault=PF#100", []),
        (str(saved), ["--max-instructions", "10100000"]),
        (str(saved), ["--until", "timer o"]),
    ):
        first = run(app, [*common, "--save", option, *more])
        assert "saved" in first.output, first.output
        rest = run(app, ["run", "--load", str(saved), "--json"])
        assert rest.exit_code == 0
        found = json.loads(rest.stdout)
        for name in ("status", "end", "faults", "interrupts", "software_interrupts"):
            assert found[name] == whole[name]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--append", "x"], "--append"),
        (["--memory", "256M"], "--memory"),
        (["--seed", "3"], "--seed"),
        (["--engine", "portable"], "--engine"),
        (["--paging", "direct"], "--paging"),
    ],
)
def test_the_command_says_what_does_not_go_together(
    options: list[str], word: str, file: bytes, tmp_path: Path
) -> None:
    (tmp_path / "machine").write_bytes(file)
    told = CliRunner().invoke(app, ["run", "--load", str(tmp_path / "machine"), *options])
    assert told.exit_code == 2
    assert word in told.output


def test_the_command_says_when_nothing_was_saved(tmp_path: Path) -> None:
    image = tmp_path / "guest.elf"
    image.write_bytes(guests.image())
    common = ["run", str(image), "--memory", "16M", "--append", guests.command_line("demand")]
    over = CliRunner().invoke(app, [*common, "--save", str(tmp_path / "machine")])
    assert (over.exit_code, "not saved" in over.output) == (1, True)
    never = [*common, "--save", f"{tmp_path / 'machine'}@exit=VMCALL"]
    assert "never came" in CliRunner().invoke(app, never).output
    for option, word in (
        ("@5", "no file"),
        ("x@place=3", "not a moment"),
        ("/no/x", "not a directory"),
    ):
        told = CliRunner().invoke(app, [*common, "--save", option])
        assert (told.exit_code, word in told.output) == (2, True), told.output
    direct = CliRunner().invoke(app, [*common, "--paging", "direct", "--save", "x@5"])
    assert (direct.exit_code, "direct paging" in direct.output) == (2, True)


def test_an_smi_that_waits_is_taken_first(tmp_path: Path) -> None:
    vm = machine("demand")
    vm.step(1_000)
    vm.processor.smi()
    with pytest.raises(SnapshotError, match="an instruction later"):
        vm.save(tmp_path / "machine")
    vm.step(1)
    vm.save(tmp_path / "machine")
