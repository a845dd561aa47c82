"""Points of KVM put together to events: an exit with what follows it until the next entry.

A vCPU is a thread of the host, so points of one thread belong together even where an old
kernel does not say which vCPU it is. What a thread has said and what may still become known
about it is a row of `state`; events about which everything is known go to `out`.
"""

from typing import Final

from trapgate.compiler.dialect import Cells
from trapgate.trace.imports.characters import LIBRARY
from trapgate.trace.imports.points import (
    ADDRESS,
    CODE,
    CONTROL_REGISTER,
    CPU,
    ENTRY,
    EXCEPTION,
    EXIT,
    GAP,
    HAS,
    HAS_CODE,
    HAS_INFO1,
    HAS_INTERRUPTION,
    HAS_REASON,
    HAS_RIP,
    INFO1,
    INFO2,
    INTERRUPT,
    INTERRUPTION,
    IS_AGAIN,
    IS_BARE,
    IS_SOFT,
    IS_WRITE,
    KIND,
    MSR,
    NESTED_EXIT,
    NESTED_INJECTION,
    NOTHING,
    PAGE_FAULT,
    PAUSE_WINDOW,
    POINT,
    PROCESS,
    REASON,
    RIP,
    SLOT,
    THREAD,
    TIME,
    VCPU,
)

# An event, as cells; most of them are a point's.
ROW: Final = 30
SEQUENCE, R_TIME, BY, R_SLOT, R_THREAD, R_PROCESS, R_VCPU = range(7)
R_REASON, R_RIP, R_INFO1, R_INFO2, R_INTERRUPTION, R_CODE, R_HAS = range(7, 14)
LATENCY, LEVEL, REFLECTED, FAULT, FAULT_ADDRESS, FAULT_CODE = range(14, 20)
IS_VECTORING, VECTOR, TYPE, UNTIMED, R_CPU = range(20, 25)
ACCESSED, OPERAND, VALUE, HAS_BEFORE, BEFORE = range(25, 30)
"""What kvm_msr or kvm_cr say of an exit: its kind (0: nothing), which one, the value, and the
value that the control register had, where that is known."""

BY_EXIT: Final = 0
BY_NESTED_EXIT: Final = 1
BY_INJECTION: Final = 2
BY_REINJECTION: Final = 3

_HELD = 4
"""Injections of a thread that may wait for the entry that carries them out."""

# A thread, as cells.
IS_WAITING: Final = 0
LAST_VCPU: Final = 1
LAST_CPU: Final = 2
LAST_TIME: Final = 3
HELD: Final = 4
IS_UNTIMED: Final = 5
"""Whether its latest point had no time."""
HAS_CR0, CR0, HAS_CR4, CR4 = range(6, 10)
"""The control registers as the guest wrote them last."""
_WAITING_ROW = 10
_HELD_ROWS = _WAITING_ROW + ROW
STATE: Final = _HELD_ROWS + _HELD * ROW

# What is counted, and what is known of the whole recording.
SEQUENCES: Final = 0
UNPAIRED: Final = 1
LOST: Final = 2
GAPS: Final = 3
STRAY: Final = 4
"""Points that belong to no exit: foreign."""
BACKWARDS: Final = 5
VECTORING: Final = 6
"""Kernels that print the RIP at entries keep the IDT-vectoring information where older ones
had the exit's own interruption information."""
LATEST: Final = 7
LAST_SLOT: Final = 8
WAITING: Final = 9
"""How many threads have an exit that waits."""
UNREAD: Final = 10
SLOTS: Final = 11
UNTIMED_POINTS: Final = 12
KNOWN: Final = 16

CPUS: Final = 4096
"""CPUs that are told apart where a recording does not tell threads."""

_EXTERNAL_INTERRUPT, _HARDWARE_EXCEPTION, _SOFTWARE_INTERRUPT = 0, 3, 4
_VALID = 1 << 31


@LIBRARY.inside
def begin_row(row: Cells, point: Cells, known: Cells, by: int) -> int:
    """A new event from a point; 0."""
    for n in range(ROW):
        row[n] = 0
    row[SEQUENCE] = known[SEQUENCES]
    known[SEQUENCES] += 1
    row[R_TIME] = point[TIME]
    row[BY] = by
    row[R_SLOT] = point[SLOT]
    row[R_THREAD] = point[THREAD]
    row[R_PROCESS] = point[PROCESS]
    row[R_CPU] = point[CPU]
    row[R_VCPU] = -1
    row[R_REASON] = -1
    row[LATENCY] = -1
    row[LEVEL] = -1
    return 0


@LIBRARY.inside
def describe_row(row: Cells, point: Cells) -> int:
    """Take an exit's fields from a point; 0."""
    row[R_REASON] = point[REASON]
    row[R_RIP] = point[RIP]
    row[R_INFO1] = point[INFO1]
    row[R_INFO2] = point[INFO2]
    row[R_INTERRUPTION] = point[INTERRUPTION]
    row[R_CODE] = point[CODE]
    row[R_HAS] = point[HAS]
    return 0


