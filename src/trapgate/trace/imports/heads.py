"""What precedes an event of KVM's in text: its words tell by their looks what they are."""

from typing import Final

from trapgate.compiler.dialect import Cells
from trapgate.trace.imports.characters import LIBRARY, decimal_number, is_blank, is_digit
from trapgate.trace.imports.points import CPU, PROCESS, THREAD, TICKS, TIME

LONGEST_HEAD: Final = 1024
"""Bytes before an event's name; what is longer is not a line of a trace."""

_SECONDS = 9_223_372_036
"""The most seconds whose nanoseconds fit a signed 64-bit integer."""


@LIBRARY.inside
def head(text: Cells, at: int, end: int, point: Cells, counts: Cells) -> bool:
    """Read what is before an event; False if a number there is too long to be one.

    A word tells by its looks what it is: `[002]` a CPU, `123.456:` a time, `4000/4001`
    process and thread, `KVM-4001` or a bare number a thread, `(4000)` a process.
    """
    if end - at > LONGEST_HEAD:
        return False
    timed = False
    opened = False
    while True:
        while at < end and is_blank(text[at]):
            at += 1
        if at >= end:
            return True
        begin = at
        while at < end and not is_blank(text[at]):
            at += 1
        stop = at
        first = text[begin]
        last = text[stop - 1]
        if first == 91 and last == 93:  # [cpu]
            cpu = decimal_number(text, begin + 1, stop - 1, 5)
            if cpu >= 0:
                point[CPU] = cpu
            continue
        if (first == 40 or opened) and last == 41:  # (process)
            process = decimal_number(text, begin + (first == 40), stop - 1, 9)
            if process >= 0 and not timed:
                point[PROCESS] = process
            opened = False
            continue
        opened = first == 40 and stop - begin == 1
        colon = text[stop - 1] == 58
        if colon:
            stop -= 1
        dash = stop
        while dash > begin and is_digit(text[dash - 1]):
            dash -= 1
        if begin < dash < stop and text[dash - 1] == 45:  # comm-4001
            if not timed and stop - dash < 10:
                point[THREAD] = decimal_number(text, dash, stop, 9)
            continue
        if not is_digit(first):
            continue
        digits = begin
        while digits < stop and is_digit(text[digits]):
            digits += 1
        if digits == stop:
            if colon:  # a raw clock
                ticks = decimal_number(text, begin, stop, 18)
                if ticks < 0:
                    return False
                if not timed:
                    point[TIME] = ticks
                    counts[TICKS] += 1
                timed = True
            elif not timed:
                point[THREAD] = decimal_number(text, begin, stop, 9)
                if point[THREAD] < 0:
                    return False
            continue
        sign = text[digits]
        if sign == 46:  # seconds
            if timed:
                continue
            whole = decimal_number(text, begin, digits, 11)
            length = stop - digits - 1
            fraction = decimal_number(text, digits + 1, stop, 9)
            if whole < 0 or fraction < 0:
                if colon:
                    return False
                continue
            if whole >= _SECONDS:
                return False
            while length < 9:
                fraction *= 10
                length += 1
            point[TIME] = whole * 1_000_000_000 + fraction
            timed = True
        elif sign == 117 and digits + 1 < stop and text[digits + 1] == 115:  # us
            micro = decimal_number(text, begin, digits, 15)
            if micro < 0:
                return False
            point[TIME] = micro * 1000
            timed = True
        elif sign == 47:  # process/thread
            process = decimal_number(text, begin, digits, 9)
            thread = decimal_number(text, digits + 1, stop, 9)
            if process >= 0 and thread >= 0:
                point[PROCESS] = process
                point[THREAD] = thread
        elif digits - begin < 6 and stop - digits > 3 and not timed and point[THREAD] >= 0:
            # The latency format: a CPU with flags after it.
            point[CPU] = decimal_number(text, begin, digits, 5)
