"""The fields of KVM's events in text, known by their names, in whatever order and number."""

from typing import Final

import numpy as np

from trapgate.compiler.dialect import Cells
from trapgate.sdm.vectors import Vector
from trapgate.trace.imports.access_bodies import accessed, pause_window, posted
from trapgate.trace.imports.characters import (
    LIBRARY,
    decimal_number,
    digest,
    hex_number,
    is_blank,
    raw_number,
    word_at,
)
from trapgate.trace.imports.points import (
    ADDRESS,
    CODE,
    CONTROL_REGISTER,
    ENTRY,
    EXCEPTION,
    EXIT,
    HAS,
    HAS_ADDRESS,
    HAS_CODE,
    HAS_INFO1,
    HAS_INFO2,
    HAS_INTERRUPTION,
    HAS_REASON,
    HAS_RIP,
    HAS_VCPU,
    INFO1,
    INFO2,
    INTERRUPT,
    INTERRUPTION,
    IS_AGAIN,
    IS_BARE,
    IS_SOFT,
    IS_SVM,
    IS_VMX,
    KIND,
    LENGTH,
    MSR,
    PAGE_FAULT,
    PAUSE_WINDOW,
    POSTED,
    REASON,
    RIP,
    START,
    VCPU,
)

_LONGEST_REASON = 60

_W_VCPU, _W_RIP, _W_INFO, _W_REASON = map(digest, ("vcpu", "rip", "info", "reason"))
_W_INFO1, _W_INFO2, _W_EXT1, _W_EXT2 = map(digest, ("info1", "info2", "ext_inf1", "ext_inf2"))
_W_INTR, _W_INT, _W_EXTINT = map(digest, ("intr_info", "int_info", "ext_int"))
_W_CODE, _W_INTERR, _W_EXTERR = map(digest, ("error_code", "int_info_err", "ext_int_err"))
_W_ADDRESS = digest("address")
# Names of the fields themselves, as tools print them that know an event's layout only.
_W_EXIT_REASON, _W_GUEST_RIP, _W_VCPU_ID = map(digest, ("exit_reason", "guest_rip", "vcpu_id"))
_W_FAULT_ADDRESS, _W_ISA = map(digest, ("fault_address", "isa"))
_W_EXCEPTION, _W_HAS_ERROR = map(digest, ("exception", "has_error"))
_W_REINJECTED, _W_VECTOR, _W_SOFT, _W_IRQ = map(digest, ("reinjected", "vector", "soft", "irq"))

_NO_FIELD, _VCPU, _RIP, _INFO, _REASON, _INFO1, _INFO2, _INTR, _CODE, _ADDRESS = range(10)
_ISA, _EXCEPTION, _HAS_ERROR, _REINJECTED, _VECTOR, _SOFT, _EXIT_REASON = range(10, 17)

_NAMED = {vector.name: int(vector) for vector in Vector} | {"XF": int(Vector.XM)}
_NAME_DIGESTS = np.array([digest(name) for name in _NAMED], np.int64)
_NAME_VECTORS = np.array(list(_NAMED.values()), np.int64)
_NAMES: Final = len(_NAMED)


@LIBRARY.inside
def field_of(value: int) -> int:
    """What a word names, from its digest; _NO_FIELD if nothing that is read."""
    if value in (_W_VCPU, _W_VCPU_ID):
        return _VCPU
    if value in (_W_RIP, _W_GUEST_RIP):
        return _RIP
    if value == _W_INFO:
        return _INFO
    if value == _W_REASON:
        return _REASON
    if value == _W_EXIT_REASON:
        return _EXIT_REASON
    if value in (_W_INFO1, _W_EXT1):
        return _INFO1
    if value in (_W_INFO2, _W_EXT2):
        return _INFO2
    if value in (_W_INTR, _W_INT, _W_EXTINT):
        return _INTR
    if value in (_W_CODE, _W_INTERR, _W_EXTERR):
        return _CODE
    if value in (_W_ADDRESS, _W_FAULT_ADDRESS):
        return _ADDRESS
    if value == _W_ISA:
        return _ISA
    if value == _W_EXCEPTION:
        return _EXCEPTION
    if value == _W_HAS_ERROR:
        return _HAS_ERROR
    if value == _W_REINJECTED:
        return _REINJECTED
    if value == _W_VECTOR:
        return _VECTOR
    if value == _W_SOFT:
        return _SOFT
    return _NO_FIELD


