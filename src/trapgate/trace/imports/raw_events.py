"""Events of binary recordings as points: pages of ftrace's ring buffer, samples of perf's.

Compiled; a recording is an array with a byte in each cell. Everything is bounded by the
sizes that are given: what a record says of its own size is looked at before it is used.
"""

from typing import Final

from trapgate.compiler.dialect import Cells
from trapgate.trace.imports.characters import LIBRARY
from trapgate.trace.imports.formats import (
    DESCRIPTOR,
    HAS_ERROR,
    ISA,
    MOST_FIELDS,
    REINJECTED,
    SOFT,
    WRITE,
)
from trapgate.trace.imports.points import (
    ADDRESS,
    CPU,
    EXCEPTION,
    EXIT,
    GAP,
    HAS,
    HAS_CODE,
    INTERRUPT,
    IS_AGAIN,
    IS_BARE,
    IS_SOFT,
    IS_SVM,
    IS_VMX,
    IS_WRITE,
    KIND,
    POINT,
    PROCESS,
    REASON,
    SLOT,
    THREAD,
    TIME,
    VCPU,
)

# What is counted.
EVENTS: Final = 0
FOREIGN: Final = 1
DAMAGED: Final = 2
LATEST: Final = 3
"""The time of the latest event: an absolute time lacks its upper bits."""
GOOD: Final = 4
"""Bytes of whole records that were read."""
RAW_COUNTS: Final = 8

_TYPE_PADDING, _TYPE_TIME_EXTEND, _TYPE_TIME_STAMP = 29, 30, 31
_MISSED_EVENTS, _MISSED_STORED = 1 << 31, 1 << 30
_TIME_BITS = 59

# Types of perf's records, and bits of a sample's contents (perf_event_open(2)).
_LOST, _SAMPLE, _LOST_SAMPLES = 2, 9, 13
_IP, _TID, _TIME, _ADDR, _READ, _CALLCHAIN, _ID, _CPU, _PERIOD, _STREAM_ID, _RAW = (
    1 << n for n in range(11)
)
_IDENTIFIER = 1 << 16
_ENABLED, _RUNNING, _FORMAT_ID, _GROUP, _FORMAT_LOST = (1 << n for n in range(5))


@LIBRARY.inside
def little(text: Cells, at: int, size: int) -> int:
    """A number of `size` bytes (1 to 8), least first, as 64 bits."""
    value = 0
    high = 0
    for n in range(size):
        if n < 4:
            value |= text[at + n] << 8 * n
        else:
            high |= text[at + n] << 8 * (n - 4)
    return ((high ^ 0x80000000) - 0x80000000) << 32 | value if size == 8 else high << 32 | value


@LIBRARY.inside
def begin_point(point: Cells) -> int:
    """An empty point; 0."""
    for n in range(POINT):
        point[n] = 0
    for n in (TIME, CPU, PROCESS, THREAD, VCPU, REASON, SLOT):
        point[n] = -1
    return 0


@LIBRARY.inside
def event_point(
    text: Cells, at: int, size: int, kinds: Cells, table: Cells, bare: int, point: Cells
) -> int:
    """Make a point of an event's record; its kind, 0 for another event, -1 for a damaged one."""
    if size < 8:
        return -1
    kind = kinds[little(text, at, 2)]
    if kind == 0:
        return 0
    begin_point(point)
    point[KIND] = kind
    fields = table[kind * MOST_FIELDS * DESCRIPTOR :]
    for n in range(MOST_FIELDS):
        field = fields[n * DESCRIPTOR :]
        width = field[2]
        if width == 0:
            break
        offset = field[1]
        if offset + width > size:
            return -1
        value = little(text, at + offset, width)
        if field[3] and width < 8:
            sign = 1 << (8 * width - 1)
            value = (value ^ sign) - sign
        cell = field[0]
        if cell < POINT:
            point[cell] = value
            point[HAS] |= field[4]
        elif cell == ISA:
            point[HAS] |= IS_SVM if value == 2 else IS_VMX
        elif cell == HAS_ERROR and value == 0:
            point[HAS] &= ~HAS_CODE
        elif cell == REINJECTED and value:
            point[HAS] |= IS_AGAIN
        elif cell == SOFT and value:
            point[HAS] |= IS_SOFT
        elif cell == WRITE and value:
            point[HAS] |= IS_WRITE
    point[ADDRESS] = point[ADDRESS] & 0xFF if kind in (EXCEPTION, INTERRUPT) else point[ADDRESS]
    if kind == EXIT and bare:
        point[HAS] |= IS_BARE
    if point[VCPU] < 0 or point[VCPU] > 0xFFFF_FFFF:
        point[VCPU] = -1
    if point[THREAD] < 0:
        point[THREAD] = -1
    return int(kind)


