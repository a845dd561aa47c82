"""Replay judges the filters by a frame map as the processor does, from what a trace keeps."""

import io
import random
from pathlib import Path

import numpy as np
import pytest

from tests.replay.traces import write
from tests.unit.core_guest import Guest, signed
from trapgate import guests
from trapgate.decision.decide import Disposition
from trapgate.decision.entry_facts import entry_facts, facts_of_refused
from trapgate.decision.fault_filters import FILTERS, NO_FILTER, OWN_TABLE
from trapgate.decision.frame_filters import filter_of
from trapgate.decision.self_map import DIRECTORY, PTE
from trapgate.demo.any_guest import SETTINGS, Setting
from trapgate.events.journal import (
    ROW_DATA,
    ROW_ENTRY,
    ROW_ERROR_CODE,
    ROW_OLD_VALUE,
    ROW_TYPE,
    ROW_VECTOR,
    ROW_WIDTH,
)
from trapgate.paging.frame_map import FOREIGN, LEAF, LEVEL, MIXED, OWN, TABLE
from trapgate.replay import Policy, replay
from trapgate.sdm.state import CR4_PAE, CR4_PSE
from trapgate.trace import TraceWriter
from trapgate.vmcs.file import parse_settings
from trapgate.vmm.direct.protected import ProtectedMachine
from trapgate.vmm.loaders import load_guest, parse_guest
from trapgate.vmm.ui.console import Console

BYTES = [
    OWN,
    OWN | TABLE | LEAF,
    *(OWN | TABLE | level << LEVEL for level in (1, 2, 3)),
    OWN | TABLE,
    FOREIGN,
]
"""Data, tables of one level or of several, and what belongs to others."""
LINUX = Path(__file__).parents[2] / "build/linux"
FRAMES, MAP, WRITES = 48, 0x3F000, 600
OWN_WRITE, BY_MAP = 0x4003, 0x4007


def policy(setting: Setting) -> Policy:
    """A setting, with the map's faults as those that exit."""
    text = f"""
    [controls]
    exceptions = ["PF"]
    [fields]
    PAGE_FAULT_ERROR_CODE_MASK = 0x4000
    PAGE_FAULT_ERROR_CODE_MATCH = 0x4000
    FAULT_FILTER = "{setting.fault_filter}"
    FRAME_FILTERS = {setting.frame_filters}
    """
    return Policy.from_settings(setting.name, parse_settings(text))


