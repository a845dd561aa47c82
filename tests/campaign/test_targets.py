"""Each target changes what it says, and nothing else; and what runs make of it."""

from pathlib import Path

import numpy as np
import pytest

from tests.campaign.plans import HEAD, finished, plan
from trapgate.campaign.bench import Bench
from trapgate.campaign.execute import Result, execute
from trapgate.campaign.golden import Reference
from trapgate.campaign.outcomes import NOT_APPLIED
from trapgate.campaign.places import AbsentError
from trapgate.campaign.targets import Faults, faults_of
from trapgate.decision.faults import Interruption

MOMENT = 10_201_000


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(Bench(plan()))


def faults(target: str) -> Faults:
    made = plan(f"[[target]]\n{target}")
    return faults_of(made.targets, made.path, wide=False)


def state(reference: Reference) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    vm = reference.bench.vm
    return {
        "vmcs": vm.vmcs.cells.copy(),
        "registers": vm.processor.registers.cells.copy(),
        "memory": vm.processor.memory.cells.copy(),
    }


def changes(reference: Reference, target: str, number: int = 0) -> dict[str, list[tuple[int, int]]]:
    """Where the state changes when a target's fault is put in, and by which bits."""
    reference.bench.go_to(MOMENT)
    before = state(reference)
    faults(target)[number].apply(reference.bench.vm)
    after = state(reference)
    return {
        name: [
            (int(at), int(before[name][at] ^ after[name][at]))
            for at in np.flatnonzero(before[name] != after[name])
        ]
        for name in before
        if (before[name] != after[name]).any()
    }


def flipped(address: int, bit: int) -> tuple[int, int]:
    """The cell of memory that holds a byte, and its change if a bit of the byte flips."""
    mask = 1 << 8 * (address % 8) + bit
    return address // 8, mask - (1 << 64) if mask >> 63 else mask


def test_registers(reference: Reference) -> None:
    assert changes(reference, 'register = "EAX"', 5) == {"registers": [(0, 1 << 5)]}
    assert changes(reference, 'register = "EDI"', 31) == {"registers": [(7, 1 << 31)]}
    rsp = changes(reference, 'register = "ESP"\nbits = "4"')
    assert list(rsp) == ["vmcs"]
    assert [bits for _, bits in rsp["vmcs"]] == [16]
    assert len(faults('register = "general"')) == 8 * 32
    assert [one.what for one in faults('register = ["EAX", "ECX"]\nbits = "3-4"')] == [
        "RAX bit 3",
        "RAX bit 4",
        "RCX bit 3",
        "RCX bit 4",
    ]


@pytest.mark.parametrize(
    ("target", "field", "bit"),
    [
        ('control = "CR0"\nbits = "16"', "GUEST_CR0", 16),
        ('control = "CR3"\nbits = "12"', "GUEST_CR3", 12),
        ('flags = true\nbits = "9"', "GUEST_RFLAGS", 9),
        ('vmcs = "GUEST_TR_LIMIT"\nbits = "31"', "GUEST_TR_LIMIT", 31),
        ('vmcs = "EXCEPTION_BITMAP"\nbits = "14"', "EXCEPTION_BITMAP", 14),
    ],
)
def test_fields(reference: Reference, target: str, field: str, bit: int) -> None:
    reference.bench.go_to(MOMENT)
    vm = reference.bench.vm
    before = vm.vmcs[field]
    assert list(changes(reference, target)) == ["vmcs"]
    assert vm.vmcs[field] == before ^ 1 << bit


