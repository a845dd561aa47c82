"""Segment limits and types in translated code: a forbidden access has a poisoned address.

Compiled only; Linux wheels. Where the translator has added a segment's base to an
offset, the offset is kept. Where it emits the access, a comparison of the offset with what
the segment allows (`segments`) comes first, and a conditional move: the linear address, or
one that has no translation, and ends in the MMU's refill, which raises #GP or #SS. So there
is neither a branch nor a call, and code whose segments are flat has none of it
(docs/adr/0013-segments-in-translated-code.md).
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.kinds import BOUND, INT64, RETURN_ADDRESS, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, peek64, poke8, poke32, poke64
from trapgate.decode.whole_stores import CHANGES_CARRY, NOT_WHOLE
from trapgate.decode.x87_operands import STORES
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.translator.sse_state import emit_alignment
from trapgate.engine.x87.pointers import emit_address
from trapgate.engine.x87.stores import emit_store

POISON = -(1 << 63)
"""An address that no translation exists for. The segment's number is in bits 34:32."""
POISON_PAGE = POISON >> 40

OPERAND_HELPERS = (
    ("helper_fldt_ST0", 10),
    ("helper_fstt_ST0", -11),
    ("helper_fbld_ST0", 10),
    ("helper_fbst_ST0", -11),
    ("helper_fldenv", 28),
    ("helper_fstenv", -29),
    ("helper_frstor", 108),
    ("helper_fsave", -109),
    ("helper_fxsave", -513),
    ("helper_fxrstor", 512),
    ("helper_xsave", -577),
    ("helper_xrstor", 576),
    ("helper_cmpxchg8b", -9),
    ("helper_cmpxchg8b_unlocked", -9),
    ("helper_boundw", 4),
    ("helper_boundl", 8),
    ("helper_maskmov_mmx", -9),
    ("helper_maskmov_xmm", -17),
    ("helper_monitor", 1),
)
"""Helpers that access memory themselves, at an address among their arguments: name, and size in
bytes, or -1 less that if they store. With operands of 16 bits those of 28 and 108 bytes are 14
smaller."""


@jit
def is_poison(address: int) -> bool:
    """Whether a linear address of code that is not 64-bit stands for a forbidden access."""
    return address >> 40 == POISON_PAGE


@jit
def poisoned_by(address: int) -> int:
    """The number of the segment that forbade it."""
    return (address >> 32) & 7


@jit
def note_operand(m: Cells, t: Cells, context: int, result: int) -> None:
    """The last operation may have added a segment's base to an offset: keep both.

    `result` is the temporary that is about to become a linear address of 32 bits.
    """
    op = em.last_op(context)
    if not em.is_add(op, context + result):
        return
    segment = em.segment_of(peek64(em.argument(op, 2)))
    first = peek64(em.argument(op, 1))
    if segment < 0:
        if m[mc.OPERAND] == result and first == context + result:
            # Further on in the same operand: the second half of a far pointer.
            offset = context + m[mc.OPERAND_OFFSET]
            em.emit_3(t, context, em.ADD, offset, offset, peek64(em.argument(op, 2)))
            em.emit_2(t, context, em.ZERO_EXTEND, offset, offset)
        return
    if m[mc.ACCESSES] == mc.ACCESSES_OF_CS_FS_GS and segment != 1 and segment < 4:
        m[mc.OPERAND] = 0
        return
    if m[mc.OPERAND_OFFSET] == 0:
        m[mc.OPERAND_OFFSET] = em.new_temporary(t, context)
        m[mc.OPERAND_CHECKED] = em.new_temporary(t, context)
        m[mc.OPERAND_BOUND] = em.new_temporary(t, context)
    offset = context + m[mc.OPERAND_OFFSET]
    m[mc.OPERAND] = result
    m[mc.OPERAND_SEGMENT] = segment
    if first == context + result:
        # The addition replaces the offset: make it a copy, and add once more.
        base = peek64(em.argument(op, 2))
        poke8(op, em.MOVE)
        poke64(em.argument(op, 0), offset)
        poke64(em.argument(op, 1), first)
        em.emit_3(t, context, em.ADD, context + result, offset, base)
        first = offset
    em.emit_2(t, context, em.ZERO_EXTEND, offset, first)


