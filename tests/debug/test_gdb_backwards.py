"""Backwards: what was, is again, instruction by instruction; what was given away is not twice."""

import io
import time
from pathlib import Path
from struct import pack

import numpy as np
import pytest

from tests.debug import broken_guests as bg
from tests.debug.gdb_client import BEGIN, BREAK, STEPPED, Client, debugged
from tests.debug.test_gdb import (
    FAULTS,
    LOOP_32,
    MEMORY,
    NOP,
    STORE,
    Session,
    gdb,
    needs_gdb,
    session,
)
from tests.unit.guest_files import boot_sector
from trapgate import guests
from trapgate.vmm.actions import End
from trapgate.vmm.direct.host_memory import Host
from trapgate.vmm.direct.machine import DirectMachine
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.ui.console import Console

EAX, EIP = 0, 8
BUNDLED = 16 << 20


def machine(file: bytes, engine: str = "native", console: Console | None = None) -> VirtualMachine:
    vm = VirtualMachine(MEMORY, engine=engine, console=console)
    vm.load(parse_guest(file, file="guest", memory=MEMORY))
    return vm


def bundled(workload: str, engine: str = "native") -> VirtualMachine:
    vm = VirtualMachine(BUNDLED, engine=engine)
    command = guests.command_line(*workload.split())
    vm.load(parse_guest(guests.image(), file="guest.elf", memory=BUNDLED, append=command))
    return vm


def moment(client: Client, made: Session) -> tuple[int, bytes]:
    return made.vm.processor.time, client.ask("g")


def stop_at(client: Client, made: Session, when: int) -> None:
    """Let the guest run for so many instructions, as by Ctrl-C; once, whoever goes back."""
    asked: list[int] = []

    def ask(vm: VirtualMachine) -> None:
        if not asked:
            asked.append(when)
            client.send(b"\x03")
            time.sleep(0.2)
            vm.at(vm.processor.time + 1, lambda _: None)  # an exit to notice it at

    made.vm.at(when, ask)
    assert client.ask("c") == b"T02thread:1;"


@needs_gdb
@pytest.mark.parametrize("engine", ["native", "portable"])
def test_gdb_goes_back_to_breakpoints_instructions_and_stores(tmp_path: Path, engine: str) -> None:
    here = 'printf "{} at %x with %d\\n", $eip, $eax'
    with session(tmp_path, LOOP_32, engine=engine) as made:
        words = gdb(
            made,
            f"break *{NOP:#x}",
            *("continue",) * 3,
            "reverse-stepi",
            here.format("instruction"),
            "reverse-stepi",
            here.format("another"),
            "reverse-continue",
            here.format("breakpoint"),
            "reverse-continue",
            "reverse-continue",
            here.format("beginning"),
            "continue",
            here.format("again"),
            "delete",
            f"watch *(int*){bg.DATA_AT:#x}",
            *("continue",) * 3,
            here.format("after"),
            "reverse-continue",
            here.format("store"),
            "reverse-continue",
            here.format("earlier"),
            "delete",
            "continue",
        )
        for line in (
            f"instruction at {STORE:x} with 3",
            f"another at {STORE - 1:x} with 2",
            f"breakpoint at {NOP:x} with 2",
            "No more reverse-execution history",
            f"beginning at {bg.BASE:x} with 0",
            f"again at {NOP:x} with 1",
            f"after at {NOP:x} with 4",
            f"store at {STORE:x} with 4",
            f"earlier at {STORE:x} with 3",
            "Old value = 4\nNew value = 3",
            "exited normally",
        ):
            assert line in words, words
        assert made.end().end is End.DEBUG_EXIT
        alone = machine(LOOP_32, engine)
        alone.run()
        assert (alone.processor.registers.cells == made.vm.processor.registers.cells).all()


