"""Ports that are answered where the guest runs: what its VMM has said of them beforehand.

A VMM that emulates a device knows often what the next access will find: a status that only
its own doings change, a timer that follows the virtual clock, a transmitter that takes a byte
at any time. It says so in a table of slots, and what `answer` does about a VM exit is what the
VMM would do. All accesses that the table does not name go to the VMM.

The table is an array of cells: a head, `SLOTS` slots of `WIDTH` cells, and a queue of bytes that
were sent. The VMM takes them, and the counts in the head, when it has the processor next.
"""

from trapgate.compiler.dialect import Cells, core
from trapgate.sdm.cells import EXIT_QUALIFICATION
from trapgate.sdm.registers import RAX

ANSWERED = 0
"""How many exits were answered."""
SKIPPED = 1
"""How many instructions' time has passed for slow accesses."""
QUEUED = 2
"""How many bytes wait in the queue."""
HEAD = 3

SLOTS = 16
WIDTH = 8
ACCESS = 0
"""Of a slot: the exit qualification of the access that it answers, see `access`."""
KIND = 1
VALUE = 2
READS = 3
"""How often it was read; a byte that is sent takes one off that of slot PARTNER."""
WAIT = 4
"""How many instructions' time an access takes."""
TICKS, SECOND = 5, 6
"""A clock's ticks a second, and the instructions of a second."""
PARTNER = 7

QUEUE = HEAD + SLOTS * WIDTH
QUEUE_LENGTH = 1024
LENGTH = QUEUE + QUEUE_LENGTH

ASK = 0
"""KIND: the VMM is asked."""
LATCH = 1
"""A load finds VALUE."""
CLOCK = 2
"""A load finds the ticks so far, as many bits as are 1 in VALUE."""
KEEP = 3
"""A store changes VALUE."""
SEND = 4
"""A store puts a byte into the queue, while there is room."""

IS_IN = 1 << 3
_IMMEDIATE = 1 << 6
"""Of an exit qualification: the port stands in the instruction."""


@core
def access(port: int, size: int, is_in: bool) -> int:
    """The exit qualification of IN or OUT of `size` bytes, 1, 2 or 4, at `port` in DX."""
    return port << 16 | is_in << 3 | size - 1


@core
def ticks(time: int, hertz: int, second: int) -> int:
    """How many ticks of a clock have passed at a virtual time, in 64 bits all the way."""
    return time // second * hertz + time % second * hertz // second


@core
def slot_of(p: Cells, qualification: int) -> int:
    """Where the slot begins that answers an I/O exit with this qualification; -1: ask the VMM."""
    for n in range(SLOTS):
        at = HEAD + n * WIDTH
        if p[at + ACCESS] == qualification:
            full = p[at + KIND] == SEND and p[QUEUED] >= QUEUE_LENGTH
            return -1 if p[at + KIND] == ASK or full else at
    return -1


@core
def load(p: Cells, at: int, time: int) -> int:
    """What a load finds that the slot at `at` answers, at a virtual time."""
    p[ANSWERED] += 1
    p[SKIPPED] += p[at + WAIT]
    if p[at + KIND] == CLOCK:
        return int(ticks(time, p[at + TICKS], p[at + SECOND]) & p[at + VALUE])
    p[at + READS] += 1
    return int(p[at + VALUE])


@core
def store(p: Cells, at: int, value: int) -> None:
    """Carry out a store that the slot at `at` answers."""
    p[ANSWERED] += 1
    p[SKIPPED] += p[at + WAIT]
    if p[at + KIND] == KEEP:
        p[at + VALUE] = value
        return
    p[QUEUE + p[QUEUED]] = value
    p[QUEUED] += 1
    reads = HEAD + p[at + PARTNER] * WIDTH + READS
    p[reads] -= 1 if p[reads] > 0 else 0


@core
def answer(p: Cells, v: Cells, r: Cells, time: int) -> int:
    """Answer the I/O exit that `v` reports, at a virtual time; how much of that passes.

    The instruction is done then, but for RIP. -1: it is for the VMM, and nothing has changed.
    """
    qualification = v[EXIT_QUALIFICATION] & ~_IMMEDIATE
    at = slot_of(p, qualification)
    if at < 0:
        return -1
    bits = 8 * ((qualification & 7) + 1)
    mask = (1 << bits) - 1
    if qualification & IS_IN:
        value = load(p, at, time) & mask
        r[RAX] = value if bits == 32 else r[RAX] & ~mask | value
    else:
        store(p, at, r[RAX] & mask)
    return int(p[at + WAIT])
