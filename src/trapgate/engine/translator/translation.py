"""Inside the engine's translator: counting instructions, and code that must not be translated.

Unicorn calls its translator through slots of its procedure linkage table. Some of
them are given functions of ours here (Linux only):

* Every block of translated code begins with a call that looks for a request to exit. Ours
  is called instead: it adds the block's instructions to the virtual clock, looks at the
  deadline, and at the request. A hook of the public interface does the same, at more than
  the cost of a small block. The calls of the same function after loads and stores are left out.
* The helpers that far transfers, IRET, fast system calls and segment loads call are replaced by
  functions of ours (`control_flow`).
* Loads and stores are preceded by checks of their segments (`checked_accesses`), branches by checks
  of their targets (`branches`).
* What stores to memory, and where code is made of it, `coherence` wants to know; where a block is
  left, `clock`.
* The translator is shown UD2 in place of code that it gets wrong, and told other things
  (`translator_errata`). What is no #UD after all is carried out where #UD arrives
  (`dispatch.undefined_opcode`).

The slots serve all instances in the process; those that are not ours get what they had.
"""

import ctypes
import functools

import numpy as np
from unicorn.unicorn_py3.unicorn import uclib

from trapgate.compiler.dialect import Cells, core
from trapgate.compiler.kinds import BOUND, INT64, UINT32, VOID
from trapgate.compiler.library import Callback, Stub
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, peek16, peek32, peek64, poke32, poke64
from trapgate.decode.sse_arithmetic import IMMEDIATE_SHIFT, NO_ARITHMETIC
from trapgate.decode.whole_stores import NOT_WHOLE
from trapgate.decode.x87_pointers import ACTION
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.guest import clock
from trapgate.engine.guest.breakpoints import end_before_breakpoint, is_breakpoint
from trapgate.engine.guest.segments import accesses_checked
from trapgate.engine.guest.state import look_for_interrupts
from trapgate.engine.guest.stuck_bits import on_stuck_bits
from trapgate.engine.library import layout as at
from trapgate.engine.library.host import request_of
from trapgate.engine.library.linkage import slots, symbol
from trapgate.engine.memory import coherence, translations
from trapgate.engine.memory.audit import note_source
from trapgate.engine.translator import (
    branches,
    careful_blocks,
    memory_regions,
    sse_arithmetic,
    stack_frames,
    whole_stores,
)
from trapgate.engine.translator import checked_accesses as accesses
from trapgate.engine.translator.calibration import check_translator
from trapgate.engine.translator.careful_blocks import last_offset
from trapgate.engine.translator.checked_accesses import (
    OPERAND_HELPERS,
    check_operands,
    look_at_operand,
    note_operand_of_helper,
)
from trapgate.engine.translator.control_flow import SUBSTITUTES
from trapgate.engine.translator.helper_errata import (
    HELPERS_MENDED,
    HELPERS_REPLACED,
    on_exchange_begins,
    on_exchange_ends,
)
from trapgate.engine.translator.repeated_strings import repeated_string, string_block_begins
from trapgate.engine.translator.sse_results import RESULTS, emit_arithmetic, entry_of, on_arithmetic
from trapgate.engine.translator.sse_state import LOADS_OF_MXCSR, on_mxcsr_is_used
from trapgate.engine.translator.translator_errata import (
    CARE_ALIGNMENT,
    CARE_AUDIT,
    CARE_BREAKPOINT,
    CARE_LIMIT,
    COMPARES_AND_EXCHANGES,
    ENTERS,
    LOADS_SS,
    MMX,
    NEEDS_OF_VECTORS,
    OPERAND_SIZES,
    REPEATS,
    SEGMENTS,
    STI,
    USES_MXCSR,
    X87,
    examine_instruction,
)
from trapgate.engine.x87 import exceptions as x87
from trapgate.engine.x87 import stores
from trapgate.engine.x87.constants import CONSTANTS
from trapgate.engine.x87.exponents import on_examine, on_extract, on_scale
from trapgate.engine.x87.functions import FUNCTIONS
from trapgate.engine.x87.pointers import on_x87_image
from trapgate.engine.x87.remainder import REMAINDERS
from trapgate.engine.x87.rounding import (
    HELPERS,
    emit_rounding,
    is_rounded_helper,
    on_rounding,
)
from trapgate.sdm.state import (
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_STI,
    RFLAGS_IF,
    RFLAGS_RF,
    RFLAGS_VM,
)

