"""Guests under direct paging: the bundled one under every policy, two at once, and rude ones."""

from struct import pack

import numpy as np
import pytest

from tests.conformance.tiny_guest import descriptor
from tests.direct.walk_everything import violations
from trapgate import guests
from trapgate.decision import embodiments
from trapgate.decision.decide import Disposition
from trapgate.decision.fault_filters import FILTERS
from trapgate.demo.direct import PTBASE, run_direct
from trapgate.demo.direct import passed as demonstrated
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import PF
from trapgate.vmm.actions import Action, End, Stop
from trapgate.vmm.direct.frames import FrameError
from trapgate.vmm.direct.host_memory import LARGE_PAGE, Host
from trapgate.vmm.direct.machine import DirectMachine
from trapgate.vmm.direct.refusals import DirectPagingError
from trapgate.vmm.exits.platform import Platform
from trapgate.vmm.loaders import GuestImageError, parse_guest

MEMORY = 16 << 20


def bundled(vm: DirectMachine, *workloads: str, timer: bool = True) -> None:
    append = guests.command_line(*workloads, timer=timer)
    image = parse_guest(
        guests.image(), file="guest.elf", memory=vm.memory, append=append, base=vm.base
    )
    vm.load(image)
    vm.vmcs["EXCEPTION_BITMAP"] = 1 << PF
    vm.vmcs["PAGE_FAULT_ERROR_CODE_MASK"], vm.vmcs["PAGE_FAULT_ERROR_CODE_MATCH"] = 15, 3


def select(vm: DirectMachine, name: str) -> None:
    vm.vmcs["FAULT_FILTER"], vm.vmcs["PTBASE"] = FILTERS[name], PTBASE


def look(host: Host) -> list[str]:
    """The invariant, of all machines of a host, from nothing but memory and CR3."""
    owner = host.frames.owner.copy()
    spaces = []
    for vm in host.machines:
        assert isinstance(vm, DirectMachine)
        owner[vm.tables.stand_ins()] = vm.number
        live = set(np.flatnonzero(vm.tables.links.counts[1::4]).tolist())
        if vm.paging:
            live.add(vm.vmcs["GUEST_CR3"] >> 12)
        spaces.append((vm.number, sorted(live), bool(vm.vmcs["GUEST_CR4"] & 0x10)))
    return violations(host.words, owner, spaces)


def test_no_policy_is_noticed_and_figure_8_saves_most_exits() -> None:
    results = list(run_direct(["swap", "fork"]))
    assert demonstrated(results)
    assert [result.workload for result in results] == ["fork"] * 5 + ["swap"] * 5
    for n in (0, 5):
        group = results[n : n + 5]
        exits = {result.filter.name: result.faults(PF)[1] for result in group}
        # Each fault is the same one under every policy, and goes one way.
        assert len({result.faults(PF)[0] for result in group}) == 1
        delivered = {result.summary.count(Disposition.DELIVER, PF) for result in group}
        assert len(delivered) == 1
        order = ["figure 8", "¶80", "figure 7", "mask and match", "every page fault"]
        assert sorted(exits, key=lambda name: exits[name]) == order
    saved = {
        first.workload: 1 - eighth.faults(PF)[1] / first.faults(PF)[1]
        for first, eighth in (results[0:4:3], results[5:9:3])
    }
    assert saved["swap"] > 0.9
    assert saved["fork"] > 0.5


def test_unless_told_otherwise_every_page_fault_exits() -> None:
    vm = DirectMachine(MEMORY)
    append = guests.command_line("demand")
    vm.load(parse_guest(guests.image(), file="guest.elf", memory=MEMORY, append=append))
    assert vm.run().status == 0
    summary = vm.summary()
    assert summary.count(Disposition.EXIT, PF) > summary.count(Disposition.DELIVER, PF) > 0
    assert vm.counts.edits > 0


