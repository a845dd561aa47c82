"""The engine's insides, found and verified: only the Linux x86-64 wheel has them.

The shared library keeps its internal functions in the dynamic symbol table, and the
CPU state lies within reach of the handle. Everything found here is checked before it
is used; whatever does not check out is an `EngineError`, and the portable path serves.
"""

import ctypes
import struct
from dataclasses import dataclass

import unicorn
from unicorn.unicorn_py3.unicorn import uclib

from trapgate.engine import layout
from trapgate.errors import EngineError

SYMBOLS = (
    "cpu_cc_compute_all",
    "cpu_loop_exit",
    "cpu_loop_exit_restore",
    "cpu_restore_state",
    "cpu_x86_update_dr7",
    "tb_invalidate_phys_range",
    "tlb_flush",
    "tlb_set_page",
    "x86_cpu_do_interrupt",
    "x86_cpu_tlb_fill",
)
"""Internal functions that the native path calls or recognises, less `_x86_64`."""

_REACH = 0x40000
"""How far from a pointer in the handle the CPU state may lie, in bytes."""


@dataclass(frozen=True)
class Insides:
    """Addresses inside one engine instance.

    `cpu` is its CPUState, `env` the x86 state within, `tlb_fill` the slot in the CPU
    class that holds the MMU's refill function, `symbols` the internal functions.
    """

    cpu: int
    env: int
    exception_index: int
    tlb_fill: int
    symbols: dict[str, int]


def find(uc: unicorn.Uc) -> Insides:
    """Find the insides of `uc`.

    Raises EngineError where the symbols are absent or nothing checks out.
    """
    symbols = _symbols()
    handle = _handle(uc)
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        env = _state(uc, memory, handle)
        return _class_of(memory, handle, env, symbols)


def _handle(uc: unicorn.Uc) -> int:
    value = uc._uch.value
    assert isinstance(value, int)
    return value


def _symbols() -> dict[str, int]:
    found = {}
    for name in SYMBOLS:
        try:
            function = getattr(uclib, f"{name}_x86_64")
        except AttributeError:
            raise EngineError(f"the Unicorn library has no symbol {name}_x86_64") from None
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address is not None
        found[name] = address
    return found


def _read(memory: object, address: int, size: int) -> bytes:
    try:
        memory.seek(address)  # type: ignore[attr-defined]
        data = memory.read(size)  # type: ignore[attr-defined]
    except (OSError, ValueError, OverflowError):
        return b""
    assert isinstance(data, bytes)
    return data


def _state(uc: unicorn.Uc, memory: object, handle: int) -> int:
    """The address of the x86 state: sixteen general registers of magic values."""
    from unicorn import x86_const

    names = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI")
    names += tuple(f"R{n}" for n in range(8, 16))
    ids = [getattr(x86_const, f"UC_X86_REG_{name}") for name in names]
    before = [uc.reg_read(register) for register in ids]
    magic = [0x7A9_0000_0000_0000 + (handle * (n + 1) & 0xFFFF_FFFF_FFFF) for n in range(16)]
    try:
        for register, value in zip(ids, magic, strict=True):
            uc.reg_write(register, value)
        pattern = struct.pack("<16Q", *magic)
        words = struct.unpack("<1024Q", _read(memory, handle, 8192).ljust(8192, b"\0")[:8192])
        for pointer in dict.fromkeys(word for word in words if 0x10000 < word < 1 << 47):
            data = _read(memory, pointer, _REACH)
            at = data.find(pattern)
            if at >= 0:
                return pointer + at
    finally:
        for register, value in zip(ids, before, strict=True):
            uc.reg_write(register, value)
    raise EngineError("the CPU state was not found near the engine's handle")


def _class_of(memory: object, handle: int, env: int, symbols: dict[str, int]) -> Insides:
    """The CPU and its class, recognised by its handle and its `do_interrupt`."""
    reach = 0x12000
    data = _read(memory, env - reach, reach)
    needle = struct.pack("<Q", handle)
    at = data.rfind(needle)
    while at >= 0:
        (cpu_class,) = struct.unpack_from("<Q", data, at + 8)
        functions = _read(memory, cpu_class, 24 * 8)
        words = struct.unpack(f"<{len(functions) // 8}Q", functions)
        if symbols["x86_cpu_do_interrupt"] in words and symbols["x86_cpu_tlb_fill"] in words:
            slot = cpu_class + 8 * words.index(symbols["x86_cpu_tlb_fill"])
            uc_field = env - reach + at
            return Insides(_cpu(memory, env), env, uc_field - 8, slot, symbols)
        at = data.rfind(needle, 0, at)
    raise EngineError("the CPU class was not found before the CPU state")


def _cpu(memory: object, env: int) -> int:
    """CPUState's start, a fixed distance before the x86 state, whose address it holds."""
    cpu = env - layout.CPU_SIZE
    if struct.pack("<Q", env) not in _read(memory, cpu, 0x400):
        raise EngineError("no pointer to the CPU state inside the CPU")
    return cpu