_TRANSLATE_INSN = 4
_SENTINEL = 0x7A9_5EED
"""Stands for a block's count of instructions until it is known."""
_NEXT_PC = 0x10
_BLOCK_FLAGS = 0xA8
"""In the translator's context of a block: the next address, the flags that it translates for."""
_AC = 1 << 18


@callback(VOID, *[INT64] * 5, BOUND)
def on_translate(
    operations: int, block: int, cpu: int, tb: int, most: int, translator: int
) -> None:
    """translator_loop: translate a block, then tell its first call how long it came out."""
    t = cells(translator, em.CELLS)
    if t[em.THEIR_OPERATIONS] != operations:
        for n in range(em.OPERATIONS):
            t[em.OUR_OPERATIONS + n] = peek64(operations + 8 * n)
        t[em.THEIR_TRANSLATE] = t[em.OUR_OPERATIONS + _TRANSLATE_INSN]
        t[em.OUR_OPERATIONS + _TRANSLATE_INSN] = t[em.GUARD_CODE]
        t[em.THEIR_OPERATIONS] = operations
    machine = peek64(cpu + at.CPU_SIZE + at.MACHINE)
    if machine == 0:
        call(t[em.TRANSLATOR_LOOP], (operations, block, cpu, tb, most))
        return
    m = cells(machine, mc.CELLS)
    m[mc.CALL_OP] = 0
    m[mc.CARE] = 0
    m[mc.OPERAND] = 0
    m[mc.OPERAND_OFFSET] = 0
    m[mc.ACCESSES] = mc.ACCESSES_UNCHECKED
    flags = peek32(tb + at.TB_FLAGS)
    m[mc.ACCESSES] = accesses_checked(flags)
    if flags & at.HF_LIMITED:
        # Bases are added even where they are all 0, so that accesses have a segment.
        poke32(tb + at.TB_FLAGS, flags | at.HF_ADDSEG)
    if flags & RFLAGS_RF:
        # It counts for the next instruction only.
        most = 1
    ours = translator + 8 * em.OUR_OPERATIONS
    call(t[em.TRANSLATOR_LOOP], (ours, block, cpu, tb, most))
    poke32(tb + at.TB_FLAGS, flags)
    if m[mc.AUDIT] != 0:
        note_source(m, cpu + at.CPU_SIZE, tb)
        m[mc.CARE] |= CARE_AUDIT
    if m[mc.CALL_OP] == 0:
        return
    # 16-bit code can pass the usual limit of 64 KB only where the block ends.
    limited = m[mc.ACCESSES] == mc.ACCESSES_ALL and (
        flags & at.HF_CODE_LIMITED != 0 or last_offset(tb) > 0xFFFF
    )
    if m[mc.NATIVE] == 0:
        poke64(em.argument(m[mc.CALL_OP], 2), t[em.PORTABLE_CODE])
        poke64(em.argument(m[mc.COUNT_OP], 1), tb | (CARE_LIMIT if limited else 0))
        return
    if m[mc.BREAKPOINTS_COUNT] != 0 and is_breakpoint(m, peek64(tb)):
        m[mc.CARE] |= CARE_BREAKPOINT
    if flags & _AC and flags & 3 == 3:
        m[mc.CARE] |= CARE_ALIGNMENT
    if limited:
        m[mc.CARE] |= CARE_LIMIT
    if m[mc.CARE] != 0:
        poke64(em.argument(m[mc.CALL_OP], 2), t[em.CARE_CODE])
        poke64(em.argument(m[mc.COUNT_OP], 1), tb | m[mc.CARE])
        return
    count = peek16(tb + at.TB_ICOUNT)
    if count == 1 and m[mc.STUCK] == 0:
        string = repeated_string(t[em.CODE_BYTE], cpu + at.CPU_SIZE, peek64(tb), flags)
        if string != 0:
            poke64(em.argument(m[mc.CALL_OP], 2), t[em.STRING_CODE])
            count = string
    poke64(em.argument(m[mc.COUNT_OP], 1), count)


