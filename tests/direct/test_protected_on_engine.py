"""Hostile guests under a frame map on the engine: random 64-bit code, every table looked at."""

import random
from struct import pack

import pytest

from tests.direct.test_protected_machine import look
from trapgate.decision.fault_filters import (
    EMPTY_TABLE,
    FILTERS,
    KNOWN_TABLE,
    NO_LINK,
    OWN_FRAME,
    OWN_TABLE,
)
from trapgate.vmm.actions import End
from trapgate.vmm.direct.mapped_memory import ProtectedHost
from trapgate.vmm.direct.protected import ProtectedMachine
from trapgate.vmm.loaders.image import GuestImage, GuestKind, Segment
from trapgate.vmm.loaders.state import gdt, long_mode

MEMORY = 4 << 20
"""1,024 frames, each mapped at its own address by 4-KB pages."""
GDT, IDT, STACK, HANDLER, CODE = 0x1000, 0x2000, 0x8000, 0x3000, 0x1_0000
PML4, PDPT, PD, TABLES = 0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000
PLAY = 0x20_0000
"""Frames from here on are what the guest makes tables of."""
SLOT = 510
"""Of the PML4, which maps itself."""
P, W, PS = 1, 2, 0x80
WINDOW = -1 << 48 | SLOT << 39


def tables() -> dict[int, bytes]:
    """Four levels that map memory by small pages, and themselves."""
    pml4 = {0: PDPT | 7, SLOT: PML4 | 7}
    return {
        PML4: b"".join(pack("<Q", pml4.get(n, 0)) for n in range(512)),
        PDPT: pack("<Q", PD | 7),
        PD: pack("<2Q", TABLES | 7, (TABLES + 0x1000) | 7),
        TABLES: b"".join(pack("<Q", n << 12 | 7) for n in range(1024)),
    }


def idt() -> bytes:
    """Gates of all vectors: to HANDLER for #PF and #GP, which step over a three-byte store."""
    gate = pack("<HHBBHII", HANDLER, 0x10, 0, 0x8E, 0, 0, 0)
    return gate * 32


STEP_OVER = bytes.fromhex("4883442408034883c40848cf")  # add qword [rsp+8], 3; pop; iretq


def program(chance: random.Random, steps: int, frames_there: int = 1028) -> bytes:
    """Stores to tables and data at random, loads, INVLPG, and loads of CR3.

    Entries lead to `frames_there` frames, not all of which are the guest's.
    """
    code = b""
    frames = [PML4, PDPT, PD, TABLES, *(PLAY + n * 0x1000 for n in range(8))]
    windows = [
        WINDOW | shown
        for shown in (
            SLOT << 30 | SLOT << 21 | SLOT << 12,
            SLOT << 30 | SLOT << 21,
            SLOT << 30,
            0,
            1 << 12,
        )
    ]
    for _ in range(steps):
        page = chance.choice((*frames, *windows))
        # What it needs to go on it leaves alone, for a while.
        first = 32 if page in (TABLES, windows[3], windows[4]) else 1
        address = page + 8 * chance.choice((first, first + 1, chance.randrange(first, SLOT)))
        target = chance.choice((*frames, PLAY, chance.randrange(frames_there) << 12))
        value = chance.choice((0, target | 7, target | 7, target | 5, target | 7 | PS, target))
        value |= chance.choice((0, 0, 0x60, 0x200))
        what = chance.random()
        code += b"\x48\xb8" + pack("<q", address) + b"\x48\xb9" + pack("<Q", value)
        if what < 0.7:
            code += b"\x48\x89\x08"  # mov [rax], rcx
        elif what < 0.8:
            code += b"\x48\x8b\x10"  # mov rdx, [rax]
        elif what < 0.9:
            code += b"\x0f\x01\x38"  # invlpg [rax]
        elif what < 0.95:
            code += b"\x48\x87\x08"  # xchg [rax], rcx
        else:
            root = chance.choice((PML4, PML4, PLAY))
            code += b"\xb8" + pack("<I", root) + b"\x0f\x22\xd8"
    return code + b"\xf4"


def machine(
    code: bytes, fault_filter: str, frame_filters: int, host: ProtectedHost | None = None
) -> ProtectedMachine:
    vm = ProtectedMachine(MEMORY, host=host)
    vm.vmcs["FAULT_FILTER"] = FILTERS[fault_filter]
    vm.vmcs["FRAME_FILTERS"] = frame_filters
    fields = {**long_mode(CODE, STACK, GDT, PML4), "GUEST_IDTR_BASE": IDT}
    fields["GUEST_IDTR_LIMIT"] = 0x1FF
    contents = {GDT: gdt(64), IDT: idt(), HANDLER: STEP_OVER, CODE: code, **tables()}
    # A second root, for CR3: it maps what the first one does.
    contents[PLAY] = contents[PML4]
    segments = tuple(Segment(at, data) for at, data in contents.items())
    vm.load(GuestImage(GuestKind.FLAT, 64, segments, fields, {}, "hostile"))
    return vm


@pytest.mark.parametrize(
    ("fault_filter", "frame_filters"),
    [
        ("none", 0),
        ("paragraph-80", 0),
        ("paragraph-80", KNOWN_TABLE),
        ("figure-8", OWN_FRAME | NO_LINK),
        ("paragraph-80", OWN_FRAME | NO_LINK),
        ("paragraph-80", OWN_FRAME | NO_LINK | KNOWN_TABLE),
        ("figure-8", OWN_TABLE),
        ("paragraph-80", NO_LINK | KNOWN_TABLE | OWN_TABLE),
        ("figure-8", OWN_FRAME | EMPTY_TABLE),
        ("paragraph-80", OWN_FRAME | NO_LINK | OWN_TABLE | EMPTY_TABLE),
    ],
)
def test_hostile_guests_stay_in_on_the_engine(fault_filter: str, frame_filters: int) -> None:
    ends = {End.HALTED: 0, End.REFUSED: 0, End.TRIPLE_FAULT: 0}
    edits = completed = 0
    for seed in range(12):
        chance = random.Random(seed)
        vm = machine(program(chance, 80), fault_filter, frame_filters)
        while vm.stopped is None and vm.processor.time < 2000:
            vm.step(7)
            look(vm)
        edits += vm.counts.edits
        completed += sum(vm.completed)
        if vm.stopped is not None:
            ends[vm.stopped.end] += 1
    assert edits > 20, ends
    assert completed > 20 or fault_filter == "none", ends
    assert ends[End.REFUSED] > 0, ends
