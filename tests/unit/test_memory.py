"""Physical memory: little endian at any alignment, nothing beyond its end."""

from collections.abc import Callable

import numpy as np
import pytest

from trapgate.compiler import raw
from trapgate.compiler.dialect import Cells
from trapgate.paging import memory

Load = Callable[[Cells, int], int]
Store = Callable[[Cells, int, int], None]

ACCESSES: dict[int, tuple[Load, Store]] = {
    1: (memory.load8, memory.store8),
    2: (memory.load16, memory.store16),
    4: (memory.load32, memory.store32),
    8: (memory.load64, memory.store64),
}
SIZE = 32


def ram() -> Cells:
    return np.frombuffer(bytes(range(0xE0, 0xE0 + SIZE)), np.int64).copy()


def expected(data: bytes, size: int) -> int:
    return int.from_bytes(data, "little", signed=size == 8)


@pytest.mark.parametrize("size", ACCESSES)
@pytest.mark.parametrize("address", range(-9, SIZE + 9))
def test_loads(address: int, size: int) -> None:
    mem = ram()
    image = mem.tobytes()
    wanted = bytes(image[a] if 0 <= a < SIZE else 0xFF for a in range(address, address + size))
    assert ACCESSES[size][0](mem, address) == expected(wanted, size)


@pytest.mark.parametrize("size", ACCESSES)
@pytest.mark.parametrize("address", range(-9, SIZE + 9))
@pytest.mark.parametrize("value", [0, -1, 0x0123_4567_89AB_CDEF, -0x0123_4567_89AB_CDEF])
def test_stores(address: int, size: int, value: int) -> None:
    mem = ram()
    image = bytearray(mem.tobytes())
    for n, byte in enumerate(value.to_bytes(8, "little", signed=True)[:size]):
        if 0 <= address + n < SIZE:
            image[address + n] = byte
    ACCESSES[size][1](mem, address, value)
    assert mem.tobytes() == bytes(image)


@pytest.mark.parametrize("size", ACCESSES)
@pytest.mark.parametrize("address", [-(1 << 63), (1 << 63) - 9, 1 << 52])
def test_far_addresses_are_nowhere(address: int, size: int) -> None:
    mem = ram()
    before = mem.tobytes()
    ACCESSES[size][1](mem, address, 0)
    assert mem.tobytes() == before
    assert ACCESSES[size][0](mem, address) == expected(b"\xff" * size, size)


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("address", range(-1, SIZE + 2))
def test_words_that_need_no_more_care_are_aligned_and_in_ram(address: int, size: int) -> None:
    mem = ram()
    image = bytearray(mem.tobytes())
    plain = memory.stores_plainly(mem, address, size, 2)
    end = address + 2 * size
    assert plain == (address >= 0 and address % size == 0 and end < SIZE)
    if plain:
        memory.store_plainly(mem, address + size, size, -2)
        image[address + size : end] = (-2).to_bytes(size, "little", signed=True)
        assert mem.tobytes() == image


def test_words_on_watched_pages_need_care_and_others_are_noted_as_written() -> None:
    mem = np.zeros(2 * 512, np.int64)
    watch = np.zeros(memory.watch_length(2), np.int64)
    raw.watch(mem, watch)
    watch[memory.WATCH_PAGES + 1] = memory.WATCHED_PAGE
    assert memory.stores_plainly(mem, 0xFF0, 4, 4)
    assert not memory.stores_plainly(mem, 0x1FE0, 4, 4)
    assert [state & memory.WRITTEN_PAGE for state in watch[memory.WATCH_PAGES :][:2]] == [4, 0]
    assert watch[memory.WATCH_WRITTEN] == 1