@jit
def substitute(
    t: Cells, m: Cells, context: int, function: int, results: int, count: int, arguments: int
) -> None:
    """The call of a helper of the engine's has just been emitted: call ours instead.

    The engine finds what it must know about a helper by its address, so that changes afterwards.
    """
    place = em.argument(em.last_op(context), results + count)
    if peek64(place) != function:
        return
    if function == t[em.READ_FLAGS]:
        if m[mc.PUSHES_FLAGS] == 0:
            poke64(place, t[em.WHOLE_FLAGS])
            return
        if m[mc.PUSHES_FLAGS] != 1:
            # Of two calls the first one is for a hook.
            poke64(m[mc.PUSHES_FLAGS], t[em.WHOLE_FLAGS])
        m[mc.PUSHES_FLAGS] = place
        poke64(place, t[em.PUSHED_FLAGS])
        return
    for pair in range(em.SUBSTITUTE_PAIRS):
        if function == t[em.SUBSTITUTES + 2 * pair]:
            poke64(place, t[em.SUBSTITUTES + 2 * pair + 1])
    if m[mc.ACCESSES] == mc.ACCESSES_UNCHECKED:
        if function == t[em.LOOK_UP]:
            poke64(place, t[em.LOOK_UP_CANONICAL])
        elif function == t[em.SINGLE_STEP]:
            poke64(place, t[em.SINGLE_STEP_CANONICAL])
    elif m[mc.ACCESSES] == mc.ACCESSES_ALL:
        if function == t[em.LOOK_UP]:
            poke64(place, t[em.LOOK_UP_WITHIN_LIMIT])
        elif function == t[em.SINGLE_STEP]:
            poke64(place, t[em.SINGLE_STEP_WITHIN_LIMIT])


@jit
def take_operands(m: Cells, t: Cells, context: int, count: int, arguments: int) -> int:
    """Before the call of a helper that does SSE arithmetic: emit that of `on_sse_arithmetic`.

    The helper's arguments are the CPU state, destination, source, and perhaps an immediate byte.
    The temporary that the source is in now, to be released.
    """
    kind = m[mc.ARITHMETIC]
    if count > 3:
        # It is a constant, which the last operation made.
        immediate = peek64(em.argument(em.last_op(context), 1)) & 0xFF
        kind |= immediate << IMMEDIATE_SHIFT
    m[mc.ARITHMETIC] = NO_ARITHMETIC
    for n in range(3):
        m[mc.PAIR + n] = peek64(arguments + 8 * n)
    what = em.new_constant(t, context, kind)
    m[mc.PAIR_4] = context + what
    source = em.new_temporary(t, context)
    em.emit_prepared_call(t, m, context, t[em.ARITHMETIC_CODE], 4, context + source)
    em.release(t, context, what)
    poke64(arguments + 16, context + source)
    return source


