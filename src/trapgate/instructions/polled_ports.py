"""Ports that are answered where the guest runs: what its VMM has said of them beforehand.

A VMM that emulates a device knows often what the next access will find: a status that only
its own doings change, a timer that follows the virtual clock, a transmitter that takes a byte
at any time. It says so in a table of slots, and what `answer` does about a VM exit is what the
VMM would do. All accesses that the table does not name go to the VMM.

The table is an array of cells: a head, `SLOTS` slots of `WIDTH` cells, a queue of bytes that
were sent, and a bit for each byte that the VMM wants to see before the guest continues. The VMM
takes the bytes, and the counts in the head, when it has the processor next.
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

SLOTS = 32
WIDTH = 12
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
"""The number of another slot that has to do with this one."""
UNTIL = 8
"""At which tick the VMM is to be asked again. Of UPDATING: when in a second an update begins."""
START, RELOAD, MODE = 9, 10, 11
"""Of an 8254's counter: the tick at which it began to count, and how it counts. START of a slot
that sends: how many bytes it has sent."""

QUEUE = HEAD + SLOTS * WIDTH
QUEUE_LENGTH = 1024
EXPECTED = QUEUE + QUEUE_LENGTH
"""Those bits: byte n's is bit n % 64 of cell n // 64."""
BLOCKS = EXPECTED + 4
BLOCK_CELLS = 512
"""Two blocks of bytes that devices have for loads or take from stores, one after the other: where,
and how long."""
LENGTH = BLOCKS + 2 * BLOCK_CELLS

ASK = 0
"""KIND: the VMM is asked."""
LATCH = 1
"""A load finds VALUE."""
CLOCK = 2
"""A load finds the ticks so far, as many bits as are 1 in VALUE."""
KEEP = 3
"""A store changes VALUE."""
SEND = 4
"""A store puts a byte into the queue, while there is room, unless the byte is expected."""
SPEAKER = 5
"""A load finds VALUE until the tick UNTIL, and in bit 4 the refresh of memory."""
COUNTER = 6
"""A load finds a byte of a counter, low and high in turns (READS): of VALUE, which is latched, or
of what it counts if VALUE is -1."""
COMMAND = 7
"""A store of a command that latches one of three counters, from slot PARTNER on."""
UPDATING = 8
"""A load finds VALUE, and in bit 7 whether the clock's update is under way, if the index in slot
PARTNER selects register A; and RELOAD, if it selects the seconds, as long as START is the number of
the second."""
TOGGLE = 9
"""A load finds VALUE, of which it has inverted the bits that are 1 in RELOAD."""
BLOCK = 10
"""A load finds the next bytes of block VALUE. How many have been found is in START of slot
PARTNER, and before the one with number UNTIL of that slot the VMM is to be asked."""
TAKE = 11
"""A store puts its bytes into block VALUE; how many are there, and UNTIL when, stands as for
BLOCK."""
REFRESH_TICKS = 18
"""The memory refresh toggles about every 15 us."""
_REGISTER_A, _SECONDS = 0x0A, 0x00

IS_IN = 1 << 3
_IMMEDIATE = 1 << 6
"""Of an exit qualification: the port is in the instruction."""


@core
def access(port: int, size: int, is_in: bool) -> int:
    """The exit qualification of IN or OUT of `size` bytes, 1, 2 or 4, at `port` in DX."""
    return port << 16 | is_in << 3 | size - 1


@core
def load_from(address: int) -> int:
    """What is in ACCESS for a load of 32 bits from a device's page, at a physical address."""
    return 1 << 48 | address


@core
def latched(p: Cells, address: int, size: int) -> int:
    """The 32 bits that a load from a device's page finds, if they are known; else -1."""
    wanted = load_from(address)
    for n in range(SLOTS):
        at = HEAD + n * WIDTH
        if p[at + ACCESS] == wanted and size == 4:
            return int(p[at + VALUE])
    return -1


@core
def ticks(time: int, hertz: int, second: int) -> int:
    """How many ticks of a clock have passed at a virtual time, in 64 bits all the way."""
    return time // second * hertz + time % second * hertz // second


@core
def counter_value(mode: int, reload: int, passed: int) -> int:
    """What an 8254's counter of 16 bits has come to after so many ticks; binary, and not cut."""
    if mode == 2:
        return reload - passed % reload
    if mode == 3:
        phase = passed % reload
        high = (reload + 1) // 2
        return (reload & ~1) - 2 * (phase if phase < high else phase - high)
    return reload - passed


@core
def current_count(p: Cells, at: int, time: int) -> int:
    """What the counter of the slot at `at` has come to."""
    passed = ticks(time, p[at + TICKS], p[at + SECOND]) - p[at + START]
    return counter_value(p[at + MODE], p[at + RELOAD], max(passed, 0)) & 0xFFFF


@core
def width_of_access(p: Cells, at: int) -> int:
    """How many bytes an access to the slot at `at` moves."""
    return int((p[at + ACCESS] & 7) + 1)


@core
def partner_slot(p: Cells, at: int) -> int:
    """Where the slot begins that has to do with the one at `at`."""
    return int(HEAD + p[at + PARTNER] * WIDTH)


@core
def block_bytes_left(p: Cells, at: int) -> int:
    """How many bytes of a block, or how much room in it, the slot at `at` has left."""
    of = partner_slot(p, at)
    return int(p[of + UNTIL] - p[of + START])


@core
def take_block_bytes(p: Cells, at: int) -> int:
    """The next bytes of a block, for the slot at `at`."""
    of = partner_slot(p, at)
    first = p[of + START]
    size = width_of_access(p, at)
    p[of + START] = first + size
    value = 0
    for n in range(size):
        place = first + n
        cell = p[BLOCKS + p[at + VALUE] * BLOCK_CELLS + (place >> 3)]
        value |= ((cell >> (8 * (place & 7))) & 0xFF) << (8 * n)
    return value


