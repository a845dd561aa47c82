"""The journal: what a row says, what is counted, and how a row is corrected."""

import numpy as np
import pytest

from tests.unit.core_guest import Guest
from trapgate.events import journal as j
from trapgate.events.journal import change_disposition, change_to_delivered, record

NAMES = {name: getattr(j, name) for name in dir(j) if name.startswith("ROW_")}


def write(guest: Guest, vector: int = 14, *, disposition: int = 0, depth: int = 2) -> None:
    record(guest.v, guest.rows, guest.head, vector, 3, 7, 0x1234, disposition, 5, depth, 1)


def test_a_row_says_all() -> None:
    guest = Guest(ring=3)
    guest.set(GUEST_RIP=0x111, GUEST_CR3=0x222)
    for cell, value in (
        (j.HEAD_TIME, 0x333),
        (j.HEAD_VM, 4),
        (j.HEAD_SEQUENCE, 5),
        (j.HEAD_GENERATION, 9),
        (j.HEAD_CURRENT, 0x777),
        (j.HEAD_ENTRY, 1),
        (j.HEAD_DATA, 0x888),
        (j.HEAD_OLD_VALUE, 0x999),
        (j.HEAD_CPU, 3),
    ):
        guest.head[cell] = value
    guest.rows[:] = -1
    write(guest)
    row = guest.rows[5]
    assert {name: int(row[cell]) for name, cell in NAMES.items() if name != "ROW_WIDTH"} == {
        "ROW_SEQUENCE": 5,
        "ROW_TIME": 0x333,
        "ROW_VM": 4,
        "ROW_VECTOR": 14,
        "ROW_TYPE": 3,
        "ROW_ERROR_CODE": 7,
        "ROW_RIP": 0x111,
        "ROW_CPL": 3,
        "ROW_CR3": 0x222,
        "ROW_ADDRESS": 0x1234,
        "ROW_DATA": 0x888,
        "ROW_ENTRY": 1,
        "ROW_DISPOSITION": 0,
        "ROW_REASON": 5,
        "ROW_DEPTH": 2,
        "ROW_INJECTED": 1,
        "ROW_VMCS": 9,
        "ROW_OLD_VALUE": 0x999,
        "ROW_CURRENT": 0x777,
        "ROW_CPU": 3,
    }
    assert (np.delete(guest.rows, 5, axis=0) == -1).all()
    assert guest.head[j.HEAD_ENTRY] == 0, "it was this event's data"
    assert guest.head[j.HEAD_SEQUENCE] == 6
    write(guest)
    assert [int(guest.rows[6][cell]) for cell in (j.ROW_DATA, j.ROW_ENTRY, j.ROW_OLD_VALUE)] == [
        0,
        0,
        0,
    ]


@pytest.mark.parametrize("rights", [0, 0x20, 0x40, 0x60, 0x93, 0xF3])
def test_the_privilege_level_is_that_of_the_stack(rights: int) -> None:
    guest = Guest()
    guest.set(GUEST_SS_ACCESS_RIGHTS=rights)
    write(guest)
    assert guest.rows[0][j.ROW_CPL] == rights >> 5 & 3


def test_a_full_ring_overwrites_its_oldest_rows() -> None:
    guest = Guest()
    guest.head[j.HEAD_CAPACITY] = 3
    for n in range(5):
        assert guest.head[j.HEAD_USED] == min(n, 3)
        write(guest, n)
    assert [int(row[j.ROW_VECTOR]) for row in guest.rows[:4]] == [3, 4, 2, 0]
    assert guest.head[j.HEAD_USED] == 3


def test_without_room_only_counts_are_kept() -> None:
    guest = Guest()
    guest.head[j.HEAD_CAPACITY] = 0
    guest.rows[:] = -1
    write(guest)
    change_disposition(guest.rows, guest.head, 14, 3, 1, 9)
    assert (guest.rows == -1).all()
    assert guest.head[j.HEAD_USED] == 0
    assert guest.head[j.HEAD_SEQUENCE] == 1
    guest.head[j.HEAD_CAPACITY] = 1
    write(guest)
    assert guest.head[j.HEAD_USED] == 1