@callback(VOID, *[INT64] * 5, BOUND)
def on_gen_call(
    context: int, function: int, result: int, count: int, arguments: int, translator: int
) -> None:
    """tcg_gen_callN: emit the call of a helper, or of ours in its place."""
    t = cells(translator, em.CELLS)
    machine = em.machine_of(context)
    if machine == 0:
        call(t[em.GEN_CALL], (context, function, result, count, arguments))
        return
    m = cells(machine, mc.CELLS)
    m[mc.TRANSLATION] = context
    count &= 0xFF
    if function != t[em.CHECK_EXIT] or (m[mc.NATIVE] == 0 and m[mc.CALL_OP] != 0):
        if function == t[em.ENTER_MMX] and m[mc.X87_OPERANDS] < 0:
            # SPARES_X87, or `on_mmx_ends` does it.
            return
        operand = 0
        if m[mc.OPERAND] != 0:
            check_operands(m, t, context, function, count, arguments)
        if m[mc.ARITHMETIC] != NO_ARITHMETIC and count >= 3:
            entry = entry_of(t, function)
            if entry != 0:
                emit_arithmetic(t, m, context, arguments, entry)
                return
            operand = take_operands(m, t, context, count, arguments)
        if m[mc.X87_POINTS] != 0:
            note_operand_of_helper(m, t, context, function, arguments)
        if m[mc.WHOLE] > NOT_WHOLE:
            look_at_operand(m, t, context, function, arguments)
        if m[mc.X87_ROUNDS] != 0 and is_rounded_helper(t, function):
            emit_rounding(t, m, context, function, count, arguments)
            return
        call(t[em.GEN_CALL], (context, function, result, count, arguments))
        if operand != 0:
            em.release(t, context, operand)
        substitute(t, m, context, function, 0 if result == 0 else 1, count, arguments)
        return
    # The first such call begins the block. The others follow loads and stores, and cost as much
    # as these: without them a request to exit is seen where the next block begins.
    if m[mc.CALL_OP] != 0:
        return
    m[mc.PAIR] = context + em.new_constant(t, context, machine)
    m[mc.PAIR_2] = context + em.new_constant(t, context, _SENTINEL)
    m[mc.COUNT_OP] = em.last_op(context)
    call(t[em.GEN_CALL], (context, function, result, 2, machine + 8 * mc.PAIR))
    op = em.last_op(context)
    known = peek64(em.argument(m[mc.COUNT_OP], 1)) == _SENTINEL
    if known and peek64(em.argument(op, 2)) == function:
        m[mc.CALL_OP] = op
        poke64(em.argument(op, 2), t[em.COUNT_CODE])
    em.release(t, context, m[mc.PAIR] - context)
    em.release(t, context, m[mc.PAIR_2] - context)


@callback(VOID, *[INT64] * 3, BOUND)
def on_exit_block(context: int, block: int, number: int, translator: int) -> None:
    """tcg_gen_exit_tb: where a branch may lead beyond the limit of CS, look at RIP before.

    Else the engine would join the two blocks, and never look again.
    """
    t = cells(translator, em.CELLS)
    machine = em.machine_of(context)
    # Numbers above 1 are not branches; those of LOOP and JCXZ do not name the block.
    if machine != 0 and number < 2:
        far = cells(machine, mc.CELLS)[mc.BRANCH_IS_FAR]
        if far != 0 and (block != 0 or far == mc.FAR_UNNAMED):
            call(t[em.GO_TO_NEXT], (context,))
            return
    call(t[em.EXIT_BLOCK], (context, block, number))


@jit
def emit_what(t: Cells, m: Cells, function: int, machine: int, offset: int, what: int) -> None:
    """Emit the call of a function of ours with three constants."""
    context = m[mc.TRANSLATION]
    m[mc.PAIR] = context + em.new_constant(t, context, machine)
    m[mc.PAIR_2] = context + em.new_constant(t, context, offset)
    m[mc.PAIR_3] = context + em.new_constant(t, context, what)
    em.emit_prepared_call(t, m, context, function, 3, 0)
    for n in range(3):
        em.release(t, context, m[mc.PAIR + n] - context)


