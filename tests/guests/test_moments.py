"""Moments: the n-th time at an address, an exit, a fault, a piece of output; exactly there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.guests.test_polled_ports import real_mode
from tests.guests.test_snapshots import machine, state
from trapgate import guests
from trapgate.cli import app
from trapgate.decision.faults import Interruption
from trapgate.events.journal import ROW_DEPTH, ROW_INJECTED, ROW_RIP, ROW_TIME, ROW_VECTOR
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import ExitReason
from trapgate.trace.symbols import Symbols
from trapgate.vmm.injection import InjectionError, parse_injection
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.moments import (
    AtAddress,
    AtExit,
    AtFault,
    AtOutput,
    Moment,
    MomentError,
    parse_moment,
)

ENGINES = pytest.mark.parametrize("engine", ["native", "portable"])
_SYMBOLS = Symbols(guests.MAP_PATH)


def address(name: str) -> int:
    return int(_SYMBOLS.starts[_SYMBOLS.names.index(name)])


Seen = list[tuple[int, int]]


def noting(seen: Seen) -> Callable[[VirtualMachine], None]:
    return lambda vm: seen.append((vm.processor.time, vm.vmcs["GUEST_RIP"]))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1_000", 1000),
        ("rip=0x101234", AtAddress(0x101234)),
        ("rip=0x101234#3", AtAddress(0x101234, 3)),
        ("symbol=trap#2", AtAddress(0x777, 2)),
        ("exit=CPUID", AtExit(ExitReason.CPUID)),
        ("exit = io instruction #4", AtExit(ExitReason.IO_INSTRUCTION, 4)),
        ("fault=#PF#2", AtFault(14, 2)),
        ('output="login: "', AtOutput("login: ")),
        ("output=a@b#2", AtOutput("a@b", 2)),
        ("output='#1'#2", AtOutput("#1", 2)),
    ],
)
def test_moments_are_read(text: str, moment: Moment) -> None:
    assert parse_moment(text, lambda name: 0x777) == moment


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not a moment"),
        ("-1", "not a moment"),
        ("place=3", "not a moment"),
        ("rip=here", "not an address"),
        ("rip=0x10000000000000000", "64 bits"),
        ("rip=1#0", "first time is #1"),
        ("symbol=trap", "--symbols"),
        ("exit=COFFEE", "no exit reason"),
        ("fault=NMI", "no exception"),
        ("output=(", "not a regular expression"),
        ("99999999999999999999", "so many"),
    ],
)
def test_what_is_no_moment_is_refused_in_words(text: str, word: str) -> None:
    with pytest.raises(MomentError, match=word):
        parse_moment(text)
    with pytest.raises(InjectionError, match=word):
        parse_injection(f"UD@{text}")


def times_at(engine: str, rip: int, end: int) -> list[int]:
    """When the guest is at an address, found one instruction at a time."""
    vm = machine("demand", engine)
    vm.step(end - 3_000)
    found = []
    while vm.processor.time < end:
        if vm.vmcs["GUEST_RIP"] == rip:
            found.append(vm.processor.time)
        vm.step(1)
    return found


@ENGINES
def test_addresses_are_met_before_their_instruction(engine: str) -> None:
    end = 10_200_000
    vm = machine("demand", engine)
    vm.step(end - 1)
    rip = vm.vmcs["GUEST_RIP"]
    expected = times_at(engine, rip, end)
    assert expected
    vm = machine("demand", engine)
    seen: Seen = []
    vm.step(end - 3_000)
    for time in range(1, len(expected) + 1):
        vm.at(AtAddress(rip, time), noting(seen))
    vm.step(3_000)
    assert seen == [(when, rip) for when in expected]
    undisturbed = machine("demand", engine)
    undisturbed.step(end)
    ours, theirs = state(vm), state(undisturbed)
    for found in (ours, theirs):
        del found["exits"], found["vmcs"]
    assert ours == theirs


@ENGINES
def test_faults_are_met_where_their_handler_begins(engine: str) -> None:
    vm = machine("demand", engine)
    begin = 10_200_000
    vm.step(begin)
    vm.step(20_000)
    rows = [
        (int(row[ROW_VECTOR]), int(row[ROW_TIME]))
        for row in vm.processor.last_events()
        if row[ROW_TIME] > begin and not row[ROW_INJECTED] and not row[ROW_DEPTH]
    ]
    faults = [time for vector, time in reversed(rows) if vector == 14]
    assert len(faults) > 3
    again = machine("demand", engine)
    again.step(begin)
    seen: Seen = []
    again.at(AtFault(14), noting(seen))
    again.at(AtFault(14, 3), noting(seen))
    again.at(AtFault(6), noting(seen))
    again.step(20_000)
    assert [time for time, _ in seen] == [faults[0], faults[2]]
    assert len({rip for _, rip in seen}) == 1
    ours, theirs = state(again), state(vm)
    for found in (ours, theirs):
        del found["exits"], found["vmcs"]
    assert ours == theirs


def test_a_fault_that_exits_is_met_behind_its_injection() -> None:
    vm = machine("demand")
    vm.step(10_200_000)
    vm.vmcs["EXCEPTION_BITMAP"] = 1 << 14
    seen: Seen = []
    vm.at(AtFault(14, 2), noting(seen))
    vm.step(20_000)
    assert len(seen) == 1
    rows = [row for row in vm.processor.last_events() if row[ROW_TIME] <= seen[0][0]]
    assert (rows[0][ROW_VECTOR], rows[0][ROW_INJECTED], rows[1][ROW_VECTOR]) == (14, 1, 14)


@ENGINES
def test_exits_and_output_are_met_behind_their_instruction(engine: str) -> None:
    # mov dx, 3F8h; L: cpuid; out dx, al; in al, dx; inc ...; jmp L: prints 0, 1, 2 ... from CX
    code = bytes.fromhex("31f6 baf803 0fa2 baf803 89f0 0430 ee 46 ebf3")
    vm = real_mode(code, engine)
    seen: Seen = []
    vm.at(AtExit(ExitReason.CPUID, 2), noting(seen))
    vm.at(AtExit(ExitReason.IO_INSTRUCTION, 3), noting(seen))
    vm.at(AtOutput("3+"), noting(seen))
    vm.at(AtOutput("[0-9]", 6), noting(seen))
    vm.run(max_instructions=100)
    assert vm.output.startswith(b"0123456789")
    body = 7
    cpuid, out = 0x7C07, 0x7C0F
    assert seen == [
        (2 + body + 1, cpuid),
        (2 + 2 * body + 5, out),
        (2 + 3 * body + 5, out),
        (2 + 5 * body + 5, out),
    ]


@ENGINES
def test_what_is_awaited_goes_back_with_a_snapshot(engine: str) -> None:
    code = bytes.fromhex("31f6 baf803 0fa2 baf803 89f0 0430 ee 46 ebf3")
    vm = real_mode(code, engine)
    seen: Seen = []
    moments = (AtOutput("[0-9]", 4), AtExit(ExitReason.CPUID, 3), AtAddress(0x7C05, 4))
    for moment in moments:
        vm.at(moment, noting(seen))
    vm.step(12)
    snapshot = vm.snapshot()
    vm.step(60)
    first = list(seen)
    assert len(first) == 3
    for _ in range(2):
        seen.clear()
        vm.restore(snapshot)
        vm.step(60)
        assert seen == first


def test_an_event_at_an_address_is_delivered_there_once() -> None:
    vm = machine("demand")
    vm.step(10_200_000)
    rip = vm.vmcs["GUEST_RIP"]
    event = Interruption(14, InterruptionType.HARDWARE_EXCEPTION, 2)
    vm.at(AtAddress(rip), lambda vm: vm.inject(event, address=0x7FFF_0000))
    vm.step(5_000)
    injected = [row for row in vm.processor.last_events() if row[ROW_INJECTED]]
    assert [int(row[ROW_RIP]) for row in injected[:1]] == [rip]


def test_the_command_takes_every_moment(tmp_path: Path) -> None:
    image = tmp_path / "guest.elf"
    image.write_bytes(guests.image())
    common = ["run", str(image), "--memory", "16M", "--append", guests.command_line("demand")]
    common += ["--symbols", str(guests.MAP_PATH), "--max-instructions", "12000000"]
    for when in (f"symbol={_trap()}", "fault=PF#2", 'output="timer on"', "exit=HLT"):
        told = CliRunner().invoke(app, [*common, "--inject", f"UD@{when}"])
        assert "panic" in told.output, (when, told.output)
    for when, word in (("symbol=nothing_of_that_name", "no such function"), ("exit=X", "reason")):
        refused = CliRunner().invoke(app, [*common, "--inject", f"UD@{when}"])
        assert refused.exit_code == 2
        assert word in refused.output


def _trap() -> str:
    """A function that the guest executes after its start."""
    vm = machine("demand")
    vm.step(10_200_000)
    rip = vm.vmcs["GUEST_RIP"]
    at = max(n for n, start in enumerate(_SYMBOLS.starts) if start <= rip)
    return _SYMBOLS.names[at]