@jit
def is_second_half(m: Cells, t: Cells, context: int, address: int) -> bool:
    """Whether the last operation made `address` from the operand's: of 16 bytes, the upper 8."""
    op = em.last_op(context)
    offset = context + m[mc.OPERAND_OFFSET]
    if not em.is_add(op, context + address):
        return False
    if peek64(em.argument(op, 1)) != context + m[mc.OPERAND]:
        return False
    if peek64(em.argument(op, 2)) == offset:
        return False
    em.emit_3(t, context, em.ADD, offset, offset, peek64(em.argument(op, 2)))
    return True


@jit
def emit_check(m: Cells, t: Cells, context: int, address: int, size: int, store: bool) -> int:
    """Emit the check of an access of 1 << `size` bytes; the temporary with the address to use."""
    segment = m[mc.OPERAND_SEGMENT]
    checked = int(m[mc.OPERAND_CHECKED])
    bound = m[mc.OPERAND_BOUND]
    bound_cell = mc.SEGMENT_BOUNDS + 8 * segment + size + (4 if store else 0)
    machine = em.new_constant(t, context, m[mc.SELF])
    poison = em.new_constant(t, context, POISON | segment << 32)
    low = em.new_temporary(t, context)
    distance = context + low
    em.emit_3(t, context, em.LOAD, distance, context + machine, 8 * (mc.SEGMENT_LOWS + segment))
    em.emit_3(t, context, em.SUBTRACT, distance, context + m[mc.OPERAND_OFFSET], distance)
    em.emit_3(t, context, em.LOAD, context + bound, context + machine, 8 * bound_cell)
    call(t[em.CONDITIONAL_MOVE], (context, em.BELOW, checked, low, bound, address, poison))
    em.release(t, context, low)
    em.release(t, context, machine)
    em.release(t, context, poison)
    return checked


@jit
def emit_refusal(m: Cells, t: Cells, context: int, address: int) -> None:
    """Emit a look at the address: where the refill of the MMU is not ours, it knows no poison."""
    machine = em.new_constant(t, context, m[mc.SELF])
    em.emit_call_of(t, m, context, t[em.REFUSE_CODE], context + machine, context + address)
    em.release(t, context, machine)


@callback(VOID, *[INT64] * 2, RETURN_ADDRESS)
def on_checked_address(machine: int, address: int, back: int) -> None:
    """Before an access at a checked address, poisoned or not (portable path only)."""
    if not is_poison(address):
        return
    m = cells(machine, mc.CELLS)
    m[mc.FAULT_KIND] = mc.FAULT_OF_SEGMENT
    poke32(m[mc.CPU] + at.CPU_SIZE + at.ERROR_CODE, 0)
    vector = 12 if poisoned_by(address) == 2 else 13
    poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_EXCEPTION + vector)
    call(m[mc.CPU_LOOP_EXIT_RESTORE], (m[mc.CPU], back))


@jit
def hold_back(t: Cells, context: int, value: int, address: int) -> tuple[int, int, int]:
    """Keep the first half of a 16-byte load into a register back until the second is loaded.

    That may fault, and the register must be as it was then. If the last operations store `value`,
    the first half, and compute `address` from its address: a temporary that has it now, and the
    arguments by which it is to be stored. Else 0s.
    """
    op = em.last_op(context)
    if not em.is_add(op, context + address):
        return 0, 0, 0
    # Between the two a constant is made, by which the address grows.
    store = em.op_before(em.op_before(op))
    if not em.is_store(store, context + value):
        return 0, 0, 0
    register, place = peek64(em.argument(store, 1)), peek64(em.argument(store, 2))
    kept = em.new_temporary(t, context)
    if context + kept == peek64(em.argument(op, 2)):
        # That of the constant, which is made after the store.
        other = em.new_temporary(t, context)
        em.release(t, context, kept)
        kept = other
    poke8(store, em.MOVE)
    poke64(em.argument(store, 0), context + kept)
    poke64(em.argument(store, 1), context + value)
    return kept, register, place