@pytest.mark.parametrize(
    ("engine", "workload", "when", "count"),
    [
        ("native", "demand", 10_160_000, 150),
        ("native", "swap", 3_000_000, 150),
        ("native", "faults", 10_140_000, 150),
        ("portable", "demand", 60_000, 40),
    ],
)
def test_every_moment_comes_again(engine: str, workload: str, when: int, count: int) -> None:
    with debugged(bundled(workload, engine)) as (client, made):
        stop_at(client, made, when)
        client.ask("s")
        moments = []
        for _ in range(count):
            moments.append(moment(client, made))
            assert client.ask("s") == STEPPED
        for then in reversed(moments):
            assert client.ask("bs") == STEPPED
            assert moment(client, made) == then
        for then in moments:
            assert moment(client, made) == then
            assert client.ask("s") == STEPPED


TICKS = bytes.fromhex(
    "fa31c08ed8c7062000317ca32200b011e620b008e621b004e621b001e621b0fee621b034e64331c0e640e640"
    "fb f4 43 ebfc 50b020e62058cf"
)
"""Program the 8259 and the 8254, then count interrupts in BX: hlt; inc bx; jmp."""
COUNT = 0x7C2E


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_there_is_a_way_back_over_a_halt(engine: str) -> None:
    with debugged(machine(boot_sector(TICKS), engine)) as (client, made):
        client.ask(f"Z0,{COUNT:x},1")
        for _ in range(4):
            assert client.ask("c") == BREAK
        then = moment(client, made)
        moments = []
        for _ in range(18):
            moments.append(moment(client, made))
            assert client.ask("s") == STEPPED
        assert made.vm.processor.time - then[0] > 60_000
        for earlier in reversed(moments):
            assert client.ask("bs") == STEPPED
            assert moment(client, made) == earlier
        assert client.ask("bc") == BREAK
        assert client.number(3) & 0xFFFF == 2
        assert client.ask("c") == BREAK
        assert moment(client, made) == then


def test_the_last_store_of_millions_of_instructions_is_found_fast() -> None:
    with debugged(bundled("demand")) as (client, made):
        stop_at(client, made, 10_200_000)
        # The guest's first page table: written early on, long ago.
        assert client.ask("Z2,100800,4") == b"OK"
        begun = time.monotonic()
        answer = client.ask("bc")
        assert time.monotonic() - begun < 30
        assert answer in (BEGIN, b"T05watch:100800;thread:1;")


def test_faults_of_the_past_are_caught() -> None:
    with debugged(machine(FAULTS)) as (client, made):
        assert client.ask(f"Z0,{bg.OTHER:x},1") == b"OK"
        assert client.ask("c") == BREAK  # in the handler of #UD
        assert "is caught" in client.monitor("catch PF")
        assert client.ask("bc") == STEPPED
        assert "caught #PF" in client.said
        assert "address 300000H" in client.said
        fault = moment(client, made)
        assert client.ask("bs") == STEPPED
        assert made.vm.processor.time < fault[0]
        assert client.ask("c") == STEPPED
        assert moment(client, made) == fault
        assert client.ask("c") == BREAK
        client.monitor("uncatch")
        assert client.ask("bc") == BEGIN
        assert made.vm.vmcs["EXCEPTION_BITMAP"] == 0


def test_what_gdb_changes_makes_another_future() -> None:
    with debugged(machine(LOOP_32)) as (client, made):
        client.ask(f"Z0,{NOP:x},1")
        for _ in range(3):
            assert client.ask("c") == BREAK
        assert client.number(EAX) == 3
        assert client.ask("bc") == BREAK
        assert client.ask(f"P{EAX:x}=64000000") == b"OK"  # 100 in place of 2
        assert client.ask("c") == BREAK
        assert client.number(EAX) == 101
        assert client.ask("bc") == BREAK
        assert client.number(EAX) == 100
        assert client.ask("bc") == BREAK
        assert client.number(EAX) == 2
        # Going on from before the change, nobody makes it.
        assert client.ask("c") == BREAK
        assert client.number(EAX) == 3
        client.ask(f"z0,{NOP:x},1")
        assert client.ask("c") == b"W00"
    assert made.vm.processor.memory.read(bg.DATA_AT, 1) == b"\x05"