@callback(VOID, *[INT64] * 2, BOUND)
def on_instruction(block: int, cpu: int, translator: int) -> None:
    """translate_insn: look at an instruction before it is translated (`translator_errata`)."""
    t = cells(translator, em.CELLS)
    env = cpu + at.CPU_SIZE
    machine = peek64(env + at.MACHINE)
    m = cells(machine, mc.CELLS)
    block_flags = peek32(block + _BLOCK_FLAGS) & NEEDS_OF_VECTORS
    start = peek64(block + _NEXT_PC)
    found = examine_instruction(t[em.CODE_BYTE], block, env)
    what = m[mc.X87_WHAT]
    if m[mc.STUCK] != 0:
        em.emit_call(t, m, t[em.STUCK_CODE], machine, env)
    if found == STI:
        em.emit_call(t, m, t[em.STI_CODE], machine, env)
    elif found == LOADS_SS:
        em.emit_call(t, m, t[em.SHADOW_CODE], machine, BLOCKING_BY_MOV_SS)
    elif found == USES_MXCSR:
        emit_what(t, m, t[em.MXCSR_CODE], machine, env, what)
    elif found == MMX:
        em.emit_call(t, m, t[em.X87_BEGINS], machine, m[mc.X87_OPERANDS])
    elif found == COMPARES_AND_EXCHANGES:
        em.emit_call(t, m, t[em.EXCHANGE_BEGINS], machine, m[mc.DESTINATION])
    elif found == ENTERS:
        em.emit_call(t, m, t[em.ENTER_BEGINS], machine, m[mc.DESTINATION])
    elif found > X87:
        em.emit_call(t, m, t[em.X87_BEGINS], machine, m[mc.X87_OPERANDS])
    m[mc.X87_ROUNDS] = 1 if X87 < found < MMX else 0
    before = em.last_op(m[mc.TRANSLATION])
    call(t[em.THEIR_TRANSLATE], (block, cpu))
    if m[mc.BRANCHES] != 0:
        branches.wrap_targets(m[mc.TRANSLATION], before)
    m[mc.X87_ROUNDS] = 0
    if X87 < found < MMX:
        offset = start - peek64(peek64(block) + at.TB_CS_BASE)
        emit_what(t, m, t[em.X87_BEGINS + found - X87], machine, offset, what)
    elif found == COMPARES_AND_EXCHANGES:
        em.emit_call(t, m, t[em.EXCHANGE_ENDS], machine, m[mc.DESTINATION])
    elif found == ENTERS:
        em.emit_call(t, m, t[em.ENTER_ENDS], machine, m[mc.DESTINATION])
    elif found == MMX and m[mc.X87_OPERANDS] == x87.ENTERS_MMX:
        em.emit_call(t, m, t[em.MMX_ENDS], machine, m[mc.DESTINATION])
    if what & ACTION:
        em.emit_call(t, m, t[em.X87_IMAGE], machine, what)
    m[mc.X87_POINTS] = 0
    # It may have been hidden from this instruction.
    poke32(block + _BLOCK_FLAGS, peek32(block + _BLOCK_FLAGS) & ~NEEDS_OF_VECTORS | block_flags)
    m[mc.FORBIDDEN] = 0
    m[mc.PREFIXES] = 0
    m[mc.SHOWN] = 0
    m[mc.ALIGNED] = 0
    m[mc.WHOLE] = NOT_WHOLE
    m[mc.ARITHMETIC] = NO_ARITHMETIC
    m[mc.BRANCH_IS_FAR] = 0
    end_before_breakpoint(m, block)


@callback(UINT32, INT64, BOUND)
def pushed_flags(env: int, read_flags: int) -> int:
    """helper_read_eflags: the flags as PUSHF stores them, without RF and VM."""
    return call(read_flags, (env,)) & ~(RFLAGS_RF | RFLAGS_VM)


@callback(UINT32, INT64, BOUND)
def whole_flags(env: int, read_flags: int) -> int:
    """The same where the engine keeps them for a hook, and has to keep these two as well."""
    kept = peek64(env + at.EFLAGS) & (RFLAGS_RF | RFLAGS_VM)
    return call(read_flags, (env,)) & ~(RFLAGS_RF | RFLAGS_VM) | kept


@callback(VOID, INT64, INT64)
def on_sti(machine: int, env: int) -> None:
    """Before STI: it blocks interrupts if it enables them."""
    m = cells(machine, mc.CELLS)
    enabled = peek64(env + at.EFLAGS) & RFLAGS_IF
    m[mc.SHADOW] = 0 if enabled else BLOCKING_BY_STI
    look_for_interrupts(m)