@pytest.mark.parametrize("engine", ["native", pytest.param("portable", marks=pytest.mark.slow)])
def test_two_machines_in_one_memory(engine: str) -> None:
    """One filtered, one not, taking turns in the midst of what they do."""
    chosen = {0: ("fork", "faults"), 1: ("aging", "faults")}
    alone = []
    for number, workloads in chosen.items():
        vm = DirectMachine(MEMORY, engine=engine)
        bundled(vm, *workloads)
        if number == 0:
            select(vm, "figure-8")
        assert vm.run(max_instructions=1_000_000_000).status == 0
        alone.append(vm)

    host = Host(2 * MEMORY, engine=engine)
    together = [DirectMachine(MEMORY, host=host) for _ in chosen]
    assert [vm.base for vm in together] == [0, MEMORY]
    for number, workloads in chosen.items():
        bundled(together[number], *workloads)
    select(together[0], "figure-8")
    running = list(together)
    turns = 0
    while running:
        turns += 1
        for vm in tuple(running):
            if vm.step(200_000) is not None:
                running.remove(vm)
            assert look(host) == []
    assert turns > 20
    for vm, lone in zip(together, alone, strict=True):
        assert vm.stopped == lone.stopped
        assert vm.output == lone.output
        assert vm.counts.refused == 0
        mine, yours = vm.summary().faults[PF], lone.summary().faults[PF]
        # When the timer comes depends on the other machine; what the guest does not.
        assert mine[Disposition.DELIVER] == yours[Disposition.DELIVER]
    assert together[0].summary().count(Disposition.COMPLETE) > 4000
    assert together[1].summary().count(Disposition.COMPLETE) == 0


def test_memory_is_handed_out_once() -> None:
    host = Host(2 * LARGE_PAGE)
    DirectMachine(LARGE_PAGE, host=host)
    DirectMachine(LARGE_PAGE, host=host)
    with pytest.raises(FrameError, match="not all free"):
        DirectMachine(LARGE_PAGE, host=host)
    with pytest.raises(DirectPagingError, match="ask for 8M"):
        Host(LARGE_PAGE + 4096)


def test_a_guest_that_starts_otherwise_is_refused() -> None:
    boot_sector = b"\xf4".ljust(510, b"\0") + b"\x55\xaa"
    vm = DirectMachine(MEMORY)
    with pytest.raises(DirectPagingError, match="multiboot"):
        vm.load(parse_guest(boot_sector, file="boot.bin", memory=MEMORY))
    with pytest.raises(GuestImageError, match="multiboot"):
        parse_guest(b"\xf4", file="flat.bin", memory=MEMORY, base=MEMORY)


# Rude guests: a few instructions, on tables made by the test.

DIRECTORY, TABLE, CODE, DATA, OTHER, SPARE = (n << 12 for n in range(0x20, 0x26))
SELF = PTBASE >> 22
VMCALL = b"\x0f\x01\xc1"
KERNEL = 0x8001_0031


def stop(vmexit: VmExit, vm: Platform) -> Action:
    return Stop(End.STOPPED_BY_VMM, "VMCALL")


class Rude:
    """A machine with a directory, a table that maps what is above at its own addresses, code."""

    def __init__(self, *, on_refusal: str = "fault", engine: str = "auto") -> None:
        handlers = {ExitReason.VMCALL: stop}
        self.host = Host(2 * LARGE_PAGE, engine=engine)
        self.vm = DirectMachine(
            LARGE_PAGE,
            host=self.host,
            handlers=handlers,
            on_refusal="stop" if on_refusal == "stop" else "fault",
        )
        words = self.words = self.host.words
        words[DIRECTORY >> 2] = TABLE | 7
        words[DIRECTORY >> 2 | SELF] = DIRECTORY | 3
        for page in (CODE, DATA, OTHER, SPARE):
            words[(TABLE | page >> 10) >> 2] = page | 7
        vmcs = self.vm.vmcs
        vmcs.set_flat_segments(32)
        vmcs["GUEST_LDTR_ACCESS_RIGHTS"] = 1 << 16
        vmcs["GUEST_IDTR_LIMIT"] = 0
        vmcs["EXCEPTION_BITMAP"] = 1 << PF
        vmcs["GUEST_CR0"], vmcs["CR0_READ_SHADOW"] = 0x31, 0x1_0031
        vmcs["GUEST_CR4"] = 0x2000
        self.vm._own()
        self.host.enter(self.vm)
        self.vm.cr3 = DIRECTORY
        self.vm.write_cr0(KERNEL)

    def run(self, code: bytes) -> Stop:
        self.host.processor.memory.write(CODE, code + VMCALL)
        self.vm.vmcs["GUEST_RIP"], self.vm.vmcs["GUEST_RFLAGS"] = CODE, 2
        self.vm.stopped = None
        found = self.vm.run(max_instructions=self.host.processor.time + 1000)
        assert look(self.host) == []
        return found


