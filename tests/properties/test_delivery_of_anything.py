"""Whatever tables and registers a guest has: delivery never raises, and is all or nothing."""

from functools import cache
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import core_guest as g
from tests.unit.core_guest import Guest
from trapgate.compiler.program import alone
from trapgate.decision.decide import decide_fault
from trapgate.events import delivery
from trapgate.sdm import cells
from trapgate.sdm.vectors import ERROR_CODE_VECTORS
from trapgate.vmx import entry

RIP_LIMIT = 1 << 47
KEPT = [
    index
    for index, name in enumerate(cells.ENCODINGS)
    if name.startswith("GUEST_")
    and name
    not in {
        # What an event may change although it is not delivered.
        "GUEST_RFLAGS",
        "GUEST_ACTIVITY_STATE",
        "GUEST_INTERRUPTIBILITY_STATE",
        "GUEST_DR7",
        "GUEST_IA32_DEBUGCTL",
    }
]
WIDTHS = (16, 64, 32, 64)

compiled = cache(alone)
"""Machine code of a core function, made once for all examples."""


@st.composite
def guests(draw: st.DrawFn) -> Guest:
    """A guest with good tables, into which a few bad things have been put."""
    guest = Guest(bits=draw(st.sampled_from([32, 64])), ring=draw(st.sampled_from([0, 3])))
    selectors = st.sampled_from([0, 3, *range(0x08, 0x70, 8), 0x0C, 0x1B, 0x23, 0x5B, 0xFFFF])
    accesses = st.one_of(st.sampled_from([0xEE, 0xEF, 0x8E, 0xE6, 0xE5, 0x6E]), st.integers(0, 255))
    for vector in draw(st.lists(st.sampled_from([6, 8, 10, 11, 12, 13, 14, 0x80]), max_size=4)):
        guest.gate(
            vector,
            selector=draw(selectors),
            access=draw(accesses),
            offset=draw(st.integers(0, 0xFFFF_FFFF)),
            ist=draw(st.integers(0, 7)) if guest.long else 0,
        )
    for selector in draw(st.lists(st.integers(0, g.GDT_LIMIT >> 3), max_size=3)):
        guest.write(g.GDT + selector * 8, draw(st.binary(min_size=8, max_size=8)))
    if draw(st.booleans()):
        guest.write(g.TSS, draw(st.binary(min_size=0x68, max_size=0x68)))
    if guest.long and draw(st.booleans()):
        entry_of = draw(st.sampled_from([0x10000, 0x11000, 0x12000]))
        guest.write(entry_of, draw(st.binary(min_size=8, max_size=8)))
    changes: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "GUEST_RSP": st.one_of(
                    st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 0x20_0010)
                ),
                "GUEST_RIP": st.integers(-RIP_LIMIT, RIP_LIMIT - 1),
                "GUEST_RFLAGS": st.integers(0, (1 << 22) - 1),
                "GUEST_SS_LIMIT": st.integers(0, (1 << 32) - 1),
                "GUEST_SS_ACCESS_RIGHTS": st.integers(0, (1 << 17) - 1),
                "GUEST_TR_LIMIT": st.integers(0, (1 << 32) - 1),
                "GUEST_TR_BASE": st.integers(-RIP_LIMIT, RIP_LIMIT - 1),
                "GUEST_IDTR_BASE": st.integers(-RIP_LIMIT, RIP_LIMIT - 1),
                "GUEST_IDTR_LIMIT": st.integers(0, 0xFFFF),
                "GUEST_GDTR_BASE": st.integers(-RIP_LIMIT, RIP_LIMIT - 1),
                "GUEST_GDTR_LIMIT": st.integers(0, 0xFFFF),
                "GUEST_CR0": st.sampled_from([0x10, 0x11, 0x8001_0011]),
                "GUEST_CR3": st.integers(0, (1 << 40) - 1),
                "GUEST_CR4": st.integers(0, (1 << 23) - 1),
                "EXCEPTION_BITMAP": st.integers(0, (1 << 32) - 1),
            },
        )
    )
    guest.set(**changes)
    return guest


