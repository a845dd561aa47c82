"""The checks of VM entry on the guest's segment registers.

SDM, "Checks on Guest Segment Registers": selectors, then bases, then access rights
(with limits) register by register. Each core function gives the number of the first
check that failed, 0 if none did.
"""

from trapgate.compiler.dialect import Cells, core, inlined
from trapgate.paging.walk import canonical
from trapgate.sdm import checks as ck
from trapgate.sdm.cells import (
    GUEST_CR0,
    GUEST_CS_ACCESS_RIGHTS,
    GUEST_CS_SELECTOR,
    GUEST_ES_ACCESS_RIGHTS,
    GUEST_ES_BASE,
    GUEST_ES_LIMIT,
    GUEST_ES_SELECTOR,
    GUEST_LDTR_ACCESS_RIGHTS,
    GUEST_LDTR_SELECTOR,
    GUEST_RFLAGS,
    GUEST_SS_ACCESS_RIGHTS,
    GUEST_SS_SELECTOR,
    GUEST_TR_ACCESS_RIGHTS,
    GUEST_TR_SELECTOR,
    VM_ENTRY_CONTROLS,
)
from trapgate.sdm.controls import ENTRY_IA32E_MODE_GUEST
from trapgate.sdm.state import (
    AR_ACCESSED,
    AR_CODE,
    AR_DB,
    AR_DPL_SHIFT,
    AR_G,
    AR_L,
    AR_P,
    AR_RESERVED,
    AR_S,
    AR_TYPE,
    AR_UNUSABLE,
    AR_WRITABLE,
    CR0_PE,
    RFLAGS_VM,
)

_CS, _SS, _FS, _GS, _LDTR, _TR = 1, 2, 4, 5, 6, 7
_DATA_READ_WRITE_ACCESSED = 3
_RPL = 3
_TI = 4


@core
def check_segments(v: Cells, unrestricted: bool) -> int:
    """Check selectors, bases, limits and access rights of the eight segment registers."""
    v8086 = v[GUEST_RFLAGS] & RFLAGS_VM != 0
    check = _check_selectors(v, unrestricted, v8086)
    if check == 0:
        check = _check_bases(v, v8086)
    if check != 0:
        return check
    for n in range(6):
        if v8086:
            if v[GUEST_ES_LIMIT + n] != 0xFFFF:
                return ck.V8086_LIMIT + n
            if v[GUEST_ES_ACCESS_RIGHTS + n] != 0xF3:
                return ck.V8086_RIGHTS + n
        elif n == _CS or v[GUEST_ES_ACCESS_RIGHTS + n] & AR_UNUSABLE == 0:
            check = _check_rights(v, n, unrestricted)
            if check != 0:
                return check
        elif n == _SS:
            check = _check_stack_dpl(v, unrestricted)
            if check != 0:
                return check
    return _check_system_segments(v)


@core
def _check_selectors(v: Cells, unrestricted: bool, v8086: bool) -> int:
    if v[GUEST_TR_SELECTOR] & _TI:
        return ck.SELECTOR_TI + _TR
    if v[GUEST_LDTR_ACCESS_RIGHTS] & AR_UNUSABLE == 0 and v[GUEST_LDTR_SELECTOR] & _TI:
        return ck.SELECTOR_TI + _LDTR
    if not v8086 and not unrestricted and (v[GUEST_SS_SELECTOR] ^ v[GUEST_CS_SELECTOR]) & _RPL:
        return ck.SELECTOR_RPL + _SS
    return 0


@core
def _check_bases(v: Cells, v8086: bool) -> int:
    if v8086:
        for n in range(6):
            if v[GUEST_ES_BASE + n] != v[GUEST_ES_SELECTOR + n] << 4:
                return ck.V8086_BASE + n
    for n in range(8):
        base = v[GUEST_ES_BASE + n]
        usable = v[GUEST_ES_ACCESS_RIGHTS + n] & AR_UNUSABLE == 0
        if n in (_FS, _GS, _TR) or (n == _LDTR and usable):
            if not canonical(base):
                return ck.BASE + n
        elif (usable or n == _CS) and base >> 32 != 0:
            return ck.BASE + n
    return 0