def move(address: int, value: int) -> bytes:
    return b"\xc7\x05" + pack("<II", address, value)


def to_cr(number: int, value: int) -> bytes:
    return b"\xb8" + pack("<I", value) + bytes((0x0F, 0x22, 0xC0 | number << 3))


def pte(page: int) -> int:
    return PTBASE | page >> 10


VMMS = (2 * LARGE_PAGE) | 3
BREAKOUTS = {
    "the VMM's memory": move(pte(DATA), VMMS),
    "another machine's": move(pte(DATA), LARGE_PAGE | 3),
    "memory that is not there": move(pte(DATA), 0x7FFF_F003),
    "what PSE-36 would have beyond 4 GB": move(PTBASE | SELF << 12 | 4, 0x2083),
    "another machine's, as a table": move(PTBASE | SELF << 12 | 4, LARGE_PAGE | 3),
    "an instruction nobody edits tables by": b"\x60" * 3,
}


@pytest.mark.parametrize("what", BREAKOUTS)
@pytest.mark.parametrize("on_refusal", ["fault", "stop"])
def test_a_guest_gets_nothing_that_is_not_its_own(what: str, on_refusal: str) -> None:
    rude = Rude(on_refusal=on_refusal)
    if "PSE-36" in what:
        assert rude.run(to_cr(4, 0x10)).end is End.STOPPED_BY_VMM
    if "instruction" in what:
        rude.vm.vmcs["GUEST_RSP"] = PTBASE + 0x1000
    found = rude.run(BREAKOUTS[what])
    # There is no IDT: a fault that the guest gets is its last.
    assert found.end is (End.REFUSED if on_refusal == "stop" else End.TRIPLE_FAULT)
    assert rude.vm.counts.refused == 1
    assert rude.vm.counts.last_refusal


WITHHELD = {
    "its own table": (move(pte(DATA), TABLE | 3), TABLE | DATA >> 10, TABLE | 3),
    "its directory": (move(pte(DATA), DIRECTORY | 3), TABLE | DATA >> 10, DIRECTORY | 3),
    "its own table, by a bit": (
        move(pte(DATA), TABLE | 1) + b"\x0f\xba\x2d" + pack("<I", pte(DATA)) + b"\x01",
        *(TABLE | DATA >> 10, TABLE | 3),
    ),
    "its own table, by a byte": (
        move(pte(DATA), TABLE | 1) + b"\xc6\x05" + pack("<I", pte(DATA)) + b"\x03",
        *(TABLE | DATA >> 10, TABLE | 3),
    ),
    "the directory in a second place": (
        move(PTBASE | SELF << 12 | 4, DIRECTORY | 3),
        *(DIRECTORY | 4, DIRECTORY | 3),
    ),
}
"""What is carried out, where, and what the guest has written there."""


@pytest.mark.parametrize("what", WITHHELD)
def test_what_would_be_a_way_out_is_carried_out_without_rw(what: str) -> None:
    rude = Rude()
    code, place, entry = WITHHELD[what]
    assert rude.run(code).end is End.STOPPED_BY_VMM
    assert rude.words[place >> 2] == entry & ~2
    # XADD with 0 finds what the guest wrote, and leaves it so.
    linear = PTBASE | (place & 0xFFF) | (SELF << 12 if place >> 12 == DIRECTORY >> 12 else 0)
    add = b"\x31\xc0\xf0\x0f\xc1\x05" + pack("<I", linear)
    assert rude.run(add).end is End.STOPPED_BY_VMM
    assert rude.host.processor.registers.rax == entry
    assert rude.words[place >> 2] == entry & ~2
    # Paging off: no table is one any more, and all is as the guest wrote it.
    rude.run(to_cr(0, KERNEL & ~(1 << 31)))
    assert rude.words[place >> 2] == entry


