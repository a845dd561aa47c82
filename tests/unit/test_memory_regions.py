"""What is remembered of the engine's regions of memory is what the engine itself would answer."""

import ctypes
from collections.abc import Callable
from ctypes import c_int, c_uint32, c_uint64, c_void_p
from typing import Any

import pytest
from unicorn.unicorn_py3.unicorn import uclib

from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.library import native
from trapgate.engine.translator.memory_regions import on_region, on_section, remember
from trapgate.engine.unicorn_engine import UnicornEngine
from trapgate.errors import EngineError
from trapgate.processor.processor import Processor

SIZE = 1 << 20
ADDRESSES = (
    *(0, 0x1000, SIZE - 0x1000, SIZE, at.VMCB, at.STORES, at.NOWHERE),
    *(at.APIC_ACCESSES, at.VIDEO, 1 << 51, -0x1000),
)
REGION = (c_void_p, c_void_p, c_uint64)
"""What `on_region` returns and takes; then the same of `on_section`."""
SECTION = (
    *(c_void_p, c_void_p, c_int, c_uint64, c_void_p, c_void_p, c_uint32, c_void_p),
)  # fmt: skip


@pytest.fixture(params=["native", "portable"])
def engine(request: pytest.FixtureRequest) -> UnicornEngine:
    try:
        engine = Processor(SIZE, engine=request.param).engine
    except EngineError as why:
        pytest.skip(str(why))
    if not engine.cells[mc.RAM_REGION]:
        pytest.skip("the engine's internals are out of reach")
    return engine


def test_a_region_is_the_one_that_the_engine_finds(engine: UnicornEngine) -> None:
    handle = native.handle_of(engine.uc)
    ours = ctypes.CFUNCTYPE(*REGION)(on_region.address)
    theirs = ctypes.CFUNCTYPE(*REGION)(("find_memory_mapping_x86_64", uclib))
    found = [ours(handle, address) for address in ADDRESSES]
    assert found == [theirs(handle, address) for address in ADDRESSES]
    assert found[0] != found[3]


def test_a_section_is_the_one_that_the_engine_finds(engine: UnicornEngine) -> None:
    def answer(translate: Callable[..., Any], address: int) -> tuple[int | None, int]:
        offset, length, rights = c_uint64(1), c_uint64(0x1000), c_int(7)
        places = (ctypes.addressof(cell) for cell in (offset, length, rights))
        at_offset, at_length, at_rights = places
        section = translate(cpu, 0, address, at_offset, at_length, 0, at_rights)
        return section, offset.value

    cpu = int(engine.cells[mc.CPU])
    ours = ctypes.CFUNCTYPE(*SECTION)(on_section.address)
    theirs = ctypes.CFUNCTYPE(*SECTION)(("address_space_translate_for_iotlb_x86_64", uclib))
    found = [answer(ours, address) for address in ADDRESSES]
    assert found == [answer(theirs, address) for address in ADDRESSES]
    assert len(set(found)) >= 6


def test_a_handle_is_changed_once(engine: UnicornEngine) -> None:
    with pytest.raises(EngineError, match="does not say how regions of memory are found"):
        remember(engine.cells, int(engine.cells[mc.CPU]), native.handle_of(engine.uc))
