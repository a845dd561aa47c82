"""Proof, before anything relies on it, that the engine is laid out as `layout` says.

Everything is set through public registers to values that occur nowhere else, and looked
for in a saved context, which is a plain copy of the CPU state.
"""

import ctypes
import struct
from ctypes import CFUNCTYPE, c_int, c_uint64, c_void_p

import unicorn
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import uclib

from trapgate.engine import emission as em
from trapgate.engine.library import layout as at
from trapgate.engine.library import native
from trapgate.engine.library.linkage import symbol
from trapgate.errors import EngineError
from trapgate.sdm import registers

VERSION = (2, 1, 4)
_HEADER = range(0, 128, 8)
"""Where a context's data may start, after what the library itself keeps there; in bytes."""

_SCRATCH = 0x1000
_TWO_INSTRUCTIONS = b"\xff\xc0\xf4"
"""INC EAX; HLT, which ends Unicorn's run."""

_TLB_FUNCTIONS = {
    "tlb_set_page": CFUNCTYPE(None, c_void_p, c_uint64, c_uint64, c_int, c_int, c_uint64),
    "tlb_flush": CFUNCTYPE(None, c_void_p),
    "tb_flush_jmp_cache": CFUNCTYPE(None, c_void_p, c_uint64),
}
_GENERAL = registers.GENERAL
_MAGIC = 0x5A00_1234_5678_0000

_MSRS = {
    0xC000_0081: at.STAR,
    0xC000_0082: at.LSTAR,
    0xC000_0083: at.CSTAR,
    0xC000_0084: at.FMASK,
    0xC000_0102: at.KERNEL_GS_BASE,
    0x175: at.SYSENTER_ESP,
    0x176: at.SYSENTER_EIP,
    0x277: at.PAT,
}


def check_version() -> None:
    """Raise EngineError unless the library is the version that was measured."""
    found = tuple(unicorn.uc_version()[:2]), unicorn.__version__
    if found != (VERSION[:2], ".".join(map(str, VERSION))):
        raise EngineError(f"Unicorn is version {found[1]}; install unicorn==2.1.4")


def context_data(uc: unicorn.Uc, context: int) -> int:
    """Where the CPU state starts in a context of `uc`, in bytes.

    Raises EngineError where the layout is not the expected one. The registers of `uc`
    stay as they are.
    """
    before = ctypes.c_void_p()
    _demand(uclib.uc_context_alloc(uc._uch, ctypes.byref(before)))
    _demand(uclib.uc_context_save(uc._uch, before))
    try:
        expected = _set_magic(uc)
        _demand(uclib.uc_context_save(uc._uch, ctypes.c_void_p(context)))
        data = ctypes.string_at(context, at.CONTEXT_SIZE + _HEADER.stop)
    finally:
        _demand(uclib.uc_context_restore(uc._uch, before))
        uclib.uc_context_free(before)
    for start in _HEADER:
        if struct.unpack_from("<16Q", data, start) == expected[:16]:
            _compare(data[start:], expected[16:])
            return start
    raise EngineError("the general registers were not found in a saved context")


def check_native(uc: unicorn.Uc, cpu: int, env: int) -> None:
    """Prove the layout of the live CPU at `cpu` and its state at `env`; raise EngineError."""
    context = ctypes.c_void_p()
    _demand(uclib.uc_context_alloc(uc._uch, ctypes.byref(context)))
    assert context.value is not None
    try:
        start = context_data(uc, context.value)
        _demand(uclib.uc_context_save(uc._uch, context))
        saved = ctypes.string_at(context.value + start, at.CONTEXT_SIZE)
    finally:
        uclib.uc_context_free(context)
    if saved != ctypes.string_at(env, at.CONTEXT_SIZE):
        raise EngineError("the live CPU state is not what a context saves")
    (flags,) = struct.unpack("<I", ctypes.string_at(cpu + at.CFLAGS_NEXT_TB, 4))
    if flags != 0xFFFF_FFFF:
        raise EngineError("the next block's flags are not where they should be")
    _check_tlb(cpu, env)