def test_rw_is_given_back_when_a_table_is_data_again() -> None:
    """OTHER is mapped twice, writable, and then used as a table."""
    rude = Rude()
    directory = PTBASE | SELF << 12
    link = move(pte(SPARE), OTHER | 7) + move(directory | 4, OTHER | 7)
    assert rude.run(link).end is End.STOPPED_BY_VMM
    entries = [(TABLE | page >> 10) >> 2 for page in (OTHER, SPARE)]
    assert [int(rude.words[n]) & 3 for n in entries] == [1, 1]
    # A store to it is an edit, and what may not stand there is refused.
    assert rude.run(move(OTHER, DATA | 1) + move(OTHER | 4, 0x7000)).end is End.STOPPED_BY_VMM
    assert rude.words[OTHER >> 2] == DATA | 1
    assert rude.run(move(SPARE, VMMS)).end is End.TRIPLE_FAULT
    assert rude.run(move(directory | 4, 0) + move(SPARE, VMMS)).end is End.STOPPED_BY_VMM
    assert [int(rude.words[n]) & 3 for n in entries] == [3, 3]
    assert rude.words[OTHER >> 2] == VMMS


def test_a_directory_of_the_past_is_data_when_a_string_store_comes() -> None:
    """As a kernel clears the tables of an address space that is gone."""
    rude = Rude()
    rude.words[OTHER >> 2], rude.words[SPARE >> 2] = TABLE | 7, 0
    rude.words[(OTHER >> 2) + 1] = SPARE | 7
    there_and_back = to_cr(3, OTHER) + to_cr(3, DIRECTORY)
    assert rude.run(there_and_back + move(SPARE, 0x1000)).end is End.STOPPED_BY_VMM
    assert {(OTHER >> 12,), (DIRECTORY >> 12,)} == rude.vm.tables.roots
    assert rude.vm.counts.edits == 1
    fill = b"\xbf" + pack("<I", SPARE) + b"\xb9\0\1\0\0\xb8" + pack("<I", VMMS) + b"\xf3\xab"
    assert rude.run(fill).end is End.STOPPED_BY_VMM
    assert rude.words[SPARE >> 2] == VMMS
    assert {(DIRECTORY >> 12,)} == rude.vm.tables.roots
    assert rude.vm.counts.edits == 1


def test_directories_that_are_known_are_loaded_without_an_exit() -> None:
    rude = Rude()
    rude.words[OTHER >> 2] = TABLE | 7
    both = to_cr(3, OTHER) + to_cr(3, DIRECTORY)
    assert rude.run(both * 20).end is End.STOPPED_BY_VMM
    assert rude.vm.summary().exits[ExitReason.CONTROL_REGISTER_ACCESS] == 1
    assert rude.run(to_cr(3, OTHER) + move(SPARE, 1)).end is End.STOPPED_BY_VMM
    # A directory that has become data is validated again.
    code = to_cr(3, DIRECTORY) + b"\xbf" + pack("<I", OTHER + 4) + b"\xb8" + pack("<I", VMMS)
    assert rude.run(code + b"\xb9\1\0\0\0\xf3\xab").end is End.STOPPED_BY_VMM
    assert rude.run(to_cr(3, OTHER)).end is End.TRIPLE_FAULT
    assert "not the guest's" in rude.vm.counts.last_refusal


def test_devices_pages_may_be_mapped() -> None:
    """The local APIC's version register."""
    rude = Rude()
    read = move(pte(DATA), 0xFEE0_0003) + b"\xa1" + pack("<I", DATA + 0x30)
    assert rude.run(read).end is End.STOPPED_BY_VMM
    assert rude.host.processor.registers.rax & 0xF0 == 0x10
    assert rude.run(move(PTBASE | SELF << 12 | 4, 0xFEE0_0003)).end is End.TRIPLE_FAULT