@LIBRARY.inside
def reason_at(text: Cells, at: int, end: int, point: Cells) -> int:
    """Read the words of an exit's reason, up to the next field; where that begins."""
    while at < end and (is_blank(text[at]) or text[at] == 58):
        at += 1
    start = at
    stop = at
    while True:
        begin, after, value = word_at(text, at, end)
        if begin == after:
            stop = end
            break
        if field_of(value) != _NO_FIELD:
            stop = begin
            break
        at = after
    at = stop
    while stop > start and (is_blank(text[stop - 1]) or text[stop - 1] == 44):
        stop -= 1
    if 0 < stop - start <= _LONGEST_REASON:
        first = 2166136261
        second = 5381
        for place in range(start, stop):
            first = (first ^ text[place]) * 16777619 & 0xFFFFFFFF
            second = (second * 33 + text[place]) & 0x3FFFFFFF
        point[REASON] = second << 32 | first
        point[START] = start
        point[LENGTH] = stop - start
        point[HAS] |= HAS_REASON
    return at


@LIBRARY.inside
def fields(text: Cells, at: int, end: int, point: Cells) -> bool:
    """Read the fields of an event; False if one has no value that can be read."""
    while True:
        begin, at, value = word_at(text, at, end)
        if begin == at:
            return True
        field = field_of(value)
        if field == _NO_FIELD:
            continue
        if field == _REASON:
            at = reason_at(text, at, end, point)
            continue
        raw = at < end and text[at] == 61
        first, after, following = word_at(text, at, end)
        if first == after:
            return False
        if field_of(following) != _NO_FIELD:
            continue  # a name without its value
        at = after
        if field == _VCPU:
            number = decimal_number(text, first, after, 9)
            if number < 0:
                return False
            if not point[HAS] & HAS_VCPU:
                point[VCPU] = number
                point[HAS] |= HAS_VCPU
            continue
        if field == _EXIT_REASON:
            point[REASON] = decimal_number(text, first, after, 9)
            point[START] = first
            point[LENGTH] = after - first
            point[HAS] |= HAS_REASON
            continue
        good, number = raw_number(text, first, after) if raw else hex_number(text, first, after)
        if not good:
            return False
        store(point, field, number)
        if field == _INFO:
            first, at, following = word_at(text, at, end)
            good, number = hex_number(text, first, at)
            if not good:
                return False
            point[INFO2] = number


@LIBRARY.inside
def store(point: Cells, field: int, number: int) -> None:
    """Keep a field's number, if it is the first of its name."""
    has = point[HAS]
    if field == _RIP and not has & HAS_RIP:
        point[RIP] = number
        point[HAS] = has | HAS_RIP
    elif field == _INFO and not has & HAS_INFO1:
        point[INFO1] = number
        point[HAS] = has | HAS_INFO1 | HAS_INFO2 | IS_BARE
    elif field == _INFO1 and not has & HAS_INFO1:
        point[INFO1] = number
        point[HAS] = has | HAS_INFO1
    elif field == _INFO2 and not has & HAS_INFO2:
        point[INFO2] = number
        point[HAS] = has | HAS_INFO2
    elif field == _INTR and not has & HAS_INTERRUPTION:
        point[INTERRUPTION] = number
        point[HAS] = has | HAS_INTERRUPTION
    elif field == _CODE and not has & HAS_CODE:
        point[CODE] = number
        point[HAS] = has | HAS_CODE
    elif field in (_ADDRESS, _EXCEPTION, _VECTOR) and not has & HAS_ADDRESS:
        point[ADDRESS] = number
        point[HAS] = has | HAS_ADDRESS
    elif field == _ISA:
        point[HAS] = has | (IS_SVM if number == 2 else IS_VMX)
    elif field == _REINJECTED and number:
        point[HAS] = has | IS_AGAIN
    elif field == _SOFT and number:
        point[HAS] = has | IS_SOFT
    elif field == _HAS_ERROR and number == 0:
        # Until the code itself comes: it is none.
        point[HAS] = has | HAS_CODE
        point[CODE] = -1