@callback(VOID, INT64, INT64)
def on_shadow(machine: int, what: int) -> None:
    """Before MOV SS or POP SS: what is blocked after it."""
    cells(machine, mc.CELLS)[mc.SHADOW] = what


@core
def prefix_shown(prefixes: int, byte: int) -> int:
    """What PREFIXES has in place of a prefix."""
    shown = 0
    if byte in (0xF2, 0xF3):
        shown = (prefixes >> REPEATS) & 0xFF
    elif byte == 0x66:
        shown = (prefixes >> OPERAND_SIZES) & 0xFF
    elif byte & 0xE7 == 0x26:
        shown = (prefixes >> SEGMENTS) & 0xFF
    return byte if shown == 0 else shown


@callback(UINT32, *[INT64] * 2, BOUND)
def on_code_byte(env: int, address: int, translator: int) -> int:
    """cpu_ldub_code: a byte of code; of UD2 where what is there must not be translated."""
    t = cells(translator, em.CELLS)
    machine = peek64(env + at.MACHINE)
    if machine != 0:
        m = cells(machine, mc.CELLS)
        if m[mc.SHOWN] != 0 and address == m[mc.SHOWN_AT]:
            return int(m[mc.SHOWN]) & 0xFF
        if m[mc.FORBIDDEN] != 0:
            if address == m[mc.FORBIDDEN_AT]:
                return 0x0F
            if address == m[mc.FORBIDDEN_AT] + 1:
                return 0x0B
        if m[mc.PREFIXES] != 0 and address < m[mc.PREFIXES_END]:
            byte = call(t[em.CODE_BYTE], (env, address)) & 0xFF
            return prefix_shown(int(m[mc.PREFIXES]), byte)
    return call(t[em.CODE_BYTE], (env, address)) & 0xFF


_HOOKS = {
    "translator_loop": on_translate,
    "tcg_gen_callN": on_gen_call,
    "cpu_ldub_code": on_code_byte,
    "tcg_gen_ext32u_i64": accesses.on_zero_extend,
    "tcg_gen_qemu_ld_i64": accesses.on_load_64,
    "tcg_gen_qemu_st_i64": accesses.on_store_64,
    "tcg_gen_qemu_ld_i32": accesses.on_load_32,
    "tcg_gen_qemu_st_i32": accesses.on_store_32,
    "tcg_gen_exit_tb": on_exit_block,
}
"""Functions that the engine calls through slots, and the hooks in their place, bound to the cells
that they share."""


_STUBS: dict[int, Callback | Stub] = {
    em.COUNT_CODE: careful_blocks.block_begins,
    em.CARE_CODE: careful_blocks.careful_block_begins,
    em.PORTABLE_CODE: careful_blocks.portable_block_begins,
    em.STI_CODE: on_sti,
    em.SHADOW_CODE: on_shadow,
    em.X87_BEGINS: x87.on_x87_begins,
    em.X87_ENDS: x87.on_x87_ends,
    em.X87_COMPARES: x87.on_x87_compares,
    em.X87_RELOADS: x87.on_x87_reloads,
    em.EXCHANGE_BEGINS: on_exchange_begins,
    em.EXCHANGE_ENDS: on_exchange_ends,
    em.ENTER_BEGINS: stack_frames.on_enter_begins,
    em.ENTER_ENDS: stack_frames.on_enter_ends,
    em.MMX_ENDS: x87.on_mmx_ends,
    em.MXCSR_CODE: on_mxcsr_is_used,
    em.REFUSE_CODE: accesses.on_checked_address,
    em.X87_IMAGE: on_x87_image,
    em.STRING_CODE: string_block_begins,
    em.ROUNDING_CODE: on_rounding,
    em.X87_STORE: stores.on_x87_store,
    em.RESULT_CODE: on_arithmetic,
    em.ARITHMETIC_CODE: sse_arithmetic.on_sse_arithmetic,
    em.WHOLE_STORE_CODE: whole_stores.on_whole_store,
    em.STORE_TO_COME_CODE: whole_stores.on_store_to_come,
    em.STUCK_CODE: on_stuck_bits,
    em.LOOK_UP_CANONICAL: branches.look_up_canonical,
    em.LOOK_UP_WITHIN_LIMIT: branches.look_up_within_limit,
    em.SINGLE_STEP_CANONICAL: branches.single_step_canonical,
    em.SINGLE_STEP_WITHIN_LIMIT: branches.single_step_within_limit,
}
"""Cells, and what translated code calls by them."""


