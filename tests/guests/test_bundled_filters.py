"""The bundled guest under filters that differ, and machines in turns: all the same to it."""

from contextlib import ExitStack
from pathlib import Path

from tests.conformance import tiny_guest as tg
from trapgate import guests
from trapgate.decision.decide import Disposition
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import PF
from trapgate.trace import Trace, TraceWriter
from trapgate.vmm.actions import End, Stop
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.loaders.image import GuestImage
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.scheduler import run_all

MEMORY = 16 << 20
EXPECTED = Path(__file__).with_name("bundled_expected.txt").read_text()

FILTERS = {
    "all": {"EXCEPTION_BITMAP": 1 << PF},
    "user, not present": {
        "EXCEPTION_BITMAP": 1 << PF,
        "PAGE_FAULT_ERROR_CODE_MASK": 5,
        "PAGE_FAULT_ERROR_CODE_MATCH": 4,
    },
    "none": {},
}


def image(append: str) -> GuestImage:
    return parse_guest(guests.image(), file="guest.elf", memory=MEMORY, append=append)


def machine(
    which: str = "none", *, append: str = "", number: int = 0, seed: int = 0,
    trace: TraceWriter | None = None,
) -> VirtualMachine:  # fmt: skip
    append = append or guests.command_line("fork", "swap", "faults")
    vm = VirtualMachine(MEMORY, number=number, seed=seed, trace=trace)
    vm.load(image(append))
    for name, value in FILTERS[which].items():
        vm.vmcs[name] = value
    return vm


def output(vm: VirtualMachine) -> str:
    return vm.output.decode().replace("\r", "")


def page_faults(vm: VirtualMachine, disposition: Disposition) -> int:
    return vm.summary().count(disposition, PF)


def test_every_workload_prints_what_is_expected() -> None:
    vm = machine(append=guests.command_line())
    stop = vm.run(max_instructions=2_000_000_000)
    assert (stop.end, stop.status) == (End.DEBUG_EXIT, 0), stop
    lines = [line for line in output(vm).splitlines() if "fault #AC" not in line]
    assert lines == [line for line in EXPECTED.splitlines() if "fault #AC" not in line]


def test_three_filters_give_one_output() -> None:
    machines = {name: machine(name) for name in FILTERS}
    for name, vm in machines.items():
        stop = vm.run(max_instructions=1_000_000_000)
        assert (stop.end, stop.status) == (End.DEBUG_EXIT, 0), (name, stop)
    outputs = {output(vm) for vm in machines.values()}
    assert len(outputs) == 1
    assert "workload fork checksum" in outputs.pop()

    every, some, none = (machines[name] for name in FILTERS)
    assert page_faults(every, Disposition.EXIT) > 3000
    # Those that the VMM reflects are delivered by its VM entries.
    assert page_faults(every, Disposition.DELIVER) == page_faults(every, Disposition.EXIT)
    assert page_faults(none, Disposition.EXIT) == 0
    assert page_faults(none, Disposition.DELIVER) == page_faults(every, Disposition.DELIVER)
    assert 0 < page_faults(some, Disposition.EXIT) < page_faults(every, Disposition.EXIT)
    assert page_faults(some, Disposition.DELIVER) == page_faults(none, Disposition.DELIVER)
    exits = {name: vm.summary().exits for name, vm in machines.items()}
    assert ExitReason.EXCEPTION_OR_NMI not in exits["none"]
    reflected = exits["all"][ExitReason.EXCEPTION_OR_NMI]
    assert reflected == page_faults(every, Disposition.EXIT)


def traced(path: Path, which: str, *, number: int = 0, seed: int = 0) -> VirtualMachine:
    """A machine with a trace that was run to its end."""
    with TraceWriter(path) as writer:
        vm = machine(which, number=number, seed=seed, trace=writer)
        stop = vm.run(max_instructions=1_000_000_000)
    assert stop.end == End.DEBUG_EXIT
    return vm


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    one = traced(first, "all")
    two = traced(second, "all")
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size > 10_000
    assert one.output == two.output
    mine, yours = one.summary(), two.summary()
    assert (mine.instructions, mine.faults, mine.exits, mine.stop) == (
        yours.instructions,
        yours.faults,
        yours.exits,
        yours.stop,
    )
    # A seed moves the time-stamp counter, which this guest does not look at.
    third = traced(other, "all", seed=99)
    assert third.output == one.output
    assert third.vmcs["TSC_OFFSET"] != one.vmcs["TSC_OFFSET"]
    assert other.read_bytes() == first.read_bytes()