@jit
def emit_access(
    context: int, value: int, address: int, index: int, operation: int, t: Cells, emitter: int
) -> None:
    """Emit a load or a store, its check first; `emitter` is the cell of the engine's function."""
    machine = em.machine_of(context)
    if machine != 0:
        m = cells(machine, mc.CELLS)
        if m[mc.NARROW] != 0 and emitter == em.LOAD_64:
            operation = operation & ~3 | 2
        chosen = address
        aligned = 0
        kept = register = place = 0
        if emitter == em.LOAD_64:
            kept, register, place = hold_back(t, context, value, address)
        if m[mc.X87_POINTS] != 0:
            emit_address(t, m, context, context + address)
        if m[mc.ALIGNED] != 0:
            m[mc.ALIGNED] = 0
            chosen = aligned = emit_alignment(t, context, address)
        known = m[mc.ACCESSES] != 0 and m[mc.OPERAND] != 0
        store = emitter in (em.STORE_64, em.STORE_32)
        whole = whole_operand(m, store)
        if known and (m[mc.OPERAND] == address or is_second_half(m, t, context, address)):
            # What the instruction will store there must be allowed before it loads.
            store = store or m[mc.CHANGES_OPERAND] != 0
            if whole > 8:
                # The second store needs none then.
                chosen = check_operand(m, t, context, chosen, whole, store)
                m[mc.OPERAND] = 0
            else:
                chosen = emit_check(m, t, context, chosen, operation & 3, store)
        if m[mc.NATIVE] == 0 and chosen != address:
            emit_refusal(m, t, context, chosen)
        if whole == CHANGES_CARRY:
            size = 1 << (operation & 3)
            em.emit_address_check(t, m, context, t[em.STORE_TO_COME_CODE], context + chosen, size)
        elif whole != NOT_WHOLE and aligned == 0:
            em.emit_address_check(t, m, context, t[em.WHOLE_STORE_CODE], context + chosen, whole)
        if m[mc.X87_ROUNDS] != 0 and m[mc.X87_OPERANDS] & STORES:
            emit_store(t, m, context, value, chosen, operation & 3)
            return
        call(t[emitter], (context, value, chosen, index, operation))
        if kept != 0:
            em.emit_3(t, context, em.STORE, context + kept, register, place)
            em.release(t, context, kept)
        if aligned != 0:
            em.release(t, context, aligned)
        return
    call(t[emitter], (context, value, address, index, operation))


@jit
def whole_operand(m: Cells, store: bool) -> int:
    """What WHOLE says if this access is the one that it waits for."""
    whole = int(m[mc.WHOLE])
    if store == (whole == CHANGES_CARRY):
        return NOT_WHOLE
    m[mc.WHOLE] = NOT_WHOLE
    return whole


@jit
def has_small_environment(context: int, arguments: int) -> bool:
    """Whether the helper that is about to be called gets operands of 16 bits: its second argument.

    It is a constant, which the last operation made.
    """
    op = em.last_op(context)
    return peek64(em.argument(op, 0)) == peek64(arguments + 16) and peek64(em.argument(op, 1)) == 0


