"""One store to entries of two tables, where the processor counts links and makes tables."""

from struct import pack

import pytest

from tests.direct.test_protected_machine import HLT, MEMORY, PDPT, PML4, counts, machine, words
from trapgate.decision.condition_rules import rules_for
from trapgate.decision.conditions import parse
from trapgate.decision.criteria_rules import Action
from trapgate.decision.fault_filters import EMPTY_TABLE, NO_LINK, OWN_FRAME, OWN_TABLE

DIRECTORY, WINDOW_TABLE = 0x21_0000, 0x21_1000
UPPER, ROOT, EMPTY = 0x22_0000, 0x23_0000, 0x60_0000
WINDOW = 0x8000_0000
"""Where the guest sees, one behind the other, UPPER and what is its choice."""
FILTERS = OWN_FRAME | NO_LINK | OWN_TABLE | EMPTY_TABLE


def mov(address: int, value: int) -> bytes:
    """MOV of eight bytes."""
    return b"\x48\xb8" + pack("<Q", address) + b"\x48\xb9" + pack("<Q", value) + b"\x48\x89\x08"


def prepared(second: int) -> bytes:
    """UPPER is a table of level 3, and the window shows it and `second` as two pages."""
    return (
        mov(PDPT + 16, DIRECTORY | 7)
        + mov(DIRECTORY, WINDOW_TABLE | 7)
        + mov(WINDOW_TABLE, UPPER | 7)
        + mov(WINDOW_TABLE + 8, second | 7)
        + mov(PML4 + 8, UPPER | 7)
    )


def store_two(last: int, first: int) -> bytes:
    """The window's last entry of UPPER and the first one behind it, by one MOVUPS."""
    return (
        b"\x48\xb8" + pack("<Q", last) + bytes.fromhex("66480f6ec0")  # movq xmm0, rax
        + b"\x48\xb8" + pack("<Q", first) + bytes.fromhex("66480f6ec8")  # movq xmm1, rax
        + bytes.fromhex("660f6cc1")  # punpcklqdq xmm0, xmm1
        + b"\x48\xb8" + pack("<Q", WINDOW + 0xFF8)
        + bytes.fromhex("0f1100")  # movups [rax], xmm0
    )  # fmt: skip


def load_cr3(root: int) -> bytes:
    return b"\xb8" + pack("<I", root) + bytes.fromhex("0f22d8")


def test_a_frame_that_two_tables_come_to_link_is_a_table_of_both_levels() -> None:
    """Taken for one of level 2 alone, it could lead as one of level 3 to tables unseen."""
    code = (
        prepared(ROOT)
        + mov(ROOT, PDPT | 7) + mov(ROOT + 8, PDPT | 7)
        + load_cr3(ROOT) + load_cr3(PML4)
        + store_two(EMPTY | 7, EMPTY | 7) + HLT
    )  # fmt: skip
    vm = machine(code, "paragraph-80", FILTERS)
    assert "halted" in vm.run(timeout=20).message
    assert words(vm, UPPER)[511] & ~0x60 == words(vm, ROOT)[0] & ~0x60 == EMPTY | 7
    assert vm.links.levels_of(EMPTY >> 12) == {2, 3}
    assert counts(vm)[0] == 1


@pytest.mark.parametrize("ruled", [False, True])
def test_a_frame_that_the_same_store_fills_is_not_taken_for_empty(*, ruled: bool) -> None:
    """Its first entry would lead to a table of another's, at the guest's end of the map."""
    code = prepared(EMPTY) + store_two(EMPTY | 7, MEMORY | 7) + HLT
    vm = machine(code, "paragraph-80", FILTERS)
    if ruled:
        vm.vmcs.criteria_table = rules_for(parse("vector == UD"), Action.EXIT)
    assert f"frame {MEMORY >> 12:#x}, a table of level 1, is not" in vm.run(timeout=20).message
    assert words(vm, UPPER)[511] == words(vm, EMPTY)[0] == 0
    assert vm.links.levels_of(EMPTY >> 12) == frozenset()