@core
def put_block_bytes(p: Cells, at: int, value: int) -> None:
    """Put what is stored after the bytes of a block, for the slot at `at`."""
    of = partner_slot(p, at)
    first = p[of + START]
    size = width_of_access(p, at)
    p[of + START] = first + size
    for n in range(size):
        cell = BLOCKS + p[at + VALUE] * BLOCK_CELLS + ((first + n) >> 3)
        shift = 8 * ((first + n) & 7)
        changes = ((p[cell] >> shift) ^ (value >> (8 * n))) & 0xFF
        if shift == 56 and changes > 0x7F:
            changes -= 0x100
        p[cell] ^= changes << shift


@core
def selected_register(p: Cells, at: int) -> int:
    """The register of the CMOS clock that the slot at `at` means now."""
    return int(p[partner_slot(p, at) + VALUE] & 0x7F)


@core
def needs_vmm(p: Cells, at: int, time: int, value: int) -> bool:
    """Whether the VMM has to be asked about an access to the slot at `at`, a store of `value`."""
    kind = p[at + KIND]
    if kind == SEND:
        expected = (p[EXPECTED + ((value >> 6) & 3)] >> (value & 63)) & 1
        return bool(p[QUEUED] >= QUEUE_LENGTH or expected != 0)
    if kind == SPEAKER:
        return bool(ticks(time, p[at + TICKS], p[at + SECOND]) >= p[at + UNTIL])
    if kind == UPDATING:
        index = selected_register(p, at)
        if index == _SECONDS:
            return bool(time // p[at + SECOND] != p[at + START])
        return bool(index != _REGISTER_A)
    if kind == COMMAND:
        counter = HEAD + (p[at + PARTNER] + (value >> 6)) * WIDTH
        return value & 0x30 != 0 or value >> 6 == 3 or bool(p[counter + KIND] != COUNTER)
    if kind in (BLOCK, TAKE):
        return bool(block_bytes_left(p, at) < width_of_access(p, at))
    return bool(kind == ASK)


@core
def slot_about(p: Cells, qualification: int) -> int:
    """Where the slot begins that is about I/O exits with this qualification; -1: there is none."""
    for n in range(SLOTS):
        at = HEAD + n * WIDTH
        if p[at + ACCESS] == qualification:
            return at
    return -1


@core
def slot_of(p: Cells, qualification: int, time: int, value: int) -> int:
    """Where the slot begins that answers an I/O exit with this qualification; -1: ask the VMM."""
    at = slot_about(p, qualification)
    return -1 if at < 0 or needs_vmm(p, at, time, value) else at


@core
def load(p: Cells, at: int, time: int) -> int:
    """What a load finds that the slot at `at` answers, at a virtual time."""
    p[ANSWERED] += 1
    p[SKIPPED] += p[at + WAIT]
    kind = p[at + KIND]
    if kind == CLOCK:
        return int(ticks(time, p[at + TICKS], p[at + SECOND]) & p[at + VALUE])
    if kind == SPEAKER:
        tick = ticks(time, p[at + TICKS], p[at + SECOND])
        return int(p[at + VALUE] | (tick // REFRESH_TICKS & 1) << 4)
    if kind == UPDATING:
        if selected_register(p, at) == _SECONDS:
            return int(p[at + RELOAD])
        updates = time % p[at + SECOND] >= p[at + UNTIL]
        return int(p[at + VALUE] | updates << 7)
    if kind == COUNTER:
        value = p[at + VALUE] if p[at + VALUE] >= 0 else current_count(p, at, time)
        p[at + READS] ^= 1
        if p[at + READS]:
            return int(value & 0xFF)
        p[at + VALUE] = -1
        return int(value >> 8)
    if kind == BLOCK:
        return take_block_bytes(p, at)
    if kind == TOGGLE:
        p[at + VALUE] ^= p[at + RELOAD]
    p[at + READS] += 1
    return int(p[at + VALUE])


@core
def store(p: Cells, at: int, time: int, value: int) -> None:
    """Carry out a store that the slot at `at` answers, at a virtual time."""
    p[ANSWERED] += 1
    p[SKIPPED] += p[at + WAIT]
    kind = p[at + KIND]
    if kind == KEEP:
        p[at + VALUE] = value
    elif kind == COMMAND:
        counter = HEAD + (p[at + PARTNER] + (value >> 6)) * WIDTH
        if p[counter + VALUE] < 0:
            p[counter + VALUE] = current_count(p, counter, time)
    elif kind == TAKE:
        put_block_bytes(p, at, value)
    else:
        p[QUEUE + p[QUEUED]] = value
        p[QUEUED] += 1
        reads = partner_slot(p, at) + READS
        p[reads] -= 1 if p[reads] > 0 else 0
        p[at + START] += 1


@core
def answer(p: Cells, v: Cells, r: Cells, time: int) -> int:
    """Answer the I/O exit that `v` reports, at a virtual time; how much of that passes.

    The instruction is done then, but for RIP. -1: it is for the VMM, and nothing has changed.
    """
    qualification = v[EXIT_QUALIFICATION] & ~_IMMEDIATE
    bits = 8 * ((qualification & 7) + 1)
    mask = (1 << bits) - 1
    at = slot_of(p, qualification, time, r[RAX] & mask)
    if at < 0:
        return -1
    if qualification & IS_IN:
        value = load(p, at, time) & mask
        r[RAX] = value if bits == 32 else r[RAX] & ~mask | value
    else:
        store(p, at, time, r[RAX] & mask)
    return int(p[at + WAIT])