@LIBRARY.inside
def injected_exception(text: Cells, at: int, end: int, point: Cells) -> bool:
    """Read `#PF (0x2) [reinjected]` and its kin; False if it cannot be read."""
    while at < end and is_blank(text[at]):
        at += 1
    if at >= end:
        return False
    vector = -1
    if text[at] == 35:  # #
        at += 1
        value = 2166136261
        begin = at
        while at < end and 65 <= text[at] <= 90:
            value = (value ^ text[at]) * 16777619 & 0xFFFFFFFF
            at += 1
        if not 2 <= at - begin <= 3:
            return False
        for n in range(_NAMES):
            if _NAME_DIGESTS[n] == value:
                vector = _NAME_VECTORS[n]
    elif text[at] in (91, 101):  # [FAILED TO PARSE], exception=
        if not fields(text, at, end, point) or not point[HAS] & HAS_ADDRESS:
            return False
        if point[HAS] & HAS_CODE and point[CODE] == -1:
            point[HAS] &= ~HAS_CODE
        if not 0 <= point[ADDRESS] < 256:
            return False
        vector = point[ADDRESS]
    else:
        begin = at
        while at < end and not is_blank(text[at]):
            at += 1
        good, number = hex_number(text, begin, at)
        if not good or at - begin > 4 or text[begin] != 48:
            return False
        vector = number
    if vector < 0:
        return False
    point[ADDRESS] = vector
    while at < end and is_blank(text[at]):
        at += 1
    if at < end and text[at] == 40:
        begin = at + 1
        while at < end and text[at] != 41:
            at += 1
        good, number = hex_number(text, begin, at)
        if not good:
            return False
        point[CODE] = number
        point[HAS] |= HAS_CODE
    if is_again(text, at, end):
        point[HAS] |= IS_AGAIN
    return True


@LIBRARY.inside
def is_again(text: Cells, at: int, end: int) -> bool:
    """Whether `[reinjected]` is there."""
    while at < end:
        begin, at, value = word_at(text, at, end)
        if begin == at:
            return False
        if value == _W_REINJECTED and text[begin - 1] == 91:
            return True
    return False


@LIBRARY.inside
def injected_interrupt(text: Cells, at: int, end: int, point: Cells) -> bool:
    """Read `irq 49`, `IRQ 0x31 [reinjected]`, `Soft/INTn 0x80`; False if it cannot be read."""
    while at < end and is_blank(text[at]):
        at += 1
    if at >= end:
        return False
    first = text[at]
    if first in (91, 118):  # [FAILED TO PARSE], vector=
        if not fields(text, at, end, point) or not point[HAS] & HAS_ADDRESS:
            return False
        return bool(point[ADDRESS] >= 0) and bool(point[ADDRESS] < 256)
    _, at, value = word_at(text, at, end)
    begin, after, _ = word_at(text, at, end)
    if value == _W_IRQ:
        number = decimal_number(text, begin, after, 3)
    elif first in (73, 83):  # I, S
        good, number = hex_number(text, begin, after)
        if not good or after - begin > 4:
            return False
    else:
        return False
    if not 0 <= number < 256:
        return False
    point[ADDRESS] = number
    if first == 83:
        point[HAS] |= IS_SOFT
    if is_again(text, after, end):
        point[HAS] |= IS_AGAIN
    return True


@LIBRARY.inside
def body(text: Cells, at: int, end: int, point: Cells) -> bool:
    """Read what is after an event's name; False if it lacks what the event must have."""
    kind = point[KIND]
    if kind == EXCEPTION:
        return injected_exception(text, at, end, point)
    if kind == INTERRUPT:
        return injected_interrupt(text, at, end, point)
    if kind in (MSR, CONTROL_REGISTER):
        return accessed(text, at, end, point)
    if kind == PAUSE_WINDOW:
        return pause_window(text, at, end, point)
    if kind == POSTED:
        return posted(text, at, end, point)
    if not fields(text, at, end, point):
        return False
    has = point[HAS]
    if kind == ENTRY:
        return bool(has & HAS_VCPU)
    if kind == PAGE_FAULT:
        return bool(has & HAS_ADDRESS) and bool(has & HAS_CODE)
    if kind == EXIT:
        # Some tools leave out the RIP; a word alone is not an exit.
        return bool(has & HAS_REASON) and bool(has & (HAS_RIP | HAS_INFO1 | HAS_VCPU))
    return True