class Typist(Console):
    """Types a key at some polls."""

    def __init__(self, output: io.BytesIO, keys: dict[int, bytes]) -> None:
        super().__init__(output)
        self.keys, self.polls = keys, 0

    def poll(self) -> bytes:
        self.polls += 1
        return self.keys.get(self.polls, b"")


ECHO = bytes.fromhex("b900000100 e2fe 66bafd03 ec a801 74f0 66baf803 ec ee ebe8")
"""Look from time to time whether a byte has come from COM1, and send it back; forever."""
SEND = bg.BASE + 21


def test_what_was_typed_comes_again_and_is_shown_once() -> None:
    output = io.BytesIO()
    typist = Typist(output, {2: b"a", 4: b"b", 5: b"c"})
    with debugged(machine(ECHO, console=typist)) as (client, made):
        client.ask(f"Z0,{SEND:x},1")
        seen = []
        for _ in range(3):
            assert client.ask("c") == BREAK
            seen.append((client.number(EAX) & 0xFF, moment(client, made)))
        assert bytes(key for key, _ in seen) == b"abc"
        for key, then in (seen[1], seen[0]):
            assert client.ask("bc") == BREAK
            assert (client.number(EAX) & 0xFF, moment(client, made)) == (key, then)
        polls = typist.polls
        for key, then in seen[1:]:
            assert client.ask("c") == BREAK
            assert (client.number(EAX) & 0xFF, moment(client, made)) == (key, then)
        assert typist.polls == polls
        typist.keys[typist.polls + 1] = b"d"
        assert client.ask("c") == BREAK
        assert client.number(EAX) & 0xFF == ord("d")
        assert client.ask("s") == STEPPED
        assert client.ask("s") == STEPPED
    assert output.getvalue() == b"abcd"


def test_the_trace_has_every_row_once() -> None:
    def traced(vm: VirtualMachine) -> list[np.ndarray]:
        rows: list[np.ndarray] = []
        vm.processor.trace_to(lambda some: rows.append(some.copy()))
        return rows

    vm = bundled("faults")
    alone = traced(vm)
    vm.run()
    vm = bundled("faults")
    rows = traced(vm)
    with debugged(vm) as (client, made):
        stop_at(client, made, 10_140_000)
        for packet in ("bs", "s", "bs", "bs", "bc"):
            client.ask(packet)
        assert client.ask("c")[:1] == b"W"
    assert (np.concatenate(rows) == np.concatenate(alone)).all()


def test_a_search_ends_when_gdb_wants() -> None:
    with debugged(bundled("demand")) as (client, made):
        stop_at(client, made, 10_000_000)
        assert client.ask("Z3,bffff000,4") == b"OK"
        client.send("bc")
        time.sleep(0.5)
        client.send(b"\x03")
        assert client.answer() == b"T02thread:1;"
        client.ask("z3,bffff000,4")
        assert client.ask("s") == STEPPED
        assert client.ask("bs") == STEPPED


def test_a_machine_without_snapshots_says_why() -> None:
    size = 4 << 20
    host = Host(2 * size)
    vm, _ = (DirectMachine(size, host=host) for _ in range(2))
    vm.load(parse_guest(LOOP_32, file="guest", memory=size))
    with debugged(vm) as (client, _):
        assert client.ask("s") == STEPPED
        assert client.ask("bs") == BEGIN
        assert "no snapshot" in client.said


def test_before_anything_there_is_no_past() -> None:
    with debugged(machine(pack("<B", 0x90) * 4 + b"\xf4")) as (client, _):
        assert client.ask("bs") == BEGIN
        assert client.ask("bc") == BEGIN
        assert client.ask("s") == STEPPED
        assert client.ask("bs") == STEPPED
        assert client.ask("bs") == BEGIN