def test_the_last_row_is_corrected() -> None:
    guest = Guest()
    guest.head[j.HEAD_CAPACITY] = 2
    for vector in (6, 7, 8):
        write(guest, vector, disposition=1)
    before = guest.rows.copy()
    change_disposition(guest.rows, guest.head, 8, 3, 0, 14)
    before[0][j.ROW_DISPOSITION] = 0
    before[0][j.ROW_REASON] = 14
    assert (guest.rows == before).all()


def test_events_are_counted_by_level_type_and_vector() -> None:
    guest = Guest()
    for level, kind, vector, disposition, times in (
        (0, 3, 16, 1, 1),
        (0, 4, 16, 1, 2),
        (0, 0, 255, 0, 3),
        (1, 4, 16, 2, 4),
        (1, 7, 255, 1, 5),
    ):
        guest.head[j.HEAD_LEVEL] = level
        for _ in range(times):
            record(guest.v, guest.rows, guest.head, vector, kind, -1, 0, disposition, 0, 0, 0)
    counts = guest.head[j.HEAD_COUNTS :][: 2 * 8 * 256 * 3].reshape(2, 8, 256, 3)
    found = {tuple(map(int, at)): int(counts[tuple(at)]) for at in np.argwhere(counts)}
    assert found == {
        (0, 3, 16, 1): 1,
        (0, 4, 16, 1): 2,
        (0, 0, 255, 0): 3,
        (1, 4, 16, 2): 4,
        (1, 7, 255, 1): 5,
    }
    guest.head[j.HEAD_LEVEL] = 0
    change_disposition(guest.rows, guest.head, 16, 4, 0, 9)
    assert counts[0, 4, 16].tolist() == [1, 1, 0]
    assert counts[0, 3, 16].tolist() == [0, 1, 0]
    guest.head[j.HEAD_LEVEL] = 1
    change_disposition(guest.rows, guest.head, 255, 7, 0, 9)
    assert counts[1, 7, 255].tolist() == [1, 4, 0]
    change_disposition(guest.rows, guest.head, 255, 7, 2, 9)
    assert counts[1, 7, 255].tolist() == [1, 3, 1]


def test_completed_faults_are_counted_by_reason() -> None:
    guest = Guest()
    for disposition, reason, times in ((2, 0, 1), (2, 3, 2), (2, 15, 4), (2, 0x12, 8), (1, 3, 16)):
        for _ in range(times):
            record(guest.v, guest.rows, guest.head, 14, 3, 3, 0, disposition, reason, 0, 0)
    completed = guest.head[j.HEAD_COMPLETED :]
    assert {n: int(count) for n, count in enumerate(completed) if count} == {
        0: 1,
        2: 8,
        3: 2,
        15: 4,
    }


def test_an_event_that_did_not_exit_is_recorded_as_delivered() -> None:
    guest = Guest()
    guest.head[j.HEAD_CAPACITY] = 3
    guest.head[j.HEAD_LEVEL] = 1
    for vector in (6, 7, 8, 32):
        write(guest, vector)
    before = guest.rows.copy()
    change_to_delivered(guest.head, guest.rows, 32, 3)
    before[0][j.ROW_DISPOSITION] = 1
    assert (guest.rows == before).all()
    counts = guest.head[j.HEAD_COUNTS :][: 2 * 8 * 256 * 3].reshape(2, 8, 256, 3)
    assert counts[1, 3, 32].tolist() == [0, 1, 0]
    assert counts.sum() == 4


@pytest.mark.parametrize("correct", ["change_disposition", "change_to_delivered"])
@pytest.mark.parametrize("capacity", [0, 1])
def test_a_row_is_corrected_if_there_is_one(correct: str, capacity: int) -> None:
    guest = Guest()
    guest.head[j.HEAD_CAPACITY] = capacity
    write(guest, disposition=0 if correct == "change_to_delivered" else 1)
    if correct == "change_disposition":
        change_disposition(guest.rows, guest.head, 14, 3, 0, 9)
    else:
        change_to_delivered(guest.head, guest.rows, 14, 3)
    assert guest.rows[0][j.ROW_DISPOSITION] == (capacity if correct == "change_to_delivered" else 0)
    assert guest.rows[0][j.ROW_REASON] == capacity * (5 if correct == "change_to_delivered" else 9)
    assert (guest.rows[1:] == 0).all()
