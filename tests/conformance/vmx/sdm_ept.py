"""Address translation in two dimensions, written down a second time from the SDM's text.

Imports nothing of the code under test. Numbers are unsigned; memory is read through a
function of (physical address, bytes), and nothing is written: the second result of
`translate` are the entries whose flags the walk would set. SDM, "Paging", "The Extended Page
Table Mechanism (EPT)".
"""

from collections.abc import Callable
from dataclasses import dataclass

Read = Callable[[int, int], int]
WIDTH = 40
R, W, X = 1, 2, 4


@dataclass(frozen=True)
class Fault:
    """`kind` is "page", "violation" or "misconfiguration"; `code` its error code or
    qualification, `address` the guest-physical address of the latter two."""

    kind: str
    code: int = 0
    address: int = 0


@dataclass(frozen=True)
class Machine:
    """What translation depends on; `pointers` are the four of PAE paging."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    ac: bool
    pointers: tuple[int, int, int, int]
    ept: int
    read: Read


def bit(value: int, n: int) -> int:
    return value >> n & 1


def field(value: int, high: int, low: int) -> int:
    return value >> low & (1 << high - low + 1) - 1


def nested(m: Machine, address: int, wanted: int, told: int) -> int | Fault:
    """The physical address of a guest-physical one, or what goes wrong."""
    table = m.ept & ~0xFFF
    rights = R | W | X
    for level in (4, 3, 2, 1):
        low = 12 + 9 * (level - 1)
        entry = m.read(table + 8 * field(address, low + 8, low), 8)
        rights &= entry
        if not entry & 7:
            break
        page = level == 1 or (level < 4 and bit(entry, 7))
        reserved = field(entry, 51, WIDTH)
        if page:
            reserved |= field(entry, low - 1, 12) if level > 1 else 0
            reserved |= field(entry, 5, 3) in (2, 3, 7)
        else:
            reserved |= field(entry, 7 if level == 4 else 6, 3)
        if reserved or entry & 3 == 2:
            return Fault("misconfiguration", 0, address)
        table = field(entry, WIDTH - 1, 12) << 12
        if page:
            if rights & wanted == wanted:
                return table | field(address, low - 1, 0)
            break
    return Fault("violation", wanted | rights << 3 | told, address)


def translate(m: Machine, linear: int, kind: str, *, user: bool) -> int | Fault:
    """The physical address for an access "read", "write" or "fetch", or its fault."""
    wanted = {"read": R, "write": W, "fetch": X}[kind]
    if not bit(m.cr0, 31):
        return nested(m, linear & 0xFFFF_FFFF, wanted, 0x180)
    pae, long, nxe = bit(m.cr4, 5), bit(m.efer, 10), bit(m.efer, 11)
    smep, smap, wp = bit(m.cr4, 20), bit(m.cr4, 21), bit(m.cr0, 16)
    code = (wanted == W) << 1 | user << 2
    if wanted == X and ((pae and nxe) or smep):
        code |= 16
    if not long:
        linear &= 0xFFFF_FFFF
    levels = {(0, 0): (2, 1), (1, 0): (2, 1), (1, 1): (4, 3, 2, 1)}[pae, long]
    bits, width = (9, 8) if pae else (10, 4)
    table = m.cr3 >> 12 << 12
    if pae and not long:
        pointer = m.pointers[linear >> 30]
        if not pointer & 1:
            return Fault("page", code)
        table = field(pointer, WIDTH - 1, 12) << 12
    elif not pae:
        table &= 0xFFFF_FFFF
    marks: list[tuple[int, int]] = []
    user_ok = write_ok = execute_ok = True
    for level in levels:
        low = 12 + bits * (level - 1)
        at = table + width * field(linear, low + bits - 1, low)
        place = nested(m, at, R | W if bit(m.ept, 6) else R, 0x80)
        if isinstance(place, Fault):
            return place
        entry = m.read(place, width)
        if not entry & 1:
            return Fault("page", code)
        large = bit(entry, 7) and level in ((2, 3) if pae else (2,)) and (pae or bit(m.cr4, 4))
        reserved = 0
        if pae:
            reserved |= field(entry, 51, WIDTH)
            reserved |= bit(entry, 63) and not nxe
            if not long:
                reserved |= field(entry, 62, 52)
            if level == 4:
                reserved |= bit(entry, 7)
            if large:
                reserved |= field(entry, low - 1, 13)
        elif large:
            reserved |= bit(entry, 21)
        if reserved:
            return Fault("page", code | 9)
        user_ok = user_ok and bool(bit(entry, 2))
        write_ok = write_ok and bool(bit(entry, 1))
        execute_ok = execute_ok and not (pae and bit(entry, 63))
        last = bool(large or level == 1)
        if not bit(entry, 5) or (last and wanted == W and not bit(entry, 6)):
            marks.append((at, level))
        table = field(entry, WIDTH - 1, 12) << 12
        if last:
            break
    if user:
        allowed = user_ok and (wanted != W or write_ok) and (wanted != X or execute_ok)
    else:
        allowed = wanted != W or write_ok or not wp
        if user_ok:
            allowed = allowed and not (wanted == X and smep)
            allowed = allowed and not (wanted != X and smap and not m.ac)
        allowed = allowed and (wanted != X or execute_ok)
    if not allowed:
        return Fault("page", code | 1)
    for at, _ in marks:
        place = nested(m, at, R | W, 0x80)
        if isinstance(place, Fault):
            return place
    if pae or not large:
        address = table >> low << low | field(linear, low - 1, 0)
    else:
        address = field(entry, 20, 13) << 32 | field(entry, 31, 22) << 22 | field(linear, 21, 0)
    return nested(m, address, wanted, 0x180)
