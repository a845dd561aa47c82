"""What the engine looks up about physical addresses, where the answer is always the same.

For each access that a TLB entry does not answer the engine looks for the region of memory that the
address is in, and for each new entry for the region's section. All of RAM is one region, and they
stay as they are from `UnicornEngine`'s constructor on.
"""

import ctypes
import struct
from ctypes import byref, c_int, c_uint32, c_uint64, c_void_p

from unicorn.unicorn_py3.unicorn import uclib

from trapgate.compiler.dialect import Cells
from trapgate.compiler.kinds import BOUND, INT32, INT64, UINT32
from trapgate.compiler.program import callback
from trapgate.compiler.raw import call, cells, peek64, poke64
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.library import native
from trapgate.engine.library.linkage import symbol
from trapgate.engine.memory.coherence import machine_of
from trapgate.errors import EngineError

_HANDLE_WORDS = 1024
_FIND = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_uint64)
_TRANSLATE = ctypes.CFUNCTYPE(
    c_void_p,
    *(c_void_p, c_int, c_uint64, c_void_p, c_void_p, c_uint32, c_void_p),
)
"""What the engine's two functions take and return."""


@callback(INT64, INT64, INT64, BOUND)
def on_region(uc: int, address: int, find: int) -> int:
    """memory_mapping of the handle: the region at a physical address, 0 if there is none."""
    m = cells(machine_of(uc), mc.CELLS)
    if 0 <= address < m[mc.MEM_CELLS] * 8:
        return int(m[mc.RAM_REGION])
    return int(call(find, (uc, address)))


@callback(INT64, INT64, INT32, INT64, INT64, INT64, UINT32, INT64, BOUND)
def on_section(
    cpu: int,
    space: int,
    address: int,
    offset: int,
    length: int,
    attributes: int,
    rights: int,
    find: int,
) -> int:
    """address_space_translate_for_iotlb: the section at a physical address, and the offset in it.

    The offset is stored at `offset`; `length` is that of a page and stays.
    """
    machine = peek64(cpu + at.CPU_SIZE + at.MACHINE)
    if machine != 0:
        m = cells(machine, mc.CELLS)
        if 0 <= address < m[mc.MEM_CELLS] * 8:
            poke64(offset, address)
            return int(m[mc.RAM_SECTION])
        if address == at.STORES:
            poke64(offset, 0)
            return int(m[mc.STORES_SECTION])
    return int(call(find, (cpu, space, address, offset, length, attributes, rights)))


SLOTS = {"address_space_translate_for_iotlb": on_section}
"""As `coherence.SLOTS`."""


def remember(c: Cells, cpu: int, handle: int) -> None:
    """Look the regions up once, of an engine whose memory has been mapped.

    `c` are the machine's cells, `cpu` and `handle` the addresses of the engine's CPU and of its
    handle. Raises EngineError where the engine does not answer as expected.
    """
    address = symbol(uclib, "find_memory_mapping")
    with native.own_memory() as memory:
        data = native.read(memory, handle, 8 * _HANDLE_WORDS)
    words = struct.unpack(f"<{len(data) // 8}Q", data[: len(data) & ~7])
    if words.count(address) != 1:
        raise EngineError("the engine's handle does not say how regions of memory are found")
    c[mc.RAM_REGION] = _FIND(address)(handle, 0) or 0
    c[mc.RAM_SECTION] = _section(cpu, 0)
    c[mc.STORES_SECTION] = _section(cpu, at.STORES)
    if 0 in (c[mc.RAM_REGION], c[mc.RAM_SECTION], c[mc.STORES_SECTION]):
        raise EngineError("the engine does not find the memory that it was given")
    place = ctypes.c_uint64.from_address(handle + 8 * words.index(address))
    place.value = on_region.bind(place.value)


def _section(cpu: int, start: int) -> int:
    """The section that begins at a physical address; 0 if another one is there."""
    translate = _TRANSLATE(symbol(uclib, "address_space_translate_for_iotlb"))
    offset, length, rights = c_uint64(1), c_uint64(0x1000), c_int(7)
    found = translate(cpu, 0, start, byref(offset), byref(length), 0, byref(rights))
    return int(found or 0) if offset.value == 0 else 0
