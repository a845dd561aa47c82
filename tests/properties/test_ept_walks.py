"""Random tables in two dimensions: the walk of the core, interpreted, against the SDM's text."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance.vmx import sdm_ept
from trapgate.compiler.dialect import Cells, Memory
from trapgate.paging.ept import EPT_MISCONFIGURATION, EPT_VIOLATION, ept_address, ept_qualification
from trapgate.paging.walk import walk
from trapgate.sdm import cells as f

PAGES = 24
"""Pages of memory; tables of both kinds lie in any of them."""
EPT_ROOT = 1
ACCESSES = ("read", "write", "fetch")


def scene(seed: int) -> tuple[Cells, Cells, int, int]:
    """Memory, a VMCS, a linear address and RFLAGS.AC, mostly such that a translation gets far."""
    r = random.Random(seed)
    mem = np.zeros(PAGES * 512, np.int64)
    words = mem.view(np.uint64)
    mode = r.choice(("none", "two-level", "pae", "long"))
    linear = r.getrandbits(32) if mode != "long" else r.getrandbits(47)
    # EPT: PML4, PDPT, PD, PT in pages 1 to 4, so that guest-physical pages are found in all.

    def rights() -> int:
        return r.choice((7, 7, 7, 7, 7, 7, 7, 3, 1, 5, 4, 0, r.randrange(8)))

    for index in (0, r.randrange(512)):
        words[EPT_ROOT * 512 + index] = 2 << 12 | rights() or 7
    for page, level in ((2, 3), (3, 2), (4, 1)):
        for index in range(512) if level == 1 or r.random() < 0.5 else (0, 1, 2, 3):
            entry = rights() | (level == 1) * 0x30 | r.choice((0, 0x300))
            entry |= (page + 1 if level > 1 else r.randrange(PAGES)) << 12
            if level > 1 and r.random() < 0.02:
                entry |= 1 << 7
            if r.random() < 0.02:
                entry ^= 1 << r.randrange(64)
            words[page * 512 + index] = entry
    # The guest's tables: each entry of pages 5 and up leads to one of them.
    for at in range(5 * 512, PAGES * 512):
        value = 0
        for shift in (0, 32) if mode == "two-level" else (0,):
            entry = r.choice((7, 7, 7, 3, 5, 1, 0)) | r.choice((0, 0x20, 0x60, 0x60))
            entry |= r.randrange(PAGES) << 12
            if r.random() < 0.05:
                entry |= 1 << 7
            if r.random() < 0.03:
                entry ^= 1 << r.randrange(32 if shift or mode == "two-level" else 64)
            value |= entry << shift
        words[at] = value
    v = np.zeros(len(f.ENCODINGS), np.int64)
    flags = {"none": (0, 0), "two-level": (0x10, 0), "pae": (0x20, 0), "long": (0x20, 0x500)}
    cr4, efer = flags[mode]
    v[f.GUEST_CR0] = 1 | (mode != "none") << 31 | r.getrandbits(1) << 16
    v[f.GUEST_CR4] = cr4 | r.choice((0, 0, 0, 1 << 20, 1 << 21))
    v[f.GUEST_IA32_EFER] = efer | r.choice((0, 0x800))
    v[f.GUEST_CR3] = r.randrange(PAGES) << 12
    for n in range(4):
        v[f.GUEST_PDPTE0 + n] = r.randrange(PAGES) << 12 | r.choice((0, 1, 1, 1))
    v[f.EPT_POINTER_IN_FORCE] = EPT_ROOT << 12 | 0x1E | r.choice((0, 0x40))
    return mem, v, linear, r.getrandbits(1)


def by_the_text(mem: Memory, v: Cells, linear: int, kind: str, *, user: bool, ac: bool) -> object:
    data = mem.tobytes()

    def read(address: int, size: int) -> int:
        return int.from_bytes(data[address : address + size].ljust(size, b"\xff"), "little")

    first, second, third, last = (int(v[f.GUEST_PDPTE0 + n]) for n in range(4))
    machine = sdm_ept.Machine(
        cr0=int(v[f.GUEST_CR0]),
        cr3=int(v[f.GUEST_CR3]),
        cr4=int(v[f.GUEST_CR4]),
        efer=int(v[f.GUEST_IA32_EFER]),
        ac=ac,
        pointers=(first, second, third, last),
        ept=int(v[f.EPT_POINTER_IN_FORCE]),
        read=read,
    )
    return sdm_ept.translate(machine, linear, kind, user=user)


def by_the_core(mem: Memory, v: Cells, linear: int, kind: str, *, user: bool, ac: bool) -> object:
    physical, error, prot, size = walk(v, ac << 18, mem, linear, ACCESSES.index(kind), int(user))
    if error < 0:
        # What may be cached allows this access at least, and never more than a page.
        assert prot & 1 << ACCESSES.index(kind)
        assert size in (0x1000, 0x20_0000, 0x40_0000, 0x4000_0000)
        return int(physical)
    error = int(error)
    if error & EPT_VIOLATION:
        return sdm_ept.Fault("violation", ept_qualification(error), ept_address(error))
    if error & EPT_MISCONFIGURATION:
        return sdm_ept.Fault("misconfiguration", 0, ept_address(error))
    return sdm_ept.Fault("page", error)


def agree(seed: int) -> str:
    mem, v, linear, ac = scene(seed)
    kind = ACCESSES[seed % 3]
    user = bool(seed // 3 % 2)
    wanted = by_the_text(mem, v, linear, kind, user=user, ac=bool(ac))
    assert by_the_core(mem, v, linear, kind, user=user, ac=bool(ac)) == wanted
    return wanted.kind if isinstance(wanted, sdm_ept.Fault) else "physical"


@settings(max_examples=150)
@given(st.integers(0, (1 << 64) - 1))
def test_walks_agree_with_the_text(seed: int) -> None:
    agree(seed)


def test_that_walks_end_in_every_way() -> None:
    ends = [agree(seed) for seed in range(300)]
    for end in ("physical", "page", "violation", "misconfiguration"):
        assert ends.count(end) >= 10, end


@pytest.mark.slow
def test_many_walks_agree_with_the_text() -> None:
    for seed in range(3_000):
        agree(seed)