@jit
def check_operands(
    m: Cells, t: Cells, context: int, function: int, count: int, arguments: int
) -> None:
    """Before the call of a helper that accesses memory itself: check its operand."""
    for pair in range(em.OPERAND_PAIRS):
        if function == t[em.OPERANDS + 2 * pair]:
            size = t[em.OPERANDS + 2 * pair + 1]
            store = size < 0
            if store:
                size = -1 - size
            if size in (28, 108) and has_small_environment(context, arguments):
                size -= 14
            for n in range(1, count):
                if peek64(arguments + 8 * n) == context + m[mc.OPERAND]:
                    address = check_operand(m, t, context, m[mc.OPERAND], size, store)
                    if m[mc.NATIVE] == 0:
                        emit_refusal(m, t, context, address)
                    poke64(arguments + 8 * n, context + address)


@jit
def note_operand_of_helper(m: Cells, t: Cells, context: int, function: int, arguments: int) -> None:
    """Before the call of a helper that accesses memory itself: note its operand's address."""
    for pair in range(em.OPERAND_PAIRS):
        if function == t[em.OPERANDS + 2 * pair]:
            emit_address(t, m, context, peek64(arguments + 8))
            return


@jit
def look_at_operand(m: Cells, t: Cells, context: int, function: int, arguments: int) -> None:
    """Before the call of a helper that stores: all of it must be allowed (`whole_stores`)."""
    for pair in range(em.OPERAND_PAIRS):
        if function == t[em.OPERANDS + 2 * pair]:
            address = peek64(arguments + 8)
            em.emit_address_check(t, m, context, t[em.WHOLE_STORE_CODE], address, m[mc.WHOLE])
            m[mc.WHOLE] = NOT_WHOLE
            return


@jit
def check_operand(m: Cells, t: Cells, context: int, address: int, size: int, store: bool) -> int:
    """Check an operand of `size` bytes, 1, 4, or 8 and more; the temporary with its address."""
    log = 3 if size >= 8 else size >> 1
    address = emit_check(m, t, context, address, log, store)
    if size > 8:
        # Its last eight bytes, too.
        more = em.new_constant(t, context, size - 8)
        offset = context + m[mc.OPERAND_OFFSET]
        em.emit_3(t, context, em.ADD, offset, offset, context + more)
        em.release(t, context, more)
        address = emit_check(m, t, context, address, 3, store)
    return address


@callback(VOID, *[INT64] * 3, BOUND)
def on_zero_extend(context: int, result: int, argument: int, translator: int) -> None:
    """tcg_gen_ext32u_i64: how the computation of each linear address ends."""
    t = cells(translator, em.CELLS)
    machine = em.machine_of(context) if result == argument else 0
    if machine != 0:
        m = cells(machine, mc.CELLS)
        if m[mc.ACCESSES] != 0:
            note_operand(m, t, context, result)
    call(t[em.EXT32U], (context, result, argument))


@callback(VOID, *[INT64] * 5, BOUND)
def on_load_64(
    context: int, value: int, address: int, index: int, operation: int, translator: int
) -> None:
    """tcg_gen_qemu_ld_i64."""
    t = cells(translator, em.CELLS)
    emit_access(context, value, address, index, operation, t, em.LOAD_64)


@callback(VOID, *[INT64] * 5, BOUND)
def on_store_64(
    context: int, value: int, address: int, index: int, operation: int, translator: int
) -> None:
    """tcg_gen_qemu_st_i64."""
    t = cells(translator, em.CELLS)
    emit_access(context, value, address, index, operation, t, em.STORE_64)


@callback(VOID, *[INT64] * 5, BOUND)
def on_load_32(
    context: int, value: int, address: int, index: int, operation: int, translator: int
) -> None:
    """tcg_gen_qemu_ld_i32."""
    t = cells(translator, em.CELLS)
    emit_access(context, value, address, index, operation, t, em.LOAD_32)


@callback(VOID, *[INT64] * 5, BOUND)
def on_store_32(
    context: int, value: int, address: int, index: int, operation: int, translator: int
) -> None:
    """tcg_gen_qemu_st_i32."""
    t = cells(translator, em.CELLS)
    emit_access(context, value, address, index, operation, t, em.STORE_32)
