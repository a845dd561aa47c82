"""The engine's internals, found and verified: only the wheels for Linux have them.

The shared library keeps its internal functions in the dynamic symbol table, and the
CPU state lies within reach of the handle. Everything found here is checked before it
is used; whatever does not check out is an `EngineError`, and the portable path serves.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import unicorn
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import uclib

from trapgate.engine.library import layout
from trapgate.engine.library.host import demand_known
from trapgate.engine.library.linkage import symbol
from trapgate.errors import EngineError
from trapgate.sdm.registers import GENERAL

SYMBOLS = (
    "breakpoint_handler",
    "cpu_cc_compute_all",
    "cpu_loop_exit",
    "cpu_loop_exit_restore",
    "cpu_restore_state",
    "cpu_x86_update_dr7",
    "tb_invalidate_phys_range",
    "tlb_flush",
    "tlb_flush_page",
    "tlb_init",
    "tlb_reset_dirty",
    "tlb_set_page",
    "tlb_vaddr_to_host",
    "x86_cpu_do_interrupt",
    "x86_cpu_tlb_fill",
)
"""Internal functions that the native path calls or recognises, less `_x86_64`."""

_OWN_MEMORY = Path("/proc/self/mem")
"""Linux only. Reading an unmapped address here is an error, not a crash."""

_REACH = 0x40000
"""How far from a pointer in the handle the CPU state may lie, in bytes."""


@dataclass(frozen=True)
class Internals:
    """Addresses inside one engine instance.

    `cpu` is its CPUState, `env` the x86 state within, `tlb_fill` the slot in the CPU
    class that holds the MMU's refill function, `debug` the one with the handler of hits on
    breakpoints, `symbols` the internal functions.
    """

    cpu: int
    env: int
    exception_index: int
    tlb_fill: int
    debug: int
    symbols: dict[str, int]


def find(uc: unicorn.Uc) -> Internals:
    """Find the internals of `uc`.

    Raises EngineError where the symbols are absent or nothing checks out.
    """
    demand_known()
    symbols = {name: symbol(uclib, name) for name in SYMBOLS}
    handle = handle_of(uc)
    with own_memory() as memory:
        for env in _states(uc, memory, handle):
            found = _class_of(memory, handle, env, symbols)
            if found is not None:
                return found
    raise EngineError("the CPU state was not found near the engine's handle")


def own_memory() -> BinaryIO:
    """This process's memory as a file. Raises EngineError where the host does not show it."""
    try:
        return _OWN_MEMORY.open("rb", buffering=0)
    except OSError as reason:
        raise EngineError(f"this host does not show a process its memory: {reason}") from None


def handle_of(uc: unicorn.Uc) -> int:
    """The address of Unicorn's own structure."""
    value = uc._uch.value
    assert isinstance(value, int)
    return value


def read(memory: BinaryIO, address: int, size: int) -> bytes:
    """Up to `size` bytes at an address, none where nothing is mapped."""
    try:
        memory.seek(address)
        return memory.read(size)
    except (OSError, ValueError, OverflowError):
        return b""


def pointers(memory: BinaryIO, handle: int) -> list[int]:
    """What may be an address in Unicorn's own structure."""
    words = struct.unpack("<1024Q", read(memory, handle, 8192).ljust(8192, b"\0")[:8192])
    return list(dict.fromkeys(word for word in words if 0x10000 < word < 1 << 47))


def _states(uc: unicorn.Uc, memory: BinaryIO, handle: int) -> Iterator[int]:
    """Where the x86 state may be: sixteen general registers of magic values lie there.

    Copies of them lie about in memory, so each place has to be looked at more closely.
    """
    ids = [getattr(x86_const, f"UC_X86_REG_{name}") for name in GENERAL]
    before = [uc.reg_read(register) for register in ids]
    magic = [0x7A9_0000_0000_0000 + (handle * (n + 1) & 0xFFFF_FFFF_FFFF) for n in range(16)]
    try:
        for register, value in zip(ids, magic, strict=True):
            uc.reg_write(register, value)
        pattern = struct.pack("<16Q", *magic)
        for pointer in pointers(memory, handle):
            data = read(memory, pointer, _REACH)
            at = data.find(pattern)
            while at >= 0:
                yield int(pointer) + at
                at = data.find(pattern, at + 1)
    finally:
        for register, value in zip(ids, before, strict=True):
            uc.reg_write(register, value)


def _class_of(memory: BinaryIO, handle: int, env: int, symbols: dict[str, int]) -> Internals | None:
    """The CPU and its class, recognised by its handle and its functions; None if they are not."""
    reach = 0x12000
    data = read(memory, env - reach, reach)
    needle = struct.pack("<Q", handle)
    at = data.rfind(needle)
    while at >= 0:
        (cpu_class,) = struct.unpack_from("<Q", data, at + 8)
        functions = read(memory, cpu_class, 24 * 8)
        words = struct.unpack(f"<{len(functions) // 8}Q", functions)
        wanted = ("x86_cpu_do_interrupt", "x86_cpu_tlb_fill", "breakpoint_handler")
        # The handle has the CPU's address, and the CPU that of its x86 state.
        (cpu,) = struct.unpack("<Q", read(memory, handle + layout.CPU_OF_HANDLE, 8).ljust(8, b"\0"))
        inside = struct.pack("<Q", env) in read(memory, cpu, 0x400)
        if inside and env - cpu != layout.CPU_SIZE:
            raise EngineError(
                f"the CPU's state is {env - cpu} bytes into it, not {layout.CPU_SIZE}: "
                "another C library than glibc?"
            )
        if inside and all(symbols[name] in words for name in wanted):
            fill, debug = (cpu_class + 8 * words.index(symbols[name]) for name in wanted[1:])
            return Internals(cpu, env, env - reach + at - 8, fill, debug, symbols)
        at = data.rfind(needle, 0, at)
    return None
