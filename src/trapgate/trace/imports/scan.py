"""KVM's trace points as text, scanned: `trace-cmd report`, ftrace's `trace`, `perf script`.

The three differ in what precedes the event (`heads`), and kernels differ in the fields of an
event (`bodies`). Neither is told by a version. These functions are compiled
(`trapgate.compiler.library`): text is an array with a byte in each cell.
"""

from trapgate.compiler.dialect import Cells
from trapgate.trace.imports.bodies import body
from trapgate.trace.imports.characters import LIBRARY, digest, is_blank, is_lower
from trapgate.trace.imports.heads import head
from trapgate.trace.imports.points import (
    CONTROL_REGISTER,
    CPU,
    ENTRY,
    EVENT_KINDS,
    EXCEPTION,
    EXIT,
    FIRST_UNREAD,
    FIRST_UNREAD_LENGTH,
    FOREIGN,
    INTERRUPT,
    KIND,
    LENGTH,
    LINES,
    MSR,
    NESTED_EXIT,
    NESTED_INJECTION,
    NOTE,
    NOTHING,
    PAGE_FAULT,
    PAUSE_WINDOW,
    POINT,
    POSTED,
    PROCESS,
    REASON,
    SLOT,
    START,
    THREAD,
    TIME,
    TIMES,
    UNREADABLE,
    VCPU,
)

_SHORTEST_NOTE = 16

_EXIT, _ENTRY = digest("kvm_exit"), digest("kvm_entry")
_PAGE_FAULT, _INJ_EXCEPTION = digest("kvm_page_fault"), digest("kvm_inj_exception")
_INJ_VIRQ = digest("kvm_inj_virq")
_NESTED_EXIT, _NESTED_INJECT = digest("kvm_nested_vmexit"), digest("kvm_nested_vmexit_inject")
_MSR, _CR, _POSTED = digest("kvm_msr"), digest("kvm_cr"), digest("kvm_pi_irte_update")
_WINDOW = digest("kvm_ple_window_update")
assert len(EVENT_KINDS) == 11


@LIBRARY.inside
def event_of(value: int) -> int:
    """The kind of an event from the digest of its name; NOTHING for one that is not read."""
    if value == _EXIT:
        return EXIT
    if value == _ENTRY:
        return ENTRY
    if value == _PAGE_FAULT:
        return PAGE_FAULT
    if value == _INJ_EXCEPTION:
        return EXCEPTION
    if value == _INJ_VIRQ:
        return INTERRUPT
    if value == _NESTED_EXIT:
        return NESTED_EXIT
    if value == _NESTED_INJECT:
        return NESTED_INJECTION
    if value == _MSR:
        return MSR
    if value == _CR:
        return CONTROL_REGISTER
    if value == _POSTED:
        return POSTED
    if value == _WINDOW:
        return PAUSE_WINDOW
    return NOTHING


@LIBRARY.inside
def event_at(text: Cells, at: int, end: int) -> tuple[int, int, int]:
    """The first event of KVM's in a line: (its kind, where its head ends, where its name ends).

    The kind is NOTHING for another event, -1 if there is none.
    """
    found = -1
    while at + 4 < end:
        if text[at] != 107 or text[at + 1] != 118 or text[at + 2] != 109 or text[at + 3] != 95:
            at += 1
            continue
        begin = at
        value = 2166136261
        while at < end and is_lower(text[at]):
            value = (value ^ text[at]) * 16777619 & 0xFFFFFFFF
            at += 1
        if at < end and text[at] != 58 and not is_blank(text[at]):
            continue
        found = event_of(value)
        if found != NOTHING or (at < end and text[at] == 58):
            if begin >= 4 and text[begin - 1] == 58 and text[begin - 2] == 109:
                begin -= 4  # perf's kvm:
            return found, begin, at + (at < end and text[at] == 58)
    return found, end, end


@LIBRARY.inside
def is_note(text: Cells, at: int, end: int) -> bool:
    """Whether a line without an event may tell of lost ones."""
    if end - at < _SHORTEST_NOTE:
        return False
    while at + 4 < end:
        if text[at] == 76 and text[at + 1] == 79 and text[at + 2] == 83 and text[at + 3] == 84:
            return True  # LOST
        if text[at] == 69 and text[at + 1] == 86 and text[at + 2] == 69 and text[at + 3] == 78:
            return True  # EVENTS DROPPED
        if text[at] == 35 and text[at + 2] == 101 and text[at + 3] == 110 and text[at + 4] == 116:
            return True  # entries-in-buffer
        at += 1
    return False


@LIBRARY.entry
def scan(text: Cells, size: int, points: Cells, counts: Cells) -> int:
    """Make points of the whole lines in the first `size` bytes of `text`; how many.

    `points` has room for one in every 16 bytes, and one more; `counts` is added to.
    """
    count = 0
    at = 0
    while at < size:
        end = at
        while end < size and text[end] != 10:
            end += 1
        counts[LINES] += 1
        line = at
        at = end + 1
        while end > line and is_blank(text[end - 1]):
            end -= 1
        if end == line:
            continue
        kind, before, after = event_at(text, line, end)
        point = points[count * POINT :]
        if kind <= NOTHING and not (kind < 0 and is_note(text, line, end)):
            counts[FOREIGN] += 1
            if counts[FIRST_UNREAD_LENGTH] == 0 and text[line] != 35:
                counts[FIRST_UNREAD] = line
                counts[FIRST_UNREAD_LENGTH] = end - line
            continue
        for n in range(POINT):
            point[n] = 0
        for n in (TIME, CPU, PROCESS, THREAD, VCPU, REASON, SLOT):
            point[n] = -1
        if kind < 0:
            point[KIND] = NOTE
            point[START] = line
            point[LENGTH] = end - line
            count += 1
            continue
        point[KIND] = kind
        if not head(text, line, before, point, counts) or not body(text, after, end, point):
            counts[UNREADABLE] += 1
            if counts[FIRST_UNREAD_LENGTH] == 0:
                counts[FIRST_UNREAD] = line
                counts[FIRST_UNREAD_LENGTH] = end - line
            continue
        counts[TIMES] += point[TIME] >= 0
        count += 1
    return count