@LIBRARY.entry
def page_points(
    text: Cells,
    size: int,
    long_size: int,
    cpu: int,
    kinds: Cells,
    table: Cells,
    bare: int,
    points: Cells,
    counts: Cells,
) -> int:
    """Make points of one page of a CPU's ring buffer (`size` bytes); how many.

    `points` has room for one in every eight bytes, and one more.
    """
    data = 8 + long_size
    if size < data:
        counts[DAMAGED] += 1
        return 0
    time = little(text, 0, 8)
    commit = little(text, 8, long_size)
    length = commit & 0xFFFFF
    count = 0
    if data + length > size:
        counts[DAMAGED] += 1
        length = size - data
    if commit & _MISSED_EVENTS:
        begin_point(points)
        points[KIND] = GAP
        points[CPU] = cpu
        points[TIME] = time
        if commit & _MISSED_STORED and data + length + long_size <= size:
            missed = little(text, data + length, long_size)
            points[ADDRESS] = missed if 0 < missed < 1 << 40 else 0
        count = 1
    at = data
    end = data + length
    while at + 4 <= end:
        head = little(text, at, 4)
        kind = head & 31
        delta = head >> 5
        at += 4
        if kind >= _TYPE_PADDING or kind == 0:
            if kind == _TYPE_PADDING and delta == 0:
                break
            if at + 4 > end:
                counts[DAMAGED] += 1
                break
            extra = little(text, at, 4)
            if kind == _TYPE_TIME_EXTEND:
                time += delta + (extra << 27)
                at += 4
                continue
            if kind == _TYPE_TIME_STAMP:
                latest = counts[LATEST]
                time = (extra << 27) + delta
                time |= latest >> _TIME_BITS << _TIME_BITS
                at += 4
                continue
            if kind == _TYPE_PADDING:
                if extra < 4:
                    counts[DAMAGED] += 1
                    break
                time += delta
                at += extra
                continue
            length = extra - 4
            at += 4
            # What follows is padded to four bytes.
            step = (length + 3) & ~3
        else:
            length = kind * 4
            step = length
        time += delta
        if length < 0 or at + length > end:
            counts[DAMAGED] += 1
            break
        counts[EVENTS] += 1
        point = points[count * POINT :]
        found = event_point(text, at, length, kinds, table, bare, point)
        at += step
        if found > 0:
            point[TIME] = time
            point[CPU] = cpu
            count += 1
        elif found < 0:
            counts[DAMAGED] += 1
        else:
            counts[FOREIGN] += 1
    counts[LATEST] = time
    return count


@LIBRARY.inside
def skip_read(text: Cells, at: int, end: int, form: int) -> int:
    """Where the values of counters end that a sample holds; `end` + 1 if they do not fit."""
    each = 8 + 8 * ((form & _FORMAT_ID != 0) + (form & _FORMAT_LOST != 0))
    times = 8 * ((form & _ENABLED != 0) + (form & _RUNNING != 0))
    if not form & _GROUP:
        return at + each + times
    if at + 8 > end:
        return end + 1
    number = little(text, at, 8)
    if number < 0 or number > 4096:
        return end + 1
    return at + 8 + times + number * each


@LIBRARY.inside
def sample_point(
    text: Cells,
    at: int,
    end: int,
    layouts: Cells,
    kinds: Cells,
    table: Cells,
    bare: int,
    point: Cells,
) -> int:
    """Make a point of a sample; what `event_point` says."""
    contents = layouts[0]
    form = layouts[1]
    if contents & _IDENTIFIER:
        if at + 8 > end:
            return -1
        wanted = little(text, at, 8)
        at += 8
        # Recordings of several kinds of events say which one it is.
        for n in range(layouts[2]):
            if layouts[3 + n * 3] == wanted:
                contents = layouts[4 + n * 3]
                form = layouts[5 + n * 3]
                break
    time = -1
    process = -1
    thread = -1
    cpu = -1
    if contents & _IP:
        at += 8
    if contents & _TID:
        if at + 8 > end:
            return -1
        process = little(text, at, 4)
        thread = little(text, at + 4, 4)
        at += 8
    if contents & _TIME:
        if at + 8 > end:
            return -1
        time = little(text, at, 8)
        at += 8
    at += 8 * (contents & _ADDR != 0) + 8 * (contents & _ID != 0)
    at += 8 * (contents & _STREAM_ID != 0)
    if contents & _CPU:
        if at + 8 > end:
            return -1
        cpu = little(text, at, 4)
        at += 8
    at += 8 * (contents & _PERIOD != 0)
    if contents & _READ:
        at = skip_read(text, at, end, form)
    if contents & _CALLCHAIN:
        if at + 8 > end:
            return -1
        depth = little(text, at, 8)
        if depth < 0 or depth > 65536:
            return -1
        at += 8 + 8 * depth
    if not contents & _RAW or at + 4 > end:
        return -1
    size = little(text, at, 4)
    at += 4
    if at + size > end:
        return -1
    found = event_point(text, at, size, kinds, table, bare, point)
    if found > 0:
        point[TIME] = time if time >= 0 else -1
        point[CPU] = cpu if cpu < 1 << 20 else -1
        point[PROCESS] = process if process < 1 << 31 else -1
        if thread < 1 << 31 and thread >= 0:
            point[THREAD] = thread
    return found


@LIBRARY.entry
def sample_points(
    text: Cells,
    size: int,
    layouts: Cells,
    kinds: Cells,
    table: Cells,
    bare: int,
    points: Cells,
    counts: Cells,
) -> int:
    """Make points of whole records of perf's in `size` bytes; how many.

    `counts[GOOD]` says how far whole records go; a record of a type that the caller has to
    see (from 64 on) ends the reading, before it. `points` has room for one in every 16 bytes.
    """
    count = 0
    at = 0
    while at + 8 <= size:
        kind = little(text, at, 4)
        length = little(text, at + 6, 2)
        if length < 8:
            counts[DAMAGED] += 1
            counts[GOOD] = -1
            return count
        if kind >= 64 or at + length > size:
            break
        point = points[count * POINT :]
        if kind == _SAMPLE:
            counts[EVENTS] += 1
            found = sample_point(text, at + 8, at + length, layouts, kinds, table, bare, point)
            if found > 0:
                count += 1
            elif found < 0:
                counts[DAMAGED] += 1
            else:
                counts[FOREIGN] += 1
        elif (kind == _LOST and length >= 24) or (kind == _LOST_SAMPLES and length >= 16):
            begin_point(point)
            point[KIND] = GAP
            lost = little(text, at + (16 if kind == _LOST else 8), 8)
            point[ADDRESS] = lost if 0 < lost < 1 << 40 else 0
            count += 1
        at += length
    counts[GOOD] = at
    return count