def test_a_guest_s_own_protection_is_its_own() -> None:
    """It has mapped its table read-only itself: the fault is the guest's."""
    rude = Rude()
    assert rude.run(move(pte(OTHER), TABLE | 1)).end is End.STOPPED_BY_VMM
    assert rude.run(move(OTHER | 0x800, 0)).end is End.TRIPLE_FAULT
    assert rude.vm.counts.refused == 0


def test_user_mode_may_edit_tables_if_the_guest_lets_it() -> None:
    rude = Rude()
    vmcs = rude.vm.vmcs
    for name in ("CS", "SS", "DS", "ES"):
        vmcs[f"GUEST_{name}_ACCESS_RIGHTS"] |= 3 << 5
        vmcs[f"GUEST_{name}_SELECTOR"] |= 3
    assert rude.run(move(DATA, 1)).end is End.STOPPED_BY_VMM
    rude.words[(TABLE | OTHER >> 10) >> 2] = TABLE | 5
    assert rude.run(move(OTHER | 0x800, 0x1000)).end is End.TRIPLE_FAULT
    rude.vm.tables.forget_all()
    rude.words[(TABLE | OTHER >> 10) >> 2] = TABLE | 7
    rude.vm.tables.load_cr3(DIRECTORY)
    assert rude.run(move(OTHER | 0x800, 0x1000)).end is End.STOPPED_BY_VMM
    assert rude.words[(TABLE | 0x800) >> 2] == 0x1000
    assert rude.run(move(OTHER | 0x800, VMMS)).end is End.TRIPLE_FAULT


def test_a_table_is_carried_out_linked_used_and_reused() -> None:
    rude = Rude()
    # Frame OTHER becomes a table: its mapping goes, a directory's entry comes.
    rude.words[OTHER >> 2] = SPARE | 3
    link = move(pte(OTHER), 0) + move(PTBASE | SELF << 12 | 4, OTHER | 7)
    assert rude.run(link + move(0x40_0000, 77)).end is End.STOPPED_BY_VMM
    assert rude.words[SPARE >> 2] == 77
    assert rude.vm.tables.is_table(OTHER >> 12)
    # Unlinked, it is data again as soon as the guest wants to write to it.
    unlink = move(PTBASE | SELF << 12 | 4, 0) + move(pte(OTHER), OTHER | 3)
    assert rude.run(unlink + move(OTHER, 5)).end is End.STOPPED_BY_VMM
    assert rude.words[OTHER >> 2] == 5
    assert not rude.vm.tables.is_table(OTHER >> 12)
    # While it is linked, nobody can write to it.
    again = move(OTHER, 0) + move(pte(OTHER), 0) + move(PTBASE | SELF << 12 | 4, OTHER | 7)
    assert rude.run(again).end is End.STOPPED_BY_VMM
    assert rude.run(move(pte(DATA), OTHER | 3)).end is End.STOPPED_BY_VMM
    assert rude.words[(TABLE | DATA >> 10) >> 2] == OTHER | 1


def test_cr3_takes_only_what_could_be_a_directory() -> None:
    rude = Rude()
    rude.words[OTHER >> 2 : (OTHER >> 2) + 2] = TABLE | 7, VMMS
    assert rude.run(to_cr(3, OTHER)).end is End.TRIPLE_FAULT  # by #GP
    assert "not the guest's" in rude.vm.counts.last_refusal
    assert rude.vm.vmcs["GUEST_CR3"] == DIRECTORY
    rude.words[(OTHER >> 2) + 1] = 0
    assert rude.run(to_cr(3, OTHER) + b"\x0f\x20\xdb").end is End.STOPPED_BY_VMM  # MOV EBX, CR3
    assert rude.host.processor.registers.rbx == OTHER
    assert rude.vm.tables.is_table(OTHER >> 12)
    assert rude.run(to_cr(3, DIRECTORY)).end is End.STOPPED_BY_VMM


