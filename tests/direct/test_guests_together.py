"""Several unmodified guests in one physical memory: none reaches another's."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from struct import pack

import numpy as np
import pytest

from benchmarks.suite import LINUX
from tests.direct.test_protected_machine import (
    HLT,
    LINKED,
    MEMORY,
    RAX_X,
    X,
    Y,
    look,
    machine,
    words,
)
from tests.direct.test_protected_on_engine import MEMORY as PLAYGROUND
from tests.direct.test_protected_on_engine import machine as player
from tests.direct.test_protected_on_engine import program
from trapgate.cli import app
from trapgate.decision.decide import Disposition
from trapgate.decision.fault_filters import (
    EMPTY_TABLE,
    KNOWN_TABLE,
    NO_LINK,
    OWN_FRAME,
    OWN_TABLE,
)
from trapgate.paging import frame_map as fm
from trapgate.paging.alias import aliased, unaliased
from trapgate.paging.walk import translate
from trapgate.sdm import cells as f
from trapgate.sdm.fields import Field
from trapgate.sdm.vectors import PF
from trapgate.vmm.actions import End
from trapgate.vmm.direct.mapped_memory import FRAMES, ProtectedHost, room_for
from trapgate.vmm.direct.protected import ProtectedMachine
from trapgate.vmm.direct.refusals import DirectPagingError
from trapgate.vmm.loaders import load_guest
from trapgate.vmm.loaders.image import GuestImage, GuestKind, Segment
from trapgate.vmm.loaders.state import gdt, protected_mode
from trapgate.vmm.snapshots.state import SnapshotError
from trapgate.vmm.ui.console import Console

FILTERED = "paragraph-80", OWN_FRAME | NO_LINK | KNOWN_TABLE
COUNTED = "paragraph-80", OWN_FRAME | NO_LINK | OWN_TABLE | EMPTY_TABLE


def whole(vm: ProtectedMachine) -> bytes:
    """A guest's memory and its map."""
    return vm.processor.memory.read(vm.base, vm.memory + FRAMES)


def play_together(seeds: range, filters: tuple[str, int]) -> list[End | None]:
    """Two hostile guests in turns; each turn leaves the other guest's memory as it was."""
    ends: list[End | None] = []
    for seed in seeds:
        host = ProtectedHost([PLAYGROUND, PLAYGROUND])
        chance = random.Random(seed)
        pair = [player(program(chance, 80, 1100), *filters, host) for _ in range(2)]
        for _ in range(20):
            for vm, other in (pair, pair[::-1]):
                before = whole(other)
                if vm.stopped is None:
                    vm.step(31)
                look(vm)
                assert whole(other) == before, "a guest has changed another's memory"
        ends += [None if vm.stopped is None else vm.stopped.end for vm in pair]
    return ends


@pytest.mark.parametrize("filters", [FILTERED, COUNTED], ids=["known-table", "empty-table"])
def test_hostile_guests_stay_apart(filters: tuple[str, int]) -> None:
    ends = play_together(range(3), filters)
    assert {End.HALTED, End.REFUSED} <= set(ends), ends


def everything_is_own(host: ProtectedHost, base: int, memory: int) -> object:
    """A VMM that forgets to say which frames are others'."""
    links = kept(host, base, memory)
    host.bytes[base + memory :][:FRAMES] = fm.OWN
    return links


kept = ProtectedHost.links_at