_SLOTS = coherence.SLOTS | clock.SLOTS | translations.SLOTS | memory_regions.SLOTS


class Translator:
    """The functions of ours in the engine's translator; one for the process, never taken out.

    Raises EngineError where the library is not as expected.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        names = (*_HOOKS, *_SLOTS)
        places = slots(library, tuple(f"{name}_x86_64" for name in names))
        t = self.cells = np.zeros(em.CELLS, np.int64)
        self.address = int(t.ctypes.data)
        for cell, name in enumerate(em.SYMBOLS):
            t[cell] = symbol(library, name)
        self.request = request_of(ctypes.string_at(int(t[em.CHECK_EXIT]), 16))
        """Where in the CPU a request to exit stands."""
        for cell, code in _STUBS.items():
            t[cell] = code.address
        t[em.GUARD_CODE] = on_instruction.bind(self.address)
        for n, (name, size) in enumerate(OPERAND_HELPERS):
            t[em.OPERANDS + 2 * n : em.OPERANDS + 2 * n + 2] = symbol(library, name), size
        for n, name in enumerate(HELPERS):
            t[em.ROUNDING + n] = symbol(library, name)
        ours_alone = (SUBSTITUTES | HELPERS_REPLACED).items()
        substitutes = {symbol(library, name): code.address for name, code in ours_alone}
        for name, (conversion, helper) in stores.CONVERSIONS.items():
            substitutes[symbol(library, name)] = conversion.bind(symbol(library, helper))
        for name, ours in (LOADS_OF_MXCSR | HELPERS_MENDED | x87.LOADS | CONSTANTS).items():
            substitutes[symbol(library, name)] = ours.bind(symbol(library, name))
        for name, ours in (REMAINDERS | FUNCTIONS | stores.STORES_OF_80).items():
            substitutes[symbol(library, name)] = ours.bind(self.address)
        substitutes[symbol(library, "helper_fxtract")] = on_extract.address
        substitutes[symbol(library, "helper_fxam_ST0")] = on_examine.address
        scale = symbol(library, "helper_fscale")
        substitutes[scale] = on_scale.bind(scale)
        assert len(RESULTS) == em.RESULT_PAIRS
        for n, (name, kind) in enumerate(RESULTS.items()):
            t[em.RESULTS + 2 * n : em.RESULTS + 2 * n + 2] = symbol(library, name), kind
        t[em.PUSHED_FLAGS] = pushed_flags.bind(int(t[em.READ_FLAGS]))
        t[em.WHOLE_FLAGS] = whole_flags.bind(int(t[em.READ_FLAGS]))
        assert len(substitutes) <= em.SUBSTITUTE_PAIRS
        assert len(OPERAND_HELPERS) <= em.OPERAND_PAIRS
        for n, pair in enumerate(substitutes.items()):
            t[em.SUBSTITUTES + 2 * n : em.SUBSTITUTES + 2 * n + 2] = pair
        hooks = {name: hook.bind(self.address) for name, hook in _HOOKS.items()}
        for name, told in _SLOTS.items():
            hooks[name] = told.bind(symbol(library, name))
        for name, hook in hooks.items():
            ctypes.c_uint64.from_address(places[f"{name}_x86_64"]).value = hook


@functools.cache
def translator() -> Translator:
    """The process's one `Translator`. Raises EngineError where the library is not as expected."""
    check_translator()
    return Translator(uclib)