def guest_with_map(choose: random.Random, cr4: int) -> Guest:
    """Frames of all kinds, half of those of data empty."""
    guest = Guest()
    guest.set(FRAME_MAP_ADDRESS=MAP, FRAME_MAP_LENGTH=FRAMES, GUEST_CR4=cr4)
    guest.write(MAP, bytes(choose.choice(BYTES) for _ in range(FRAMES)))
    guest.mem[: FRAMES << 9] = 0
    for frame in choose.sample(range(FRAMES), FRAMES // 2):
        guest.write((frame << 12) + 8 * choose.randrange(512), b"\1")
    return guest


@pytest.mark.parametrize("cr4", [0, CR4_PSE, CR4_PAE])
def test_what_the_filters_say_of_random_writes(tmp_path: Path, cr4: int) -> None:
    choose = random.Random(cr4)
    guest = guest_with_map(choose, cr4)
    width = 8 if cr4 & CR4_PAE else 4
    high = (0, 1 << 63) if width == 8 else (0,)
    writes = []
    for _ in range(WRITES):
        frame = choose.randrange(FRAMES)
        byte = int(guest.ram[MAP + frame])
        if not byte & TABLE:
            continue
        kind = PTE if byte & LEAF else DIRECTORY
        physical = (frame << 12) + width * choose.randrange(64)
        old, new = (
            choose.randrange(FRAMES + 2) << 12
            | choose.choice([0, 1, 3, 7, 0x67, 0x81, 0x83])
            | choose.choice(high)
            for _ in range(2)
        )
        if choose.random() < 0.3:
            new = new & 0xFFF | old & ~0xFFF
        writes.append((byte, kind, physical, signed(new), signed(old)))
    rows = np.zeros((len(writes), ROW_WIDTH), np.int64)
    rows[:, ROW_VECTOR], rows[:, ROW_TYPE] = 14, 3
    for row, (_, kind, physical, new, old) in zip(rows, writes, strict=True):
        row[ROW_ERROR_CODE] = choose.choice([OWN_WRITE, BY_MAP])
        row[ROW_ENTRY] = entry_facts(guest.v, guest.mem, kind, physical, new)
        row[ROW_DATA], row[ROW_OLD_VALUE] = new, old
    trace = write(tmp_path / "run.parquet", rows)
    counts = set()
    for name, number in FILTERS.items():
        for frames in choose.sample(range(32), 8):
            guest.set(FAULT_FILTER=number, FRAME_FILTERS=frames)
            by_processor = [
                filter_of(guest.v, guest.mem, byte, kind, new, old) != NO_FILTER
                for byte, kind, _, new, old in writes
            ]
            (said,) = replay([trace], [policy(Setting("", "", name, frames))]).outcomes
            unclear = [byte >> LEVEL == 0 and kind == DIRECTORY for byte, kind, *_ in writes]
            if frames & OWN_TABLE:
                # Last-level tables are open; a table of several levels may be one of them.
                expected = [
                    kind == PTE or (completes and not unknown)
                    for completes, unknown, (_, kind, *_) in zip(
                        by_processor, unclear, writes, strict=True
                    )
                ]
                assert said.unjudged == sum(unclear)
            else:
                expected = by_processor
                assert said.unjudged == 0
            assert said.completions == sum(expected), (name, frames)
            assert said.exits == len(writes) - said.completions - said.unjudged
            counts.add(said.completions)
    assert len(counts) > 10


def test_writes_that_no_filter_judges(tmp_path: Path) -> None:
    guest = guest_with_map(random.Random(0), CR4_PAE)
    guest.write(MAP, bytes([OWN | TABLE | MIXED, OWN | TABLE | LEAF]))
    rows = np.zeros((4, ROW_WIDTH), np.int64)
    rows[:, ROW_VECTOR], rows[:, ROW_TYPE], rows[:, ROW_ERROR_CODE] = 14, 3, OWN_WRITE
    repeated = 1 << 6
    rows[0, ROW_ENTRY] = facts_of_refused(guest.v, guest.mem, 0x8, 0)
    rows[1, ROW_ENTRY] = facts_of_refused(guest.v, guest.mem, 0x1000, repeated)
    rows[2, ROW_ENTRY] = entry_facts(guest.v, guest.mem, PTE, 0x1000, 0)
    # Of the last row nothing is known, as in traces of earlier versions.
    trace = write(tmp_path / "run.parquet", rows)
    by_setting = {one.name: policy(one) for one in SETTINGS if one.mapped}
    (seven,) = replay([trace], [by_setting["figure 7"]]).outcomes
    assert (seven.completions, seven.exits, seven.unjudged) == (1, 2, 1)
    (known,) = replay([trace], [by_setting["and known"]]).outcomes
    assert (known.completions, known.exits, known.unjudged) == (1, 1, 2)
    (opened,) = replay([trace], [by_setting["and own-table"]]).outcomes
    assert (opened.completions, opened.exits, opened.unjudged) == (2, 0, 2)


def run(setting: Setting, length: int, sink: TraceWriter | None = None) -> tuple[int, int, int]:
    """Exits, deliveries and completions of the bundled guest's page faults."""
    memory = 16 << 20
    vm = ProtectedMachine(memory, trace=sink)
    vm.vmcs["FAULT_FILTER"] = FILTERS[setting.fault_filter]
    vm.vmcs["FRAME_FILTERS"] = setting.frame_filters
    line = guests.command_line("storm")
    vm.load(parse_guest(guests.image(), file="guest.elf", memory=memory, append=line))
    vm.run(max_instructions=length)
    summary = vm.summary()
    exits, delivered, completed = (summary.count(Disposition(n), 14) for n in range(3))
    return exits, delivered, completed


@pytest.mark.native
def test_a_replay_tells_what_the_bundled_guest_does_under_each_filter(tmp_path: Path) -> None:
    length = 12_000_000
    none, *others = [setting for setting in SETTINGS if setting.mapped]
    trace = tmp_path / "run.parquet"
    with TraceWriter(trace) as writer:
        exits, _, _ = run(none, length, writer)
    assert exits > 1000
    completions = set()
    for setting in others:
        (said,) = replay([trace], [policy(setting)]).outcomes
        found = run(setting, length)
        if setting.frame_filters & OWN_TABLE:
            # Its directory maps itself, and is of one level where the last is not protected.
            assert found[0] <= said.exits + said.unjudged
            continue
        if setting.name != "and known":
            # With known-table a clearing of a whole table is one write.
            assert found == (said.exits, said.deliveries, said.completions), setting.name
        completions.add(said.completions)
    assert len(completions) > 2


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.native
def test_a_replay_tells_what_debian_does_under_each_filter(tmp_path: Path) -> None:
    """Beginning of a boot: four levels, execute-disable, tables of all levels."""
    kernel, initrd = LINUX / "vmlinuz-amd64", LINUX / "initrd-amd64.cpio"
    if not kernel.exists():
        pytest.skip("tools/fetch-linux has not been run")
    memory, length = 128 << 20, 400_000_000

    def boot(setting: Setting, sink: TraceWriter | None = None) -> tuple[int, int]:
        vm = ProtectedMachine(memory, trace=sink, console=Console(io.BytesIO()))
        vm.vmcs["FAULT_FILTER"] = FILTERS[setting.fault_filter]
        vm.vmcs["FRAME_FILTERS"] = setting.frame_filters
        line = "console=ttyS0 nokaslr pti=on"
        vm.load(load_guest(kernel, memory=memory, append=line, initrd=initrd))
        vm.run(max_instructions=length)
        summary = vm.summary()
        return summary.count(Disposition.EXIT, 14), summary.count(Disposition.COMPLETE, 14)

    none, *others = [setting for setting in SETTINGS if setting.mapped]
    trace = tmp_path / "run.parquet"
    with TraceWriter(trace) as writer:
        exits, _ = boot(none, writer)
    assert exits > 10_000
    for setting in others:
        (said,) = replay([trace], [policy(setting)]).outcomes
        assert said.unjudged == 0
        found = boot(setting)
        if setting.fault_filter != "paragraph-80":
            assert found == (said.exits, said.completions), setting.name
        else:
            # Links go unseen, so that the VMM keeps some frames tables for longer.
            assert abs(found[0] - said.exits) <= 8, setting.name