@core
def _check_rights(v: Cells, n: int, unrestricted: bool) -> int:
    """CS, or another segment that is usable: type, S, DPL, P, D/B, G and reserved bits."""
    rights = v[GUEST_ES_ACCESS_RIGHTS + n]
    kind = rights & AR_TYPE
    if n == _CS:
        if kind not in (9, 11, 13, 15) and not (unrestricted and kind == _DATA_READ_WRITE_ACCESSED):
            return ck.TYPE + n
    elif n == _SS:
        if kind not in (3, 7):
            return ck.TYPE + n
    elif rights & AR_ACCESSED == 0 or rights & (AR_CODE | AR_WRITABLE) == AR_CODE:
        return ck.TYPE + n
    if rights & AR_S == 0:
        return ck.CODE_OR_SYSTEM + n
    check = 0
    if n == _CS:
        check = _check_code_dpl(v)
    elif n == _SS:
        check = _check_stack_dpl(v, unrestricted)
    elif (
        not unrestricted
        and kind < 12
        and (rights >> AR_DPL_SHIFT) & 3 < v[GUEST_ES_SELECTOR + n] & _RPL
    ):
        check = ck.DPL + n
    if check != 0:
        return check
    long = v[VM_ENTRY_CONTROLS] & ENTRY_IA32E_MODE_GUEST != 0
    if n == _CS and long and rights & AR_L and rights & AR_DB:
        return ck.DEFAULT_SIZE + n
    return _check_form(rights, v[GUEST_ES_LIMIT + n], n)


@core
@inlined
def _check_form(rights: int, limit: int, n: int) -> int:
    """What all usable segments have in common: P, reserved bits, granularity."""
    if rights & AR_P == 0:
        return ck.PRESENT + n
    if rights & AR_RESERVED:
        return ck.RIGHTS_RESERVED + n
    if limit & 0xFFF != 0xFFF and rights & AR_G:
        return ck.GRANULARITY_SMALL + n
    if limit & 0xFFF0_0000 and rights & AR_G == 0:
        return ck.GRANULARITY_LARGE + n
    return 0


@core
def _check_code_dpl(v: Cells) -> int:
    rights = v[GUEST_CS_ACCESS_RIGHTS]
    kind = rights & AR_TYPE
    dpl = (rights >> AR_DPL_SHIFT) & 3
    stack = (v[GUEST_SS_ACCESS_RIGHTS] >> AR_DPL_SHIFT) & 3
    if (
        (kind == _DATA_READ_WRITE_ACCESSED and dpl != 0)
        or (kind in (9, 11) and dpl != stack)
        or (kind in (13, 15) and dpl > stack)
    ):
        return ck.DPL + _CS
    return 0


@core
@inlined
def _check_stack_dpl(v: Cells, unrestricted: bool) -> int:
    """The DPL of SS is the CPL, even of an unusable SS."""
    dpl = (v[GUEST_SS_ACCESS_RIGHTS] >> AR_DPL_SHIFT) & 3
    if not unrestricted and dpl != v[GUEST_SS_SELECTOR] & _RPL:
        return ck.DPL + _SS
    code = v[GUEST_CS_ACCESS_RIGHTS] & AR_TYPE
    if (code == _DATA_READ_WRITE_ACCESSED or v[GUEST_CR0] & CR0_PE == 0) and dpl != 0:
        return ck.DPL + _SS
    return 0


@core
def _check_system_segments(v: Cells) -> int:
    """TR, which is always usable, and LDTR if it is."""
    rights = v[GUEST_TR_ACCESS_RIGHTS]
    kind = rights & AR_TYPE
    long = v[VM_ENTRY_CONTROLS] & ENTRY_IA32E_MODE_GUEST != 0
    if kind != 11 and (long or kind != 3):
        return ck.TYPE + _TR
    if rights & AR_S:
        return ck.CODE_OR_SYSTEM + _TR
    if rights & AR_UNUSABLE:
        return ck.UNUSABLE + _TR
    check = _check_form(rights, v[GUEST_ES_LIMIT + _TR], _TR)
    rights = v[GUEST_LDTR_ACCESS_RIGHTS]
    if check != 0 or rights & AR_UNUSABLE:
        return check
    if rights & AR_TYPE != 2:
        return ck.TYPE + _LDTR
    if rights & AR_S:
        return ck.CODE_OR_SYSTEM + _LDTR
    return _check_form(rights, v[GUEST_ES_LIMIT + _LDTR], _LDTR)