@st.composite
def events(draw: st.DrawFn) -> tuple[int, int, int, int, int, int]:
    """Operands of `raise_event`: vector, type, error code, address, length, injected."""
    kind = draw(st.sampled_from([0, 2, 3, 4, 5, 6]))
    vector = {2: 2, 3: draw(st.integers(0, 31)), 5: 1}.get(kind, draw(st.integers(0, 255)))
    has_code = kind == 3 and ERROR_CODE_VECTORS >> vector & 1
    code = draw(st.integers(0, 0xFFFF)) if has_code else -1
    address = 0
    if kind == 3:
        address = draw(st.integers(-RIP_LIMIT, RIP_LIMIT - 1)) if vector == 14 else 0x4001
    length = draw(st.integers(1, 15))
    return vector, kind, code, address, length, draw(st.integers(0, 1))


@settings(max_examples=300)
@given(guests(), events())
def test_compiled_and_interpreted_agree_and_nothing_is_half_done(
    guest: Guest, event: tuple[int, int, int, int, int, int]
) -> None:
    vector, kind, code, address, length, injected = event
    before = guest.v.copy()
    twin = [array.copy() for array in (guest.v, guest.r, guest.mem, guest.rows, guest.head)]
    result = guest.raise_event(
        vector, kind, code, address=address, length=length, injected=injected
    )
    assert result in (0, 1)
    assert compiled(delivery.raise_event)(*twin, *event) == result
    for one, other in zip((guest.v, guest.r, guest.mem, guest.rows, guest.head), twin, strict=True):
        assert (one == other).all()

    exit_reason = guest["EXIT_REASON"]
    if result == 1:
        assert (guest.v[KEPT] == before[KEPT]).all()
        assert exit_reason in (0, 1, 2, 9)
        assert guest.journal()[-1][12] == 0
    else:
        assert guest.journal()[-1][12] == 1
        assert guest["GUEST_ACTIVITY_STATE"] == 0
        assert guest["GUEST_INTERRUPTIBILITY_STATE"] & 3 == 0


@settings(max_examples=200)
@given(guests(), events())
def test_every_fault_was_decided_as_itself(
    guest: Guest, event: tuple[int, int, int, int, int, int]
) -> None:
    vector, kind, code, address, length, injected = event
    guest.raise_event(vector, kind, code, address=address, length=length, injected=injected)
    for row in guest.journal():
        if row[15]:
            continue
        disposition, reason = decide_fault(guest.v, row[3], row[4], row[5])
        ended_otherwise = row[13] in (14, 15)
        assert ended_otherwise or (row[12], row[13]) == (disposition, reason)
    depths = [row[14] for row in guest.journal()]
    assert depths == list(range(len(depths)))
    # Benign, contributory, page fault, any, double fault, any: no chain is longer.
    assert len(depths) <= 6


@settings(max_examples=300)
@given(
    st.sampled_from([32, 64]),
    st.lists(
        st.tuples(st.sampled_from(list(cells.ENCODINGS)), st.integers(0, (1 << 64) - 1)),
        max_size=4,
    ),
)
def test_entry_takes_any_fields(bits: int, changes: list[tuple[str, int]]) -> None:
    guest = Guest(bits=bits)
    for name, value in changes:
        width = WIDTHS[cells.ENCODINGS[name] >> 13]
        guest.set(**{name: value & (1 << width) - 1})
    twin = [array.copy() for array in (guest.v, guest.r, guest.mem, guest.rows, guest.head)]
    result = entry.enter(guest.v, guest.r, guest.mem, guest.rows, guest.head)
    assert result in (entry.RUNS, entry.EXITED, entry.FAILED)
    assert compiled(entry.enter)(*twin) == result
    for one, other in zip((guest.v, guest.r, guest.mem, guest.rows, guest.head), twin, strict=True):
        assert np.array_equal(one, other)
