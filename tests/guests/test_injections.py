"""Events put into a guest at exact instructions, from Python and from the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.guests.test_snapshots import machine
from trapgate import guests
from trapgate.cli import app
from trapgate.decision.faults import Interruption
from trapgate.events.journal import ROW_ADDRESS, ROW_ERROR_CODE, ROW_TIME, ROW_VECTOR
from trapgate.sdm.interruption import InterruptionType
from trapgate.trace import Trace
from trapgate.vmm.actions import End
from trapgate.vmm.injection import InjectionError, parse_injection
from trapgate.vmm.machine import VirtualMachine

FAULT = InterruptionType.HARDWARE_EXCEPTION


@pytest.mark.parametrize(
    ("text", "event", "address", "when"),
    [
        ("PF(code=2,cr2=0x1000)@1000000", Interruption(14, FAULT, 2), 0x1000, 1_000_000),
        ("#PF ( cr2 = 4096 , code = 0x10 ) @ 1_000", Interruption(14, FAULT, 16), 4096, 1000),
        ("GP(0x10)@5", Interruption(13, FAULT, 0x10), None, 5),
        ("gp@5", Interruption(13, FAULT, 0), None, 5),
        ("UD@0", Interruption(6, FAULT), None, 0),
        ("NMI@7", Interruption(2, InterruptionType.NMI), None, 7),
        ("INT 0x20@7", Interruption(32, InterruptionType.EXTERNAL_INTERRUPT), None, 7),
    ],
)
def test_injections_are_read(text: str, event: Interruption, address: int, when: int) -> None:
    found = parse_injection(text)
    assert (found.event, found.address, found.when) == (event, address, when)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("PF", "not an injection"),
        ("PF@", "not a moment"),
        ("PF@-1", "not a moment"),
        ("XY@5", "no event"),
        ("UD(3)@5", "has no code"),
        ("GP(cr2=3)@5", "has no cr2"),
        ("PF(code=2,code=3)@5", "stands twice"),
        ("PF(what=2)@5", "neither"),
        ("PF(code=zwei)@5", "not a number"),
        ("GP(0x100000000)@5", "32 bits"),
        ("INT 256@5", "8 bits"),
        ("NMI@99999999999999999999", "so many"),
    ],
)
def test_what_is_no_injection_is_refused_in_words(text: str, word: str) -> None:
    with pytest.raises(InjectionError, match=word):
        parse_injection(text)


def test_an_event_comes_at_its_instruction() -> None:
    when = 10_200_123
    vm = machine("demand")
    parse_injection(f"PF(code=2,cr2=0x7000)@{when}").plan(vm)
    snapshot = vm.snapshot()
    for _ in range(2):
        vm.step(when)
        assert vm.processor.time == when
        assert vm.next_planned == when
        vm.step(1)
        assert vm.next_planned is None
        row = next(iter(vm.processor.last_events()))
        assert [row[n] for n in (ROW_VECTOR, ROW_ERROR_CODE, ROW_ADDRESS)] == [14, 2, 0x7000]
        assert row[ROW_TIME] == when
        vm.restore(snapshot)


def test_actions_come_in_order_each_at_its_time() -> None:
    vm = machine("demand")
    seen: list[tuple[str, int]] = []

    def note(name: str) -> None:
        vm.at(when[name], lambda vm: seen.append((name, vm.processor.time)))

    when = {"c": 5_000, "a": 77, "b": 78, "d": 5_000}
    for name in when:
        note(name)
    vm.step(6_000)
    assert seen == [("a", 77), ("b", 78), ("c", 5_000), ("d", 5_000)]


def test_a_halted_guest_is_woken_by_what_is_injected() -> None:
    vm = VirtualMachine(1 << 20)
    vm.processor.memory.write(0x7C00, b"\xfb\xf4\xb0\x05\xe6\xf4")  # sti; hlt; out F4h, 5
    vm.processor.memory.write(0x600, b"\xcf")
    vm.processor.memory.write(4 * 0x40, b"\x00\x06\x00\x00")
    for name, value in {"GUEST_CS_SELECTOR": 0, "GUEST_CS_BASE": 0, "GUEST_RIP": 0x7C00}.items():
        vm.vmcs[name] = value
    parse_injection("INT 0x40@1000").plan(vm)
    stop = vm.run(max_instructions=10_000)
    assert stop.end is End.DEBUG_EXIT
    assert 1_000 <= vm.processor.time < 1_010


def test_the_command_delivers_and_refuses(tmp_path: Path) -> None:
    image, rows = tmp_path / "guest.elf", tmp_path / "faults.parquet"
    image.write_bytes(guests.image())
    common = ["run", str(image), "--memory", "16M", "--append", guests.command_line("demand")]
    once = [*common, "--inject", "UD@10200000", "--trace", str(rows)]
    told = CliRunner().invoke(app, [*once, "--max-instructions", "10300000"])
    assert "panic" in told.output, told.output
    with Trace(rows) as trace:
        assert 6 in trace.table(["vector"])["vector"].to_pylist()
    late = [*common, "--inject", "NMI@symbol=panic", "--inject", "UD@10200000"]
    late += ["--symbols", str(guests.MAP_PATH), "--max-instructions", "1000"]
    told = CliRunner().invoke(app, late)
    assert "--inject: NMI@symbol=panic: the moment never came" in told.output
    answer = json.loads(CliRunner().invoke(app, [*late, "--json"]).stdout)
    assert answer["not_injected"] == ["NMI@symbol=panic", "UD@10200000"]
    refused = CliRunner().invoke(app, [*common, "--inject", "UD(3)@5"])
    assert refused.exit_code == 2
    assert "--inject" in refused.output
    failed = CliRunner().invoke(app, [*common, "--inject", "PF(code=0x10000)@5000"])
    assert failed.exit_code == 1
    assert "VM entry failed" in failed.output