def test_large_pages_are_all_or_nothing_the_guests() -> None:
    large = PTBASE | SELF << 12 | 4
    rude = Rude()
    assert rude.run(to_cr(4, 0x10)).end is End.STOPPED_BY_VMM
    assert rude.run(move(large, 0x83)).end is End.STOPPED_BY_VMM
    # Its own tables are in it, so it is split.
    stand_in = int(rude.words[(DIRECTORY | 4) >> 2]) & ~0x60
    assert stand_in >> 12 in rude.vm.tables.stand_ins()
    assert rude.run(move(0x40_0000 | DATA, 0x1234)).end is End.STOPPED_BY_VMM
    assert rude.words[DATA >> 2] == 0x1234
    assert rude.run(move(0x40_0000 | TABLE | 0x800, 0x1000)).end is End.STOPPED_BY_VMM
    assert rude.words[(TABLE | 0x800) >> 2] == 0x1000
    assert rude.run(move(0x40_0000 | TABLE | 0x800, VMMS)).end is End.TRIPLE_FAULT
    assert int(rude.words[(DIRECTORY | 4) >> 2]) & ~0x60 == stand_in
    assert rude.run(move(large, 0x81)).end is End.STOPPED_BY_VMM
    assert rude.run(b"\xa1" + pack("<I", 0x40_0000 | DATA)).end is End.STOPPED_BY_VMM
    assert rude.run(move(large, LARGE_PAGE | 0x81)).end is End.TRIPLE_FAULT
    # Without PSE the same entry would be a table: the frame at 0 is empty, so it may be.
    assert rude.run(to_cr(4, 0)).end is End.STOPPED_BY_VMM
    assert rude.run(b"\xa1" + pack("<I", 0x40_0000 | DATA)).end is End.TRIPLE_FAULT  # not present


def test_a_guest_without_wp_writes_to_what_it_mapped_read_only() -> None:
    rude = Rude()
    assert rude.run(move(pte(DATA), DATA | 1)).end is End.STOPPED_BY_VMM
    assert rude.run(move(DATA, 1)).end is End.TRIPLE_FAULT
    code = to_cr(0, KERNEL & ~0x1_0000) + b"\x0f\x20\xc3" + move(DATA, 0x1234)
    assert rude.run(code).end is End.STOPPED_BY_VMM
    assert rude.words[DATA >> 2] == 0x1234
    assert rude.host.processor.registers.rbx & 0x1_0000 == 0
    assert rude.vm.vmcs["GUEST_CR0"] & 0x1_0000
    # A table is a table, WP or not.
    assert rude.run(move(pte(DATA), VMMS)).end is End.TRIPLE_FAULT


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_what_is_stored_for_a_guest_leaves_no_old_code(engine: str) -> None:
    """It patches a function on a page that is read-only, which the VMM does for it."""
    rude = Rude(engine=engine)
    rude.words[DATA >> 2 : (DATA >> 2) + 2] = 0x1B8, 0xC300  # mov eax, 1; ret
    call = b"\xbd" + pack("<I", DATA) + b"\xff\xd5"
    stack = b"\xbc" + pack("<I", SPARE + 0x800)
    before = stack + to_cr(0, KERNEL & ~0x1_0000) + move(pte(DATA), DATA | 1) + call + b"\x89\xc3"
    assert rude.run(before + move(DATA, 0x2B8) + call).end is End.STOPPED_BY_VMM
    registers = rude.host.processor.registers
    assert (registers.rbx, registers.rax) == (1, 2)


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_what_is_refused_leaves_no_old_translation(engine: str) -> None:
    """SPARE becomes a table on the way, while a translation still allows stores to it."""
    rude = Rude(engine=engine)
    rude.words[OTHER >> 2 : (OTHER >> 2) + 2] = SPARE | 7, VMMS
    unmap = move(SPARE, 0) + move(pte(SPARE), 0) + move(pte(OTHER), 0)
    assert rude.run(unmap + to_cr(3, OTHER)).end is End.TRIPLE_FAULT
    assert rude.run(move(SPARE, VMMS)).end is End.TRIPLE_FAULT
    assert rude.words[SPARE >> 2] == 0


