"""What KVM's events say of accesses: to MSRs and control registers, and of posted interrupts."""

from trapgate.compiler.dialect import Cells
from trapgate.trace.imports.characters import (
    LIBRARY,
    decimal_number,
    digest,
    hex_number,
    raw_number,
    word_at,
)
from trapgate.trace.imports.points import (
    ADDRESS,
    HAS,
    HAS_ADDRESS,
    HAS_INFO1,
    HAS_VCPU,
    INFO1,
    IS_WRITE,
    VCPU,
)

_W_READ_MSR, _W_WRITE_MSR, _W_READ_CR, _W_WRITE_CR = map(
    digest, ("msr_read", "msr_write", "cr_read", "cr_write")
)
_W_ECX, _W_CR, _W_DATA, _W_VAL = map(digest, ("ecx", "cr", "data", "val"))
_W_WRITE, _W_RW, _W_SET = map(digest, ("write", "rw", "set"))
_W_GVEC, _W_ENABLED = map(digest, ("gvec", "enabled"))
_W_VCPU, _W_VCPU_ID, _W_OLD = map(digest, ("vcpu", "vcpu_id", "old"))


@LIBRARY.inside
def accessed_raw(text: Cells, at: int, end: int, point: Cells) -> bool:
    """Read the fields of kvm_msr or kvm_cr by their names; False if they cannot be read."""
    while True:
        begin, at, name = word_at(text, at, end)
        if begin == at:
            break
        begin, at, _ = word_at(text, at, end)
        good, number = raw_number(text, begin, at)
        if not good:
            return False
        if name in (_W_WRITE, _W_RW):
            point[HAS] |= IS_WRITE if number else 0
        elif name in (_W_ECX, _W_CR):
            point[ADDRESS] = number
            point[HAS] |= HAS_ADDRESS
        elif name in (_W_DATA, _W_VAL):
            point[INFO1] = number
            point[HAS] |= HAS_INFO1
    return bool(point[HAS] & HAS_ADDRESS) and bool(point[HAS] & HAS_INFO1)


@LIBRARY.inside
def accessed(text: Cells, at: int, end: int, point: Cells) -> bool:
    """Read `msr_write 6e0 = 0x1f`, `cr_read 3 = 0x2000`, `write=1 ecx=0x6e0 data=0x1f` or
    `rw=0 cr=3 val=0x2000`; False if it cannot be read.
    """
    begin, at, value = word_at(text, at, end)
    if begin < at < end and text[at] == 61:
        return accessed_raw(text, begin, end, point)
    if value in (_W_WRITE_MSR, _W_WRITE_CR):
        point[HAS] |= IS_WRITE
    elif value not in (_W_READ_MSR, _W_READ_CR):
        return False
    begin, at, _ = word_at(text, at, end)
    named, which = hex_number(text, begin, at)
    begin, at, _ = word_at(text, at, end)
    told, number = hex_number(text, begin, at)
    if not named or not told or which >> 32:
        return False
    point[ADDRESS] = which
    point[INFO1] = number
    point[HAS] |= HAS_ADDRESS | HAS_INFO1
    return True


@LIBRARY.inside
def posted(text: Cells, at: int, end: int, point: Cells) -> bool:
    """Read `PI is disabled for irq 25, vcpu 0, gsi: 0x18, gvec: 0x31`; False if it cannot be."""
    while True:
        begin, at, value = word_at(text, at, end)
        if begin == at:
            return bool(point[HAS] & HAS_VCPU) and bool(point[HAS] & HAS_ADDRESS)
        if value == _W_ENABLED:
            point[HAS] |= IS_WRITE
        elif value == _W_SET and at < end and text[at] == 61:
            begin, at, _ = word_at(text, at, end)
            point[HAS] |= IS_WRITE if decimal_number(text, begin, at, 9) > 0 else 0
        elif value in (_W_VCPU, _W_VCPU_ID):
            begin, at, _ = word_at(text, at, end)
            point[VCPU] = decimal_number(text, begin, at, 9)
            if point[VCPU] >= 0:
                point[HAS] |= HAS_VCPU
        elif value == _W_GVEC:
            raw = at < end and text[at] == 61
            begin, at, _ = word_at(text, at, end)
            good, number = raw_number(text, begin, at) if raw else hex_number(text, begin, at)
            if good and 0 <= number < 256:
                point[ADDRESS] = number
                point[HAS] |= HAS_ADDRESS


@LIBRARY.inside
def pause_window(text: Cells, at: int, end: int, point: Cells) -> bool:
    """Read `vcpu 0 old 4096 new 8192 (growed)`; False if it cannot be read."""
    while True:
        begin, at, value = word_at(text, at, end)
        if begin == at:
            return bool(point[HAS] & HAS_INFO1)
        if value in (_W_VCPU, _W_VCPU_ID, _W_OLD):
            begin, at, _ = word_at(text, at, end)
            number = decimal_number(text, begin, at, 10)
            if number < 0:
                return False
            if value == _W_OLD:
                point[INFO1] = number
                point[HAS] |= HAS_INFO1
            else:
                point[VCPU] = number
                point[HAS] |= HAS_VCPU
