"""The checks of VM entry on the guest's segment registers.

SDM, "Checks on Guest Segment Registers". An exit qualification never says which of
them failed, so all of them make one answer.
"""

from trapgate.core import Cells, core
from trapgate.sdm.cells import (
    GUEST_CR0,
    GUEST_CS_ACCESS_RIGHTS,
    GUEST_CS_BASE,
    GUEST_CS_SELECTOR,
    GUEST_ES_ACCESS_RIGHTS,
    GUEST_ES_BASE,
    GUEST_ES_LIMIT,
    GUEST_ES_SELECTOR,
    GUEST_FS_BASE,
    GUEST_GS_BASE,
    GUEST_LDTR_ACCESS_RIGHTS,
    GUEST_LDTR_BASE,
    GUEST_LDTR_LIMIT,
    GUEST_LDTR_SELECTOR,
    GUEST_RFLAGS,
    GUEST_SS_ACCESS_RIGHTS,
    GUEST_SS_SELECTOR,
    GUEST_TR_ACCESS_RIGHTS,
    GUEST_TR_BASE,
    GUEST_TR_LIMIT,
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

_CS, _SS, _FS, _GS = 1, 2, 4, 5
_DATA_READ_WRITE_ACCESSED = 3
_TI = 4


@core
def segments_valid(v: Cells, unrestricted: bool) -> bool:
    """Whether selectors, bases, limits and access rights are such as a processor could hold."""
    if not _system_segments_valid(v) or not _bases_valid(v):
        return False
    if v[GUEST_RFLAGS] & RFLAGS_VM:
        for n in range(6):
            if v[GUEST_ES_BASE + n] != v[GUEST_ES_SELECTOR + n] << 4:
                return False
            if v[GUEST_ES_LIMIT + n] != 0xFFFF or v[GUEST_ES_ACCESS_RIGHTS + n] != 0xF3:
                return False
        return True
    if not unrestricted and (v[GUEST_SS_SELECTOR] ^ v[GUEST_CS_SELECTOR]) & 3:
        return False
    if not _code_segment_valid(v, unrestricted) or not _stack_segment_valid(v, unrestricted):
        return False
    for n in range(6):
        if n not in (_CS, _SS) and not _data_segment_valid(v, n, unrestricted):
            return False
    return True


@core
def _form_valid(rights: int, limit: int, code_or_data: bool) -> bool:
    """What all usable segments have in common: S, P, reserved bits, limit and granularity."""
    if (rights & AR_S != 0) != code_or_data or rights & AR_P == 0:
        return False
    if rights & AR_RESERVED:
        return False
    if limit & 0xFFF != 0xFFF and rights & AR_G:
        return False
    return limit & 0xFFF0_0000 == 0 or rights & AR_G != 0


@core
def _is_canonical(address: int) -> bool:
    return -(1 << 47) <= address < 1 << 47


@core
def _bases_valid(v: Cells) -> bool:
    if not _is_canonical(v[GUEST_FS_BASE]) or not _is_canonical(v[GUEST_GS_BASE]):
        return False
    if v[GUEST_CS_BASE] >> 32 != 0:
        return False
    for n in range(4):
        usable = v[GUEST_ES_ACCESS_RIGHTS + n] & AR_UNUSABLE == 0
        if n != _CS and usable and v[GUEST_ES_BASE + n] >> 32 != 0:
            return False
    return True


@core
def _code_segment_valid(v: Cells, unrestricted: bool) -> bool:
    rights = v[GUEST_CS_ACCESS_RIGHTS]
    kind = rights & AR_TYPE
    dpl = (rights >> AR_DPL_SHIFT) & 3
    ss_dpl = (v[GUEST_SS_ACCESS_RIGHTS] >> AR_DPL_SHIFT) & 3
    if kind == _DATA_READ_WRITE_ACCESSED:
        if not unrestricted or dpl != 0:
            return False
    elif kind in (9, 11):
        if dpl != ss_dpl:
            return False
    elif kind in (13, 15):
        if dpl > ss_dpl:
            return False
    else:
        return False
    long = v[VM_ENTRY_CONTROLS] & ENTRY_IA32E_MODE_GUEST != 0
    if long and rights & AR_L and rights & AR_DB:
        return False
    return _form_valid(rights, v[GUEST_ES_LIMIT + _CS], True)


@core
def _stack_segment_valid(v: Cells, unrestricted: bool) -> bool:
    rights = v[GUEST_SS_ACCESS_RIGHTS]
    dpl = (rights >> AR_DPL_SHIFT) & 3
    if not unrestricted and dpl != v[GUEST_SS_SELECTOR] & 3:
        return False
    cs_type = v[GUEST_CS_ACCESS_RIGHTS] & AR_TYPE
    if (cs_type == _DATA_READ_WRITE_ACCESSED or v[GUEST_CR0] & CR0_PE == 0) and dpl != 0:
        return False
    if rights & AR_UNUSABLE:
        return True
    if rights & AR_TYPE not in (3, 7):
        return False
    return _form_valid(rights, v[GUEST_ES_LIMIT + _SS], True)


@core
def _data_segment_valid(v: Cells, n: int, unrestricted: bool) -> bool:
    rights = v[GUEST_ES_ACCESS_RIGHTS + n]
    if rights & AR_UNUSABLE:
        return True
    if rights & AR_ACCESSED == 0 or rights & (AR_CODE | AR_WRITABLE) == AR_CODE:
        return False
    dpl = (rights >> AR_DPL_SHIFT) & 3
    if not unrestricted and rights & AR_TYPE < 12 and dpl < v[GUEST_ES_SELECTOR + n] & 3:
        return False
    return _form_valid(rights, v[GUEST_ES_LIMIT + n], True)


@core
def _system_segments_valid(v: Cells) -> bool:
    """TR and LDTR."""
    rights = v[GUEST_TR_ACCESS_RIGHTS]
    kind = rights & AR_TYPE
    long = v[VM_ENTRY_CONTROLS] & ENTRY_IA32E_MODE_GUEST != 0
    if v[GUEST_TR_SELECTOR] & _TI or rights & AR_UNUSABLE:
        return False
    if kind != 11 and (long or kind != 3):
        return False
    if not _form_valid(rights, v[GUEST_TR_LIMIT], False) or not _is_canonical(v[GUEST_TR_BASE]):
        return False
    rights = v[GUEST_LDTR_ACCESS_RIGHTS]
    if rights & AR_UNUSABLE:
        return True
    if v[GUEST_LDTR_SELECTOR] & _TI or rights & AR_TYPE != 2:
        return False
    if not _is_canonical(v[GUEST_LDTR_BASE]):
        return False
    return _form_valid(rights, v[GUEST_LDTR_LIMIT], False)
