"""What is executed one instruction at a time ends with its VM exit, also to a VMM that is x86 code.

The guest that runs next single-steps, and gets each of its traps.
"""

import pytest

from tests.conformance.tiny_guest import AC, CODE, TF, VMCALL, Tiny
from tests.conformance.vmx import harness as h
from tests.conformance.vmx.guests import Batch, Case, Event

pytestmark = pytest.mark.conformance

EVERY_EXCEPTION = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
WATCHES = {"GUEST_DR7": 0x402 | 0xD << 16}
UD2, OUT, XRSTOR = b"\x0f\x0b", b"\xe6\x80", b"\x0f\xae\x2f"
FIRST = {
    "a call of the VMM, watched": Tiny("l64", 0, VMCALL, fields=WATCHES),
    "a fault, watched": Tiny("l64", 0, UD2, fields=WATCHES),
    "an output, watched": Tiny("l64", 0, OUT, fields=WATCHES),
    "a fault with alignment checks": Tiny("l64", 3, UD2, fields={"GUEST_RFLAGS": 2 | AC}),
    "what loads MXCSR": Tiny("l64", 0, XRSTOR),
}
"""The portable engine executes the last one alone."""


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_the_guest_behind_one_that_was_stepped(engine: str) -> None:
    batch = Batch(64, "l64")
    for guest in FIRST.values():
        batch.add(Case(guest, EVERY_EXCEPTION))
        behind = Tiny("l64", 0, b"\x90" * 4, fields={"GUEST_RFLAGS": 2 | TF})
        batch.add(Case(behind, EVERY_EXCEPTION))
    exits = batch.exits(h.run(batch.script, engine=engine))[1::2]
    found = [(done.interruption, done.rip) for done in exits]
    assert found == [(Event(1, 3, None), CODE + 1)] * len(FIRST)
