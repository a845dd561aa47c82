"""Physical memory: little endian at any alignment, nothing beyond its end."""

from collections.abc import Callable

import numpy as np
import pytest

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