def no_frame_is_looked_at(host: ProtectedHost, base: int, memory: int) -> object:
    """A VMM that takes another's frames for tables."""
    links = kept(host, base, memory)
    host.bytes[base + memory :][: len(host.bytes) // 4096] |= fm.OWN
    links._state[2] = len(host.bytes) // 4096
    return links


@pytest.mark.parametrize("mutant", [everything_is_own, no_frame_is_looked_at])
def test_with_a_wrong_map_a_guest_gets_out(
    mutant: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProtectedHost, "links_at", mutant)
    with pytest.raises((AssertionError, IndexError)):
        reach_out(1)


def test_addresses_in_the_window_lie_elsewhere_and_no_others() -> None:
    v = np.zeros(len(Field), np.int64)
    v[f.ALIAS_BASE], v[f.ALIAS_LENGTH] = 0x60_0000, 0x20_0000
    for address, machine_address in (
        (0, 0x60_0000),
        (0x1F_FFFF, 0x7F_FFFF),
        (0x20_0000, 0x20_0000),
        (0xFEE0_0000, 0xFEE0_0000),
        (-1, -1),
    ):
        assert aliased(v, address) == machine_address
        assert unaliased(v, machine_address) == address
    assert unaliased(v, 0x5F_FFFF) == 0x5F_FFFF


def test_tables_and_what_they_lead_to_lie_in_the_window() -> None:
    """Each level's entry, A and D, and a pointer of PAE paging; a frame beyond stays."""
    base, beyond = 0x20_0000, 0x10_0000
    cells = np.zeros(0x30_0000 >> 3, np.int64)
    entries = {0x1000: 0x2007, 0x2000: 0x3007, 0x3000: 0x4007, 0x4000: 0x5007, 0x4008: beyond | 7}
    for at, entry in entries.items():
        cells[base + at >> 3] = entry
    v = np.zeros(len(Field), np.int64)
    v[f.GUEST_CR0], v[f.GUEST_CR4], v[f.GUEST_IA32_EFER] = 0x8000_0001, 0x20, 0x500
    v[f.GUEST_CR3], v[f.ALIAS_BASE], v[f.ALIAS_LENGTH] = 0x1000, base, 0x8000
    assert translate(v, cells, 0x123, 1, 0) == (base + 0x5123, -1)
    assert cells[base + 0x4000 >> 3] == 0x5067
    assert [cells[base + at >> 3] & 0x20 for at in (0x1000, 0x2000, 0x3000)] == [0x20] * 3
    assert translate(v, cells, 0x1123, 0, 0) == (beyond + 0x123, -1)
    assert not cells[: base >> 3].any()


def test_a_guest_behind_another_finds_its_tables_and_keeps_its_registers() -> None:
    """It edits by exits and by a filter; between its turns the other one uses SSE and RBX."""
    mark = bytes.fromhex("660f6ec0 f30f7ec8")  # movd xmm0, eax; movq xmm1, xmm0
    host = ProtectedHost([MEMORY] * 2)
    first = machine(b"\xb8\x11\x11\x00\x00\xbb\x33\x33\x00\x00" + mark + HLT + HLT, host=host)
    code = b"\xb8\x22\x22\x00\x00" + mark + LINKED + RAX_X + bytes.fromhex("48c70007004000")
    second = machine(
        code + b"\xba\x00\x00\x00\x40" + bytes.fromhex("48c70234120000") + HLT + HLT,
        *FILTERED,
        host,
    )
    second.step(2)
    first.step(3)
    assert first.processor.registers.rbx == 0x3333
    stops = host.run(timeout=20)
    assert all("halted" in stop.message for stop in stops), stops
    assert words(second, Y)[0] == 0x1234
    assert words(second, X)[0] == Y | 0x67
    assert second.links.levels_of(X >> 12) == {1}
    assert second.counts.edits > 0
    assert sum(second.completed) == 1
    assert not first.links.is_table(X >> 12)
    assert not any(words(first, Y))
    for vm, value in ((first, 0x1111), (second, 0x2222)):
        host.enter(vm)
        assert int(vm.processor.engine.vectors.live[0]) & 0xFFFF in (value, 0), value
    assert first.summary().instructions < second.summary().instructions
    with pytest.raises(SnapshotError, match="share a processor"):
        first.snapshot()


def reach_out(number: int) -> None:
    """A guest that stores to others' frames by large pages, and takes them for tables."""
    host = ProtectedHost([MEMORY] * 2)
    pair = [machine(HLT, host=host), machine(HLT, host=host)]
    vm, other = pair[number], pair[1 - number]
    room = room_for(MEMORY)
    for target in (MEMORY, MEMORY + FRAMES, room + 0x10_0000, 2 * room - 0x1000):
        store = b"\xb8" + pack("<I", target) + b"\xc6\x00\x55" + HLT
        link = b"\xb8" + pack("<I", 0x20_1008) + b"\xb9" + pack("<I", target | 7)
        for code in (store, link + b"\x48\x89\x08" + HLT):
            before = whole(other)
            vm.stopped, vm.vmcs["GUEST_RIP"] = None, 0x10_0000
            vm.vmcs["GUEST_ACTIVITY_STATE"] = 0
            vm.processor.memory.write(vm.base + 0x10_0000, code)
            vm.step(20)
            assert vm.stopped is not None, target
            assert vm.stopped.end is End.REFUSED, (target, vm.stopped)
            assert whole(other) == before
            look(vm)


def test_neither_guest_reaches_the_other() -> None:
    reach_out(0)
    reach_out(1)


def test_address_line_20_leads_to_no_map_and_no_other_guest() -> None:
    """Unpaged, with the gate closed: the byte 1 MiB behind the map's begin is no way to it."""
    for memory in (MEMORY, MEMORY + (1 << 20)):
        host = ProtectedHost([memory] * 2)
        pair = [ProtectedMachine(memory, host=host) for _ in range(2)]
        end = 2 * room_for(memory)
        assert end % (2 << 20) == 0
        targets = [memory + (1 << 20), room_for(memory) + (1 << 20), end, end + (1 << 20)]
        for vm in pair:
            for target in targets:
                code = b"\xe4\x92\x24\xfd\xe6\x92"  # the gate, at port 92H
                code += b"\xb8" + pack("<I", target) + b"\xc6\x00\x55" + HLT
                segments = Segment(0x1000, gdt(32)), Segment(0x6_0000, code)
                fields = protected_mode(0x6_0000, 0x1_8000, 0x1000)
                vm.stopped, vm.vmcs["GUEST_ACTIVITY_STATE"] = None, 0
                vm.load(GuestImage(GuestKind.FLAT, 32, segments, fields, {}, "a few lines"))
                others = [whole(other) for other in pair if other is not vm]
                frame_map = vm.processor.memory.read(vm.base + memory, FRAMES)
                vm.step(100)
                assert vm.stopped is not None
                assert vm.stopped.end in (End.REFUSED, End.HALTED), vm.stopped
                assert vm.processor.memory.read(vm.base + memory, FRAMES) == frame_map
                assert [whole(other) for other in pair if other is not vm] == others


def test_a_store_over_a_table_and_what_is_behind_memory_is_refused() -> None:
    """By an entry of a last-level table that has no LEAF, for it leads elsewhere."""
    last = MEMORY - 0x1000
    links = LINKED + b"\xb9" + pack("<I", X)
    # X[0] = the last frame, X[1] = the frame behind it; X's window is at 1 GB.
    links += b"\x48\xc7\x01" + pack("<I", last | 7) + b"\x48\xc7\x41\x08" + pack("<I", MEMORY | 7)
    # The last frame becomes a table itself: PD_2[1] leads there.
    links += b"\xb9" + pack("<I", 0x20_3008) + b"\x48\xc7\x01" + pack("<I", last | 7)
    store = b"\xb8" + pack("<I", 0x4000_0FFC) + bytes.fromhex("48c70078563412")
    vm = machine(links + store + HLT, "figure-8", NO_LINK)
    frame_map = vm.processor.memory.read(MEMORY, 8)
    stop = vm.run(timeout=20)
    assert stop.end is End.REFUSED, stop
    assert "not the guest's" in stop.message
    assert vm.processor.memory.read(MEMORY, 8) == frame_map


def test_who_halts_gives_the_processor_away() -> None:
    """One waits for its timer by HLT, one counts; both are done, and time has not been skipped."""
    host = ProtectedHost([MEMORY] * 2)
    count = b"\xb9" + pack("<I", 3_000_000) + b"\xff\xc9\x75\xfc" + HLT
    machine(HLT, host=host)
    busy = machine(count, host=host)
    stops = host.run(turn=10_000, timeout=20)
    assert [stop.end for stop in stops] == [End.HALTED] * 2
    assert busy.summary().instructions > 6_000_000
    assert host.processor.skipped == 0


def test_limits_and_wrong_sizes_are_told() -> None:
    host = ProtectedHost([MEMORY] * 2)
    pair = [machine(b"\xeb\xfe", host=host) for _ in range(2)]
    stops = host.run(max_instructions=50_000, turn=10_000, timeout=20)
    assert [stop.end for stop in stops] == [End.LIMIT] * 2
    assert sum(vm.summary().instructions for vm in pair) == host.processor.time
    with pytest.raises(DirectPagingError, match="no room left"):
        ProtectedMachine(MEMORY, host=host)
    with pytest.raises(DirectPagingError, match="devices of a PC begin"):
        ProtectedHost([2 << 30, 2 << 30])
    with pytest.raises(DirectPagingError, match="whole pages"):
        ProtectedHost([4095])


@pytest.mark.slow
@pytest.mark.linux
def test_two_debians_boot_unmodified() -> None:
    if not (LINUX / "vmlinuz-amd64").exists():
        pytest.skip("run tools/fetch-linux")
    memory = 128 << 20
    host = ProtectedHost([memory] * 2)
    pair = []
    for _ in range(2):
        vm = ProtectedMachine(memory, host=host, console=Console(io.BytesIO(), until="# $"))
        kernel, initrd = LINUX / "vmlinuz-amd64", LINUX / "initrd-amd64.cpio"
        line = "console=ttyS0 quiet pti=on"
        vm.load(load_guest(kernel, memory=memory, append=line, initrd=initrd))
        pair.append(vm)
    stops = host.run(timeout=120)
    assert [stop.end for stop in stops] == [End.UNTIL] * 2, stops
    for vm in pair:
        look(vm)
        exits = vm.summary().count(Disposition.EXIT, PF)
        assert 0 < exits < 100
        assert sum(vm.completed) > 1_000


# The command line.


def told(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `trapgate run`."""
    with pytest.raises(SystemExit) as ended:
        app(["run", *arguments], standalone_mode=True)
    out, error = capfd.readouterr()
    status = ended.value.code
    assert isinstance(status, int)
    return status, out, error


SAYS = "ba f8030000 b0{:02x} ee b00a ee b8 {:02x}000000 e7f4"
"""mov edx, 3F8H; a letter, a new line; out F4H, eax: debug exit."""


def test_guests_on_one_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The second guest fails, so the run does."""
    for name, letter, status in (("a", "A", 0), ("b", "B", 1)):
        code = bytes.fromhex(SAYS.format(ord(letter), status))
        (tmp_path / name).write_bytes(code)
    first, second = str(tmp_path / "a"), f"{tmp_path / 'b'} --memory 4M --seed 1"
    direct = ("--memory", "4M", "--paging", "direct")
    status, out, error = told(capfd, first, *direct, "--with-guest", second, "--json")
    answer = json.loads(out)["guests"]
    assert [guest["end"] for guest in answer] == ["debug exit"] * 2
    assert [guest["status"] for guest in answer] == [0, 1]
    assert [guest["machine_address"] for guest in answer] == [0, room_for(4 << 20)]
    assert status == 1
    assert sorted(error.split("\n")[:2]) == ["1| A", "2| B"]
    status, out, error = told(capfd, first, *direct, "--with-guest", first)
    assert status == 0
    assert sorted(out.split("\n")) == ["", "1| A", "2| A"]
    assert "guest 2: " in error
    for arguments, line in (
        (("--with-guest", second), "give --paging direct"),
        ((*direct, "--with-guest", "'"), "check the quotes"),
        ((*direct, "--with-guest", ""), "nothing to run"),
        ((*direct, "--with-guest", "x --gdb 1"), "unrecognized arguments: --gdb 1"),
        ((*direct, "--with-guest", "x --memory 4X"), "is not a size"),
        ((*direct, "--with-guest", second, "--gdb", "1"), "--gdb is for one guest"),
        ((*direct, "--with-guest", str(tmp_path / "none")), "none"),
    ):
        status, out, error = told(capfd, first, *arguments)
        assert status == 2, (arguments, error)
        assert line in error, (arguments, error)
        assert error.count("\n") == 1, error
