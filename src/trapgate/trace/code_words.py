"""What error codes mean, in words; and sets of codes as few rows with bits that do not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from trapgate.sdm.pagefault import PageFaultCode
from trapgate.sdm.vectors import ERROR_CODE_VECTORS, PF
from trapgate.trace.document import Grid, Square

_SELECTOR_VECTORS: Final = frozenset({10, 11, 12, 13})
_MORE: Final = (
    (PageFaultCode.RSVD, "a reserved bit is set"),
    (PageFaultCode.PK, "protection key"),
    (PageFaultCode.SS, "shadow stack"),
    (PageFaultCode.HLAT, "HLAT paging"),
    (PageFaultCode.SGX, "SGX"),
    (PageFaultCode.MAP, "frame map"),
)


def page_fault_words(code: int) -> str:
    """`write to a present page by user mode` for 7, and so on."""
    page = "a present page" if code & PageFaultCode.P else "a page that is not present"
    what = "read of"
    if code & PageFaultCode.W:
        what = "write to"
    elif code & PageFaultCode.ID:
        what = "fetch from"
    who = "user mode" if code & PageFaultCode.U else "supervisor mode"
    more = [words for bit, words in _MORE if code & bit]
    known = sum(PageFaultCode)
    if code & ~known:
        more.append(f"unknown bits {code & ~known:#x}")
    return f"{what} {page} by {who}" + (f" ({', '.join(more)})" if more else "")


def code_words(vector: int | None, code: int | None) -> str:
    """What an error code of a vector means; empty if there is nothing to say."""
    if vector is None or code is None:
        return ""
    if vector == PF:
        return page_fault_words(code)
    if vector in _SELECTOR_VECTORS:
        if code == 0:
            return "no selector"
        table = "IDT" if code & 2 else "LDT" if code & 4 else "GDT"
        outside = ", external event" if code & 1 else ""
        return f"{table} entry {code >> 3 & 0x1FFF:#x}{outside}"
    return "" if not ERROR_CODE_VECTORS >> vector & 1 else "always 0" if code == 0 else ""


Cube = tuple[int, int]
"""(mask, value): the codes that have `value` in the mask's bits; others do not matter."""


def cubes_of(members: Iterable[int], bits: int) -> list[Cube]:
    """Few cubes that hold exactly these codes of `bits` bits: prime implicants, greedily."""
    left = set(members)
    whole = set(left)
    full = (1 << bits) - 1
    primes: set[Cube] = set()
    now: set[Cube] = {(full, code) for code in left}
    while now:
        wider: set[Cube] = set()
        joined: set[Cube] = set()
        for mask, value in now:
            for n in range(bits):
                bit = 1 << n
                if mask & bit and (mask, value ^ bit) in now:
                    wider.add((mask & ~bit, value & ~bit))
                    joined.add((mask, value))
        primes |= now - joined
        now = wider
    chosen: list[Cube] = []
    while left:
        best = max(primes, key=lambda c: (len(held(c, bits) & left), -c[0].bit_count(), -c[1]))
        chosen.append(best)
        left -= held(best, bits)
    assert set().union(*(held(one, bits) for one in chosen)) == whole or not whole
    return sorted(chosen, key=lambda c: (c[0].bit_count(), c[1]))


def held(cube: Cube, bits: int) -> set[int]:
    """The codes of a cube."""
    mask, value = cube
    return {code for code in range(1 << bits) if code & mask == value}


def cube_words(cube: Cube) -> str:
    """`present, write; user or supervisor` and so on: the bits that a row fixes."""
    mask, value = cube
    pairs = (
        (PageFaultCode.P, "present", "not present"),
        (PageFaultCode.W, "write", "no write"),
        (PageFaultCode.U, "user mode", "supervisor mode"),
        (PageFaultCode.RSVD, "reserved bit set", "no reserved bit set"),
        (PageFaultCode.ID, "fetch", "no fetch"),
        (PageFaultCode.PK, "protection key", "no protection key"),
    )
    words = [(yes if value & bit else no) for bit, yes, no in pairs if mask & bit]
    rest = mask & ~sum(bit for bit, _, _ in pairs)
    if rest:
        words.append(f"bits {rest:#x} are {value & rest:#x}")
    return ", ".join(words) or "any"


def pattern(cube: Cube, bits: int) -> str:
    """The bits of a row, highest first; a dash does not matter."""
    mask, value = cube
    return "".join(
        ("1" if value >> n & 1 else "0") if mask >> n & 1 else "-" for n in reversed(range(bits))
    )


def gray(bits: int) -> list[int]:
    """Numbers of so many bits in an order in which neighbours differ in one."""
    return [number ^ number >> 1 for number in range(1 << bits)]


_NAMES: Final = ("P", "W", "U", "RSVD", "ID", "PK")


def karnaugh(
    caption: str, square: Callable[[int], Square], bits: int = 5, names: Sequence[str] = _NAMES
) -> Grid:
    """A grid of all codes of at most six bits: three low bits across, the others down."""
    low = min(3, bits)
    across, down = gray(low), gray(bits - low)

    def shown(number: int, of: Sequence[str]) -> str:
        return " ".join(name if number >> n & 1 else f"!{name}" for n, name in enumerate(of))

    rows = tuple(
        (
            shown(high, names[low:bits]) or "-",
            tuple(square(high << low | column) for column in across),
        )
        for high in down
    )
    return Grid(caption, tuple(shown(column, names[:low]) for column in across), rows)