@LIBRARY.inside
def emit(row: Cells, state: Cells, out: Cells, count: int) -> int:
    """Give an event away; how many there are now."""
    row[R_VCPU] = state[LAST_VCPU]
    target = out[count * ROW :]
    for n in range(ROW):
        target[n] = row[n]
    return count + 1


@LIBRARY.inside
def emit_held(state: Cells, out: Cells, count: int) -> int:
    """Give away the injections that wait; how many events there are now."""
    for n in range(state[HELD]):
        count = emit(state[_HELD_ROWS + n * ROW :], state, out, count)
    state[HELD] = 0
    return count


@LIBRARY.inside
def release(state: Cells, known: Cells, out: Cells, count: int) -> int:
    """Give away what waits, without a latency; how many events there are now."""
    if state[IS_WAITING]:
        state[IS_WAITING] = 0
        known[WAITING] -= 1
        known[UNPAIRED] += 1
        row = state[_WAITING_ROW:]
        row[IS_VECTORING] = known[VECTORING]
        count = emit(row, state, out, count)
    return emit_held(state, out, count)


@LIBRARY.inside
def take_exit(state: Cells, point: Cells, known: Cells, by: int) -> int:
    """An exit that from now on waits for its entry; 0."""
    row = state[_WAITING_ROW:]
    begin_row(row, point, known, by)
    describe_row(row, point)
    row[LEVEL] = 1 + (by == BY_NESTED_EXIT)
    row[UNTIMED] = state[IS_UNTIMED]
    state[IS_WAITING] = 1
    known[WAITING] += 1
    return 0


@LIBRARY.inside
def take_injection(state: Cells, point: Cells, known: Cells, out: Cells, count: int) -> int:
    """An injection, which waits for the entry that carries it out; how many events now."""
    if state[HELD] == _HELD:
        count = emit_held(state, out, count)
    row = state[_HELD_ROWS + state[HELD] * ROW :]
    begin_row(row, point, known, BY_REINJECTION if point[HAS] & IS_AGAIN else BY_INJECTION)
    row[VECTOR] = point[ADDRESS] & 0xFF
    row[TYPE] = _HARDWARE_EXCEPTION
    if point[KIND] == INTERRUPT:
        row[TYPE] = _SOFTWARE_INTERRUPT if point[HAS] & IS_SOFT else _EXTERNAL_INTERRUPT
    row[R_CODE] = point[CODE]
    row[R_HAS] = point[HAS] & HAS_CODE
    row[UNTIMED] = state[IS_UNTIMED]
    state[HELD] += 1
    return count


@LIBRARY.inside
def take_entry(state: Cells, point: Cells, known: Cells, out: Cells, count: int) -> int:
    """An entry: it ends the exit that waits, and may say what it injects; how many events now."""
    has = point[HAS]
    if has & HAS_RIP:
        known[VECTORING] = 1
    if state[IS_WAITING]:
        state[IS_WAITING] = 0
        known[WAITING] -= 1
        row = state[_WAITING_ROW:]
        row[IS_VECTORING] = known[VECTORING]
        if row[R_TIME] >= 0 and point[TIME] >= row[R_TIME] and not row[UNTIMED] | state[IS_UNTIMED]:
            row[LATENCY] = point[TIME] - row[R_TIME]
        elif not state[IS_UNTIMED] and not row[UNTIMED]:
            known[UNPAIRED] += 1
        count = emit(row, state, out, count)
    information = point[INTERRUPTION]
    if has & HAS_INTERRUPTION and information & _VALID and not information >> 32:
        vector = information & 0xFF
        place = -1
        for n in range(state[HELD]):
            if state[_HELD_ROWS + n * ROW + VECTOR] == vector:
                place = n
        if place < 0:
            # What no kvm_inj_exception has told.
            if state[HELD] == _HELD:
                count = emit_held(state, out, count)
            place = state[HELD]
            row = state[_HELD_ROWS + place * ROW :]
            begin_row(row, point, known, BY_INJECTION)
            row[VECTOR] = vector
            row[TYPE] = information >> 8 & 7
            row[UNTIMED] = state[IS_UNTIMED]
            state[HELD] += 1
        row = state[_HELD_ROWS + place * ROW :]
        row[R_RIP] = point[RIP]
        row[R_HAS] |= has & HAS_RIP
        if information >> 11 & 1 and has & HAS_CODE:
            row[R_CODE] = point[CODE]
            row[R_HAS] |= HAS_CODE
    return emit_held(state, out, count)


