"""The boxes of figures 7 and 8 on plain numbers, beside words of the seed."""

import pytest

from trapgate.decision.fault_filters import (
    is_pte,
    is_pte_64,
    is_pte_pae,
    paragraph_80,
    stopped_write,
)


def test_box_706_a_write_that_rights_stopped() -> None:
    # P and W/R are set; the access may be the user's or the supervisor's, and nothing else is.
    assert [code for code in range(32) if stopped_write(code)] == [3, 7]
    assert not stopped_write(0x4003)


@pytest.mark.parametrize(
    ("where", "ptbase", "directory", "size", "entry"),
    [
        (is_pte, 0xC0000000, 0xC0300000, 0x1000, 4),
        (is_pte_pae, 0xC0000000, 0xC0600000, 0x4000, 8),
        (is_pte_64, 0xFFFFF68000000000, 0xFFFFF6FB40000000, 0x40000000, 8),
    ],
)
def test_box_708_every_byte_of_the_directories_is_no_pte(
    where: object, ptbase: int, directory: int, size: int, entry: int
) -> None:
    assert callable(where)
    inside = [directory, directory + 1, directory + entry - 1, directory + size - 1]
    beside = [directory - 1, directory + size, ptbase]
    assert not any(where(address, ptbase) for address in inside)
    assert all(where(address, ptbase) for address in beside)
    # VM entry wants PTBASE's low bits 0; the figure does not look at them.
    assert not any(where(address, ptbase | 1) for address in inside)


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("entry", [False, True])
def test_paragraph_80_wants_a_write_to_an_entry(write: bool, entry: bool) -> None:
    assert bool(paragraph_80(write, entry, 0x5006)) == (write and entry)
    assert not paragraph_80(write, entry, 0x5007)