def test_paging_off_and_on_again() -> None:
    rude = Rude()
    # Code and data lie where they are mapped, so that nothing moves.
    off = to_cr(0, KERNEL & ~(1 << 31)) + move(TABLE | DATA >> 10, DATA | 3)
    assert rude.run(off + to_cr(3, DIRECTORY) + to_cr(0, KERNEL)).end is End.STOPPED_BY_VMM
    assert rude.vm.paging
    evil = to_cr(0, KERNEL & ~(1 << 31)) + move(TABLE | DATA >> 10, VMMS) + to_cr(0, KERNEL)
    found = rude.run(evil)
    assert found.end is End.REFUSED
    assert "not the guest's" in found.message


@pytest.mark.parametrize(
    "code",
    [
        to_cr(4, 0x20),  # PAE
        b"\xb9"
        + pack("<I", 0xC000_0080)
        + b"\xb8"
        + pack("<I", 0x100)
        + b"\x31\xd2\x0f\x30",  # LME
    ],
)
def test_the_guests_processor_has_no_other_paging(code: bytes) -> None:
    assert Rude().run(code).end is End.TRIPLE_FAULT


@pytest.mark.parametrize(
    "engine",
    [
        "native",
        "portable",
    ],
)
def test_a_task_switch_loads_no_directory(engine: str) -> None:
    """JMP to a TSS that leads to tables of the guest's own making."""
    rude = Rude(engine=engine)
    memory, vmcs = rude.host.processor.memory, rude.vm.vmcs
    rude.words[OTHER >> 2 : (OTHER >> 2) + 2] = TABLE | 7, SPARE | 7
    rude.words[SPARE >> 2] = VMMS
    before, after = DATA + 0x200, DATA + 0x300
    task = bytearray(0x68)
    for offset, value in ((28, OTHER), (32, CODE + 0x100), (36, 2), (56, DATA + 0x800)):
        task[offset : offset + 4] = pack("<I", value)
    for offset, selector in ((72, 0x10), (76, 8), (80, 0x10), (84, 0x10)):
        task[offset] = selector
    memory.write(after, bytes(task))
    rights = {8: (0, 0xFFFFF, 0xC09B), 16: (0, 0xFFFFF, 0xC093)}
    rights |= {0x18: (before, 0x67, 0x8B), 0x20: (after, 0x67, 0x89)}
    for selector, parts in rights.items():
        memory.write(DATA + selector, descriptor(*parts).to_bytes(8, "little"))
    vmcs["GUEST_GDTR_BASE"], vmcs["GUEST_GDTR_LIMIT"] = DATA, 0x27
    vmcs["GUEST_TR_BASE"], vmcs["GUEST_TR_LIMIT"] = before, 0x67
    vmcs["GUEST_TR_SELECTOR"], vmcs["GUEST_TR_ACCESS_RIGHTS"] = 0x18, 0x8B
    memory.write(CODE + 0x100, move(0x40_0000, 0x4141_4141) + VMCALL)
    untouched = rude.words[VMMS >> 12 << 10 :].copy()
    found = rude.run(b"\xea" + pack("<IH", 0, 0x20))
    assert found.end is End.REFUSED
    assert "switches tasks" in found.message
    assert (rude.words[VMMS >> 12 << 10 :] == untouched).all()
    assert vmcs["GUEST_CR3"] == DIRECTORY


# Whatever stores to a table does what it does to any other memory.