@LIBRARY.inside
def take_nested(state: Cells, point: Cells, known: Cells) -> int:
    """What KVM says of an exit of a guest's guest; 0."""
    row = state[_WAITING_ROW:]
    if not state[IS_WAITING]:
        if not point[HAS] & HAS_REASON or not point[HAS] & HAS_INFO1:
            known[UNREAD] += 1
            return 0
        # Recorded without kvm_exit: the event itself is all there is.
        take_exit(state, point, known, BY_NESTED_EXIT)
    elif point[KIND] == NESTED_EXIT and row[R_HAS] & IS_BARE and point[HAS] & HAS_INFO1:
        # The same exit, with the names that kvm_exit lacks.
        reason = row[R_REASON]
        rip = row[R_RIP]
        has = row[R_HAS] & HAS_RIP
        describe_row(row, point)
        row[R_REASON] = reason
        if has:
            row[R_RIP] = rip
            row[R_HAS] |= HAS_RIP
    row[LEVEL] = 2
    if point[KIND] == NESTED_INJECTION:
        row[REFLECTED] = 1
    return 0


@LIBRARY.inside
def take_access(state: Cells, point: Cells, known: Cells) -> int:
    """Which MSR or control register the exit that waits accesses, and the value (of a loop of
    PAUSEs the window in force); 0.

    A guest's guest has registers of its own, of which nothing is kept.
    """
    has_before = 0
    before = 0
    register = point[ADDRESS]
    row = state[_WAITING_ROW:]
    own = not state[IS_WAITING] or row[LEVEL] != 2
    if own and point[KIND] == CONTROL_REGISTER and point[HAS] & IS_WRITE and register in (0, 4):
        cell = HAS_CR0 if register == 0 else HAS_CR4
        has_before = state[cell]
        before = state[cell + 1]
        state[cell] = 1
        state[cell + 1] = point[INFO1]
    if not state[IS_WAITING]:
        known[STRAY] += 1
    elif not row[ACCESSED]:
        row[ACCESSED] = point[KIND]
        row[OPERAND] = register
        row[VALUE] = point[INFO1]
        row[HAS_BEFORE] = has_before
        row[BEFORE] = before
    return 0


@LIBRARY.inside
def placed(point: Cells, known: Cells, cpus: Cells) -> int:
    """The number of the point's thread; where it is not told, of whoever ran on its CPU last."""
    slot = int(point[SLOT])
    cpu = point[CPU] % CPUS if point[CPU] >= 0 else -1
    if slot < 0:
        slot = int(cpus[cpu]) if cpu >= 0 and cpus[cpu] >= 0 else int(known[LAST_SLOT])
        point[SLOT] = slot
    elif cpu >= 0:
        cpus[cpu] = slot
    known[LAST_SLOT] = slot
    return slot


@LIBRARY.entry
def pair(points: Cells, size: int, states: Cells, known: Cells, cpus: Cells, out: Cells) -> int:
    """Put points together; how many events went to `out`.

    `out` must have room for what waits in `states` and two events for each point.
    """
    count = 0
    for at in range(size):
        point = points[at * POINT :]
        kind = point[KIND]
        if kind == NOTHING:
            continue
        if kind == GAP:
            known[LOST] += point[ADDRESS]
            known[GAPS] += 1
            # What was lost may have been the entry of an exit that waits.
            if known[WAITING]:
                for slot in range(known[SLOTS]):
                    state = states[slot * STATE :]
                    if state[IS_WAITING] and point[CPU] in (-1, state[LAST_CPU]):
                        count = release(state, known, out, count)
            continue
        state = states[placed(point, known, cpus) * STATE :]
        if point[TIME] < 0:
            # The order is known, and the time of what came before.
            point[TIME] = known[LATEST]
            known[UNTIMED_POINTS] += 1
            state[IS_UNTIMED] = 1
        else:
            state[IS_UNTIMED] = 0
            if point[TIME] < state[LAST_TIME]:
                known[BACKWARDS] += 1
            state[LAST_TIME] = point[TIME]
            known[LATEST] = point[TIME]
        if point[CPU] >= 0:
            state[LAST_CPU] = point[CPU]
        if point[VCPU] >= 0:
            state[LAST_VCPU] = point[VCPU]
        if kind == EXIT:
            count = release(state, known, out, count)
            take_exit(state, point, known, BY_EXIT)
        elif kind == ENTRY:
            count = take_entry(state, point, known, out, count)
        elif kind == PAGE_FAULT:
            if state[IS_WAITING]:
                row = state[_WAITING_ROW:]
                row[FAULT] = 1
                row[FAULT_ADDRESS] = point[ADDRESS]
                row[FAULT_CODE] = point[CODE]
            else:
                known[STRAY] += 1
        elif kind in (EXCEPTION, INTERRUPT):
            count = take_injection(state, point, known, out, count)
        elif kind in (NESTED_EXIT, NESTED_INJECTION):
            take_nested(state, point, known)
        elif kind in (MSR, CONTROL_REGISTER, PAUSE_WINDOW):
            take_access(state, point, known)
    return count


@LIBRARY.entry
def finish(states: Cells, known: Cells, out: Cells) -> int:
    """Give away all that waits: no more points; how many events went to `out`."""
    count = 0
    for slot in range(known[SLOTS]):
        count = release(states[slot * STATE :], known, out, count)
    return count