def test_memory_by_both_addresses(reference: Reference) -> None:
    for kind in ("memory", "linear"):  # the kernel is mapped one to one
        found = changes(reference, f'{kind} = "0x101000-0x101fff"', 8 * 9 + 3)
        assert found == {"memory": [(0x101008 // 8, 1 << 11)]}
    assert len(faults('memory = "0x101000-0x101fff"\nbits = "0-1"')) == 4096 * 2


def test_page_table_entries(reference: Reference) -> None:
    vm = reference.bench.vm
    reference.bench.go_to(MOMENT)
    directory = vm.vmcs["GUEST_CR3"] & ~0xFFF
    pde = int.from_bytes(vm.processor.memory.read(directory, 4), "little")
    at = (pde & ~0xFFF) + 4 * 0x101
    found = changes(reference, 'entries = "0x101000-0x102fff"\nfield = ["P", "R/W"]', 1)
    assert found == {"memory": [(at // 8, 2 << 8 * (at & 4))]}
    assert changes(reference, 'entries = "0"\nlevel = 2\nfield = "U/S"') == {
        "memory": [(directory // 8, 4)]
    }
    assert len(faults('entries = "0x101000-0x102fff"')) == 2 * (7 + 20 + 1)
    with pytest.raises(AbsentError, match="has 2 levels"):
        changes(reference, 'entries = "0"\nlevel = 3\nfield = "P"')
    with pytest.raises(AbsentError, match="32 bits"):
        changes(reference, 'entries = "0x101000"\nfield = "XD"')
    with pytest.raises(AbsentError, match=r"not mapped|ends at"):
        changes(reference, 'entries = "0xf0000000"\nfield = "P"')


def test_descriptors(reference: Reference) -> None:
    vm = reference.bench.vm
    reference.bench.go_to(MOMENT)
    at = vm.vmcs["GUEST_GDTR_BASE"] + 8
    assert changes(reference, 'descriptor = "GDT"\nindex = "1"\nbits = "47"') == {
        "memory": [flipped(at + 5, 7)]
    }
    with pytest.raises(AbsentError, match="ends before"):
        changes(reference, 'descriptor = "GDT"\nindex = "100"')


def test_instructions(reference: Reference) -> None:
    vm = reference.bench.vm
    reference.bench.go_to(MOMENT)
    rip = vm.vmcs["GUEST_RIP"]
    found = changes(reference, 'instruction_bytes = "0"\nbits = "2"')
    assert found == {"memory": [flipped(rip, 2)]}
    reference.bench.go_to(MOMENT)
    changes(reference, "skip = true")
    assert 0 < vm.vmcs["GUEST_RIP"] - rip <= 15
    with pytest.raises(AbsentError, match="no byte 14"):
        changes(reference, 'instruction_bytes = "14"')


def test_events(reference: Reference) -> None:
    vm = reference.bench.vm
    changes(reference, 'event = "PF(code=2,cr2=0x1234)"')
    assert (
        vm.vmcs["VM_ENTRY_INTERRUPTION_INFORMATION"] == Interruption(14, error_code=2).information
    )
    assert vm.processor.registers.cr2 == 0x1234
    changes(
        reference,
        'vectors = "0-255"\ntype = ["external interrupt", "software interrupt"]\nlength = 2',
        256 + 0x80,
    )
    assert vm.vmcs["VM_ENTRY_INTERRUPTION_INFORMATION"] == 1 << 31 | 4 << 8 | 0x80
    assert vm.vmcs["VM_ENTRY_INSTRUCTION_LENGTH"] == 2


def outcome(reference: Reference, target: str, number: int = 0, moment: int = MOMENT) -> Result:
    return execute(reference, moment, faults(target)[number])


def test_modes(reference: Reference) -> None:
    vm = reference.bench.vm
    reference.bench.go_to(MOMENT)
    value = vm.processor.registers.rbx
    for mode, wanted in (("set 0", value & ~2), ("set 1", value | 2)):
        changes(reference, f'register = "EBX"\nbits = "1"\nmode = "{mode}"')
        assert vm.processor.registers.rbx == wanted
    stuck = faults('register = "EBX"\nbits = "1"\nmode = "stuck 1"')[0]
    assert stuck.holds
    assert stuck.what == "RBX bit 1 stuck at 1"
    assert execute(reference, MOMENT, stuck).outcome != "error"
    assert vm.processor.time >= reference.golden.end or vm.stopped is not None


def test_what_the_checks_at_vm_entry_refuse(reference: Reference) -> None:
    found = outcome(reference, 'vectors = "3"\ntype = "reserved"')
    assert found.outcome == "VM-entry failure"
    assert "VM_ENTRY_INTERRUPTION_INFORMATION" in found.detail
    assert outcome(reference, 'flags = true\nbits = "1"').outcome == "VM-entry failure"


def test_what_is_not_there(reference: Reference) -> None:
    found = outcome(reference, 'linear = "0xf0000000"')
    assert found.outcome == NOT_APPLIED
    assert "not mapped" in found.detail


def test_a_dead_page_directory_is_a_triple_fault(reference: Reference) -> None:
    found = outcome(reference, 'control = "CR3"\nbits = "22"')
    assert found.outcome == "triple fault"


@pytest.mark.parametrize(
    "target",
    [
        'register = "general"',
        "flags = true",
        'control = ["CR0", "CR3", "CR4"]',
        'vmcs = ["GUEST_CS_ACCESS_RIGHTS", "GUEST_SS_LIMIT", "GUEST_IDTR_BASE", "GUEST_RIP"]',
        'vmcs = ["PRIMARY_PROCESSOR_BASED_CONTROLS", "EXCEPTION_BITMAP", "VM_ENTRY_CONTROLS"]',
        'vmcs = ["GUEST_ACTIVITY_STATE", "GUEST_INTERRUPTIBILITY_STATE", "GUEST_IA32_EFER"]',
        'vmcs = ["SECONDARY_PROCESSOR_BASED_CONTROLS", "VM_EXIT_CONTROLS", "CR0_GUEST_HOST_MASK"]',
        'memory = "0x101000-0x101fff"',
        'entries = "0x40000000-0x40003fff"',
        'entries = "0xc0000000"\nlevel = 2',
        'descriptor = ["GDT", "IDT"]\nindex = "0-15"',
        'instruction_bytes = "0-14"',
        "skip = true",
        'vectors = "0-255"\ntype = ["external interrupt", "nmi", "hardware exception"]',
        'vectors = "0-255"\ntype = ["software interrupt", "software exception", "other event"]',
        'vectors = "0-31"\ncode = 0xffffffff',
        'event = ["DE", "DB", "BP", "OF", "UD", "DF(0)", "TS(0x28)", "SS(0)", "AC(0)", "MC"]',
    ],
)
def test_no_target_breaks_anything(reference: Reference, target: str) -> None:
    """A sample of each: never an error of ours, and the golden run is the same afterwards."""
    every = faults(target)
    rng = np.random.default_rng(1)
    for number in rng.integers(0, len(every), 40).tolist():
        moment = int(rng.integers(reference.golden.begin, reference.golden.end))
        found = execute(reference, moment, every[number])
        assert found.outcome != "error", (every[number].what, moment, found.detail)
    reference.bench.go_to(reference.golden.end)
    assert reference.last.differing_pages() == 0


def test_user_defined_classes(tmp_path: Path) -> None:
    body = """
[[target]]
event = ["NMI", "GP(0)"]
[when]
every = 100
[[class]]
name = "panic of an NMI"
of = ["detected"]
output = "vector 2 "
[[class]]
name = "panic"
end = "debug exit"
status = 1
"""
    from trapgate.campaign.tables import tally

    found = tally(finished(body, tmp_path / "classes", HEAD))
    assert {"panic of an NMI", "panic"} <= found.keys()
    assert found["panic of an NMI"][0] > 10