WORD = 0x300 << 2
"""Offset of a word in a page, whose entry in the table is of no use to anybody."""
START = 0x1234_5678
INSTRUCTIONS = {
    # All with EBX = EDI = the address, ECX = 2, EDX = 123A56H, EAX = what is there.
    "mov r32": "8913",
    "mov r16": "668913",
    "mov r8": "8813",
    "mov imm32": "c70366554432",
    "mov moffs-like disp": "895300",
    "mov across two entries": "895302",
    "movnti": "0fc313",
    "xchg": "8713",
    "xchg r8": "8633",
    "xadd": "f00fc113",
    "cmpxchg, equal": "f00fb113",
    "cmpxchg, not equal": "31c0f00fb113",
    "cmpxchg8b, equal": "8b5304bb665544320fc70f89fb",
    "cmpxchg8b, not equal": "bb665544320fc70f89fb",
    "add": "0113",
    "add imm8": "8303f0",
    "adc": "f9831301",
    "adc r8": "f9801301",
    "sub": "2913",
    "sbb": "f9831b01",
    "sub with borrow": "812b78563442",
    "and": "f02113",
    "or": "f00913",
    "xor": "3113",
    "xor r16": "663113",
    "not, present": "c703fecffdfff713",
    "neg": "f71b",
    "inc, carry stays": "f9ff4303",
    "dec": "f9c7430402000000ff4b04",
    "add overflows": "c70300ffff7f810300010000",
    "inc overflows": "c70300ffff7fff4301",
    "bts imm": "0fba2b05",
    "btr imm": "f00fba3305",
    "btc imm": "0fba3b05",
    "bts r32, far": "b825000000f00fab03",
    "btr r32, backwards": "b8e1ffffff0fb34308",
    "bts r16": "b805000000660fab03",
    "stos": "ab",
    "stos w": "66ab",
    "rep stos": "f3ab",
    "std stos": "fdabfc",
    "rep movs": "be{source}f3a5",
    "movsb": "be{source}a4",
    "push r": "89dc52",
    "push imm8": "89dc6af0",
    "push m": "89dcff35{source}",
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_a_store_to_a_table_is_like_any_other(name: str) -> None:
    rude = Rude()
    source = SPARE + 0x80
    seen = []
    for place in (DATA | WORD, PTBASE | WORD):
        rude.words[source >> 2 : (source >> 2) + 2] = 0x2468_1358, 0x1357_2468
        memory = (DATA if place < PTBASE else TABLE) + WORD >> 2
        rude.words[memory - 4 : memory + 4] = START
        setup = b"".join(
            bytes((0xB8 | register,)) + pack("<I", value)
            for register, value in ((0, START), (1, 2), (2, 0x12_3A56), (3, place), (7, place))
        )
        code = bytes.fromhex(INSTRUCTIONS[name].format(source=pack("<I", source).hex()))
        assert rude.run(setup + code).end is End.STOPPED_BY_VMM, rude.vm.counts
        r = rude.host.processor.registers
        general = [r.rax, r.rcx, r.rdx, r.rbx - place, r.rsi, r.rdi - place]
        flags = rude.vm.vmcs["GUEST_RFLAGS"]
        rip = rude.vm.vmcs["GUEST_RIP"]
        moved = "89dc" in INSTRUCTIONS[name]
        stack = rude.vm.vmcs["GUEST_RSP"] - place if moved else 0
        stored = rude.words[memory - 4 : memory + 4].tolist()
        seen.append((general, flags & ~UNDEFINED.get(name, 0), rip, stack, stored))
    assert rude.vm.counts.edits >= 1
    assert seen[0] == seen[1]


AF = 0x10
UNDEFINED = dict.fromkeys(("and", "or", "xor", "xor r16"), AF)
"""Flags that the SDM leaves undefined."""


@pytest.mark.parametrize("name", ["figure-7", "figure-8", "paragraph-80"])
def test_a_filter_as_a_criteria_table_is_the_same_to_the_bundled_guest(name: str) -> None:
    tables = {
        "figure-7": embodiments.figure_7(),
        "figure-8": embodiments.figure_8(wide=False, page_size=True),
        "paragraph-80": embodiments.paragraph_80(),
    }
    runs = []
    for fault_filter, rules in ((name, ()), ("none", tables[name])):
        vm = DirectMachine(MEMORY)
        bundled(vm, "fork", timer=False)
        select(vm, fault_filter)
        vm.vmcs.criteria_table = rules
        stop = vm.run(max_instructions=1_000_000_000)
        assert (stop.end, stop.status) == (End.DEBUG_EXIT, 0), stop
        summary = vm.summary()
        counts = [summary.count(disposition, PF) for disposition in Disposition]
        runs.append((counts, summary.exits, vm.output, vm.processor.memory.read(0, 1 << 20)))
    filtered, by_table = runs
    assert filtered[0][Disposition.COMPLETE] > 200
    assert filtered == by_table
