"""What keeps the engine from letting a store to a table complete: line by line of `table_stores`.

Each test here fails if one condition there is left out.
"""

from struct import pack

import pytest

from tests.direct.test_protected_machine import (
    HLT,
    LINKED,
    MEMORY,
    PD_2,
    PML4,
    RAX_X,
    RCX_PD_2,
    X,
    Y,
    counts,
    machine,
    words,
)
from trapgate.decision.fault_filters import OWN_FRAME
from trapgate.vmm.direct.mapped_memory import ProtectedHost


def test_behind_another_guest_the_loaded_root_is_known_as_such() -> None:
    """A repeated store to it may complete: CR3 and the frame are compared as the guest has them."""
    code = b"\xbf" + pack("<I", PML4 + 0x800) + b"\xb9" + pack("<I", 4)
    host = ProtectedHost([MEMORY] * 2)
    machine(HLT, host=host)
    vm = machine(code + bytes.fromhex("31c0 f348ab") + HLT, "paragraph-80", 0, host)
    assert all("halted" in stop.message for stop in host.run(timeout=20))
    exits, completed = counts(vm)
    assert exits == 0
    assert completed > 0


APART = LINKED + b"".join(
    RAX_X + bytes.fromhex(f"48c740{8 * n:02x}") + pack("<I", page | 7)
    for n, page in ((1, 0x11_0000), (2, 0x12_0000))
)
"""The pages 1 and 2 behind 4000_0000H are code, and not neighbours in memory."""


@pytest.mark.parametrize("within", [1, 2])
def test_what_is_executed_at_the_end_of_a_page_is_looked_at_as_it_is_fetched(within: int) -> None:
    """REP STOSB to a table exits; so many bytes of it are in the page, of which nothing follows."""
    fill = bytes.fromhex("f3aaf4")
    jump = b"\xbf" + pack("<I", X + 0x80) + b"\xb9" + pack("<I", 8)
    jump += b"\xb8" + pack("<I", 0x4000_2000 - within) + bytes.fromhex("ffe0")
    present = APART if within == 1 else APART[: -len(RAX_X) - 8]
    vm = machine(present + jump, "none", OWN_FRAME)
    vm.processor.memory.write(0x11_1000 - within, fill[:within])
    vm.processor.memory.write(0x12_0000, fill[within:])
    vm.run(timeout=20)
    assert vm.processor.registers.rcx == 0
    exits, completed = counts(vm)
    assert completed == len(present[len(LINKED) :]) // (len(RAX_X) + 8)
    assert exits == 2 + 8


def test_a_completed_store_sets_the_flags_of_what_translates_it() -> None:
    """PD_2[1] = 20_0000H | 87H, a large page by which X is stored to: A and D."""
    alias = 0x4020_0000 + X - 0x20_0000
    code = LINKED + RCX_PD_2 + bytes.fromhex("48c7410887002000")
    code += b"\xb8" + pack("<I", alias) + bytes.fromhex("48c70007004000") + HLT
    vm = machine(code, "none", OWN_FRAME)
    assert "halted" in vm.run(timeout=20).message
    assert counts(vm)[1] == 1
    assert words(vm, PD_2)[1] == 0x20_00E7
    assert words(vm, X)[0] == Y | 7