def _check_tlb(cpu: int, env: int) -> None:
    """Prove the layout of the TLB and of the blocks found by it, which are empty afterwards."""
    page = 0x5000

    def word(address: int) -> int:
        return ctypes.c_int64.from_address(address).value

    def pages(entry: int) -> tuple[int, ...]:
        return tuple(word(entry + kind) for kind in (at.TLB_READ, at.TLB_WRITE, at.TLB_CODE))

    def description(mode: int) -> tuple[int, ...]:
        start = env + at.TLB_DESCRIPTIONS + at.TLB_DESCRIPTION_SIZE * mode
        cells = at.TLB_LARGE, at.TLB_LARGE_MASK, at.TLB_USED, at.TLB_DISPLACED
        return *(word(start + cell) for cell in cells), *pages(start + at.TLB_VICTIM)

    set_page, flush, forget = (kind(symbol(uclib, name)) for name, kind in _TLB_FUNCTIONS.items())
    proven = word(cpu + at.BLOCKS_FOUND - 16) == env
    if proven:
        blocks, size = cpu + at.BLOCKS_FOUND, 8 * at.BLOCKS_FOUND_MOST
        ctypes.memset(blocks, 1, size)
        forget(cpu, 0x0123_4567_8000)
        expected = bytearray(b"\1" * size)
        for gone in (0x0123_4567_7000, 0x0123_4567_8000):
            first = 8 * ((gone ^ gone >> 6) >> 6 & 0xFC0)
            expected[first : first + 8 * at.BLOCKS_OF_PAGE] = bytes(8 * at.BLOCKS_OF_PAGE)
        proven = ctypes.string_at(blocks, size) == expected
        ctypes.memset(blocks, 0, size)
    flush(cpu)
    for mode in range(at.TLB_MODES):
        table = env + at.TLB_TABLES + at.TLB_TABLE_SIZE * mode
        mask, entries = word(table), word(table + 8)
        proven = proven and description(mode) == (-1, -1, 0, 0, -1, -1, -1)
        proven = proven and (mask + (1 << at.TLB_ENTRY_SHIFT)).bit_count() == 1
        if not proven:
            break
        set_page(cpu, page, page, 5, mode, 0x1000)
        other = page + (mask + (1 << at.TLB_ENTRY_SHIFT) << 12 - at.TLB_ENTRY_SHIFT)
        entry = entries + (page >> 12 << at.TLB_ENTRY_SHIFT & mask)
        proven = pages(entry) == (page, -1, page)
        set_page(cpu, other, page, 5, mode, 0x200000)
        proven = proven and pages(entry) == (other, -1, other)
        large = other & -0x200000
        proven = proven and description(mode) == (large, -0x200000, 1, 1, page, -1, page)
        changed = ctypes.c_uint16.from_address(env + at.TLB_CHANGED)
        proven = proven and changed.value == 1 << mode
        flush(cpu)
        # The table may be another one now, of another size.
        entry = word(table + 8) + (page >> 12 << at.TLB_ENTRY_SHIFT & word(table))
        proven = proven and pages(entry) == (-1, -1, -1) and changed.value == 0
    if not proven:
        raise EngineError("the engine's TLB has another layout")


def check_translator() -> None:
    """Prove, on an engine of its own, what `layout` and `emission` say of translation.

    The last operation of a block leaves it with the block's address; raise EngineError if not.
    """
    uc = unicorn.Uc(unicorn.unicorn_const.UC_ARCH_X86, unicorn.unicorn_const.UC_MODE_64)
    uc.mem_map(_SCRATCH, 0x1000)
    uc.mem_write(_SCRATCH, _TWO_INSTRUCTIONS)
    uc.emu_start(_SCRATCH, 0)
    handle = native.handle_of(uc)
    with native.own_memory() as memory:

        def word(address: int, size: int = 8) -> int:
            return int.from_bytes(native.read(memory, address, size), "little")

        contexts = [
            pointer
            for pointer in native.pointers(memory, handle)
            if word(pointer + em.UC) == handle
        ]
        for context in contexts:
            operation = word(word(word(context + em.LAST_OP) + 8))
            block = word(operation + em.ARGUMENTS) & ~3
            found = (
                word(block),
                word(block + at.TB_CS_BASE),
                word(block + at.TB_SIZE, 2),
                word(block + at.TB_ICOUNT, 2),
            )
            if found == (_SCRATCH, 0, len(_TWO_INSTRUCTIONS), 2):
                return
    raise EngineError("the engine's translator has another layout")


def _set_magic(uc: unicorn.Uc) -> tuple[int, ...]:
    """Fill registers; their values: sixteen general ones, then as `_places` lists them."""
    values = []
    for number, name in enumerate(_GENERAL):
        values.append(_MAGIC + number)
        uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), values[-1])
    for number, (index, _) in enumerate(_MSRS.items()):
        values.append(0x0007_0406_0007_0406 if index == 0x277 else 0x1234_5600 + number)
        uc.msr_write(index, values[-1])
    for number, name in enumerate(("CR2", "DR0", "DR1", "DR2", "DR3")):
        values.append(_MAGIC + 0x100 + number)
        uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), values[-1])
    for number, name in enumerate(("FS_BASE", "GS_BASE")):
        values.append(0x7A5A_0000 + number)
        uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), values[-1])
    uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, 0x3456_7000, 0x1237, 0))
    uc.reg_write(x86_const.UC_X86_REG_IDTR, (0, 0x3456_8000, 0x1238, 0))
    values += [0x3456_7000, 0x3456_8000]
    uc.reg_write(x86_const.UC_X86_REG_MXCSR, 0x3F80)
    return tuple(values)


def _compare(data: bytes, expected: tuple[int, ...]) -> None:
    segments = at.SEGMENTS + at.BASE
    places = [
        *_MSRS.values(),
        at.CR2,
        *(at.DR0 + 8 * n for n in range(4)),
        segments + 4 * at.SEGMENT_SIZE,
        segments + 5 * at.SEGMENT_SIZE,
        segments + 8 * at.SEGMENT_SIZE,
        segments + 9 * at.SEGMENT_SIZE,
    ]
    for place, value in zip(places, expected, strict=True):
        if struct.unpack_from("<Q", data, place)[0] != value:
            raise EngineError(f"the engine's state has another layout at offset {place}")
    limits = [segments - at.BASE + n * at.SEGMENT_SIZE + at.LIMIT for n in (8, 9)]
    if [struct.unpack_from("<I", data, place)[0] for place in limits] != [0x1237, 0x1238]:
        raise EngineError("the engine's segments have another layout")
    if struct.unpack_from("<I", data, at.MXCSR)[0] != 0x3F80:
        raise EngineError("MXCSR is not where it should be")


def _demand(error: int) -> None:
    if error:
        raise EngineError(f"Unicorn: {unicorn.UcError(error)}")