def test_a_seed_changes_what_rdtsc_shows_and_nothing_else() -> None:
    # RDTSC twice, apart from each other; the differences are the same whatever the seed.
    seen = []
    for seed in (0, 1, 2):
        vm = VirtualMachine(1 << 20, seed=seed)
        vm.processor.memory.write(
            0x1000, b"\x0f\x31\x89\xc3\x89\xd1" + b"\x90" * 9 + b"\x0f\x31\xf4"
        )
        vm.vmcs.set_flat_segments(32)
        vm.vmcs["GUEST_CR0"] = 0x31
        vm.vmcs["GUEST_RIP"] = 0x1000
        vm.run(max_instructions=1000)
        r = vm.processor.registers
        first, second = r.rcx << 32 | r.rbx, r.rdx << 32 | r.rax
        seen.append((first, (second - first, vm.processor.time)))
    assert len({first for first, _ in seen}) == 3
    assert len({rest for _, rest in seen}) == 1


def test_machines_in_turns_do_as_they_do_alone(tmp_path: Path) -> None:
    filters = ("all", "none", "user, not present")
    alone = [traced(tmp_path / f"alone{n}", name, number=n) for n, name in enumerate(filters)]
    with ExitStack() as files:
        writers = [files.enter_context(TraceWriter(tmp_path / f"turns{n}")) for n in range(3)]
        together = [
            machine(name, number=n, trace=writer)
            for n, (name, writer) in enumerate(zip(filters, writers, strict=True))
        ]
        stops = run_all(together, turn=300_000)
    for n, (stop, vm, lone) in enumerate(zip(stops, together, alone, strict=True)):
        assert isinstance(stop, Stop)
        assert (stop.end, stop.status) == (End.DEBUG_EXIT, 0)
        assert vm.output == lone.output
        with Trace(tmp_path / f"turns{n}") as mine, Trace(tmp_path / f"alone{n}") as yours:
            assert mine.table().equals(yours.table()), filters[n]
        assert vm.processor.time == lone.processor.time


def test_a_scheduler_leaves_a_guest_that_does_not_stop() -> None:
    append = guests.command_line("fork", timer=False)
    machines = [machine("none", append=append, number=n) for n in range(2)]
    stops = run_all(machines, turn=100_000, max_instructions=1_000_000)
    assert stops == [None, None]
    for vm in machines:
        assert 1_000_000 <= vm.processor.time < 1_300_000


def test_a_triple_fault_tells_its_whole_chain() -> None:
    vm = VirtualMachine(2 << 20)
    guest = tg.Tiny("p32", 0, tg.Tiny("p32").code + b"\xbb\x00\x00\x02\x00\x8b\x03")
    # #PF's gate is absent, #DF's handler cannot be reached: its gate's segment is absent.
    tables = guest.tables() | {
        tg.IDT + 8 * 14 + 5: b"\x0e",
        tg.IDT + 8 * 8 + 2: b"\x48",
    }
    for address, data in tables.items():
        vm.processor.memory.write(address, data)
    vm.vmcs.set_flat_segments(32)
    for name, value in guest.state().items():
        vm.vmcs[name] = value
    stop = vm.run(max_instructions=1000)
    assert (stop.end, stop.status) == (End.TRIPLE_FAULT, 1)
    chain = list(vm.fault_chain())
    assert [line.split(" at ")[0] for line in chain] == [
        "fault #PF",
        "nested fault #NP",
        "double fault #DF",
        "third fault #GP",
    ]
    rip = f"RIP {tg.CODE + 5:#x}"
    assert all(rip in line for line in chain)
    assert f"error code 0x0, CR2 {tg.ABSENT:#x}" in chain[0]
    assert f"error code {14 << 3 | 3:#x}" in chain[1]
    assert "error code 0x0" in chain[2]
    for line in chain:
        assert line in stop.message
