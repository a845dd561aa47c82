"""Emitting operations into the engine's translator (TCG), and the cells that all hooks in it share.

Compiled only. `context` is the address of the translator's
context. A temporary is known by its distance from it; in operations stands its address.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit
from trapgate.compiler.raw import call, peek8, peek64, poke64
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.library.host import HOST

SYMBOLS = (
    "translator_loop",
    "tcg_gen_callN",
    "cpu_ldub_code",
    "tcg_gen_ext32u_i64",
    "tcg_gen_qemu_ld_i64",
    "tcg_gen_qemu_st_i64",
    "tcg_gen_qemu_ld_i32",
    "tcg_gen_qemu_st_i32",
    "tcg_gen_exit_tb",
    "tcg_gen_op2",
    "tcg_gen_op3",
    "tcg_temp_new_internal",
    "tcg_temp_free_internal",
    "tcg_const_i64",
    "tcg_gen_movcond_i64",
    "tcg_gen_lookup_and_goto_ptr",
    "helper_check_exit_request",
    "helper_lookup_tb_ptr",
    "helper_single_step",
    "helper_read_eflags",
    "helper_enter_mmx",
    "helper_mulps",
    "helper_mulpd",
    "helper_addps",
    "helper_addpd",
    "helper_fistll_ST0",
    "cpu_lduw_data_ra",
    "cpu_ldl_data_ra",
    "cpu_ldq_data_ra",
    "cpu_stw_data_ra",
    "cpu_stl_data_ra",
    "cpu_stq_data_ra",
    "helper_fmov_FT0_STN",
    "helper_fadd_ST0_FT0",
)
"""Functions of the engine's, less `_x86_64`. Their addresses are the first cells, in this order."""

(
    TRANSLATOR_LOOP,
    GEN_CALL,
    CODE_BYTE,
    EXT32U,
    LOAD_64,
    STORE_64,
    LOAD_32,
    STORE_32,
    EXIT_BLOCK,
    OP_2,
    OP_3,
    NEW_TEMPORARY,
    RELEASE,
    CONSTANT,
    CONDITIONAL_MOVE,
    GO_TO_NEXT,
    CHECK_EXIT,
    LOOK_UP,
    SINGLE_STEP,
    READ_FLAGS,
    ENTER_MMX,
    MULTIPLY_SINGLES,
    MULTIPLY_DOUBLES,
    ADD_SINGLES,
    ADD_DOUBLES,
    TO_INTEGER,
    LOAD_DATA_16,
    LOAD_DATA_32,
    LOAD_DATA_64,
    STORE_DATA_16,
    STORE_DATA_32,
    STORE_DATA_64,
    TAKE_OPERAND,
    ADD_OPERAND,
    COUNT_CODE,
    CARE_CODE,
    PORTABLE_CODE,
    GUARD_CODE,
    REFUSE_CODE,
    STI_CODE,
    SHADOW_CODE,
    X87_BEGINS,
    X87_ENDS,
    X87_COMPARES,
    X87_RELOADS,
    MXCSR_CODE,
    EXCHANGE_BEGINS,
    EXCHANGE_ENDS,
    ENTER_BEGINS,
    ENTER_ENDS,
    MMX_ENDS,
    PUSHED_FLAGS,
    WHOLE_FLAGS,
    LOOK_UP_CANONICAL,
    SINGLE_STEP_CANONICAL,
    LOOK_UP_WITHIN_LIMIT,
    SINGLE_STEP_WITHIN_LIMIT,
    WHOLE_STORE_CODE,
    STORE_TO_COME_CODE,
    ARITHMETIC_CODE,
    RESULT_CODE,
    ROUNDING_CODE,
    X87_STORE,
    X87_IMAGE,
    STRING_CODE,
    STUCK_CODE,
    THEIR_OPERATIONS,
    THEIR_TRANSLATE,
    OUR_OPERATIONS,
) = range(69)
"""After them those of machine code of ours, and from the last on the translator's operations, as
we want them. What is to be remembered while a block is translated lies in the machine's cells."""

OPERATIONS = 7
SUBSTITUTES = OUR_OPERATIONS + OPERATIONS
"""Pairs of cells: a helper of the engine's, and what is called instead."""
SUBSTITUTE_PAIRS = 66
OPERANDS = SUBSTITUTES + 2 * SUBSTITUTE_PAIRS
"""Pairs of cells: a helper that is given an operand's address, and the operand's size in
bytes, or -1 less that if it stores."""
OPERAND_PAIRS = 20
ROUNDING = OPERANDS + 2 * OPERAND_PAIRS
"""Helpers whose results are rounded (`x87.rounding`)."""
ROUNDING_HELPERS = 14
RESULTS = ROUNDING + ROUNDING_HELPERS
"""Pairs of cells: a helper of SSE arithmetic, and what it does (`sse_results`)."""
RESULT_PAIRS = 16
CELLS = RESULTS + 2 * RESULT_PAIRS

# Layout of the translator's data.
UC = HOST.handle_of_translator
"""In the translator's context: the handle."""
LAST_OP = HOST.last_operation
ARGUMENTS = 0x18
"""In an operation: its arguments, eight bytes each."""
_GLOBAL_BASE = 0x10
_GLOBAL_OFFSET = 0x18
"""In a temporary: whether it stands for memory of the CPU state, and where that is."""

# Opcodes and conditions of Unicorn 2.1.4's tcg-opc.h and tcg-cond.h, on 64 bits.
MOVE, MOVE_CONSTANT, LOAD, STORE, ADD, SUBTRACT, AND, ZERO_EXTEND = 63, 64, 73, 77, 78, 79, 87, 109
BELOW = 4
_I64 = 1


@jit
def machine_of(context: int) -> int:
    """The cells of the machine whose code is translated; 0 if it is none of ours."""
    return peek64(peek64(peek64(context + UC) + at.CPU_OF_HANDLE) + at.CPU_SIZE + at.MACHINE)


@jit
def last_op(context: int) -> int:
    """The operation that was emitted last."""
    return peek64(peek64(peek64(context + LAST_OP) + 8))


@jit
def op_before(op: int) -> int:
    """The operation that was emitted before another."""
    return peek64(peek64(peek64(op + 0x10) + 8))


@jit
def argument(op: int, n: int) -> int:
    """Where argument `n` of an operation is: the address of a temporary, or a constant."""
    return op + ARGUMENTS + 8 * n


@jit
def is_add(op: int, result: int) -> bool:
    """Whether an operation is an addition of 64 bits into the temporary at `result`."""
    return peek8(op) == ADD and peek64(argument(op, 0)) == result


@jit
def is_store(op: int, value: int) -> bool:
    """Whether an operation stores the 64 bits in the temporary at `value` to the host's memory."""
    return peek8(op) == STORE and peek64(argument(op, 0)) == value


@jit
def is_store_at(op: int, offset: int) -> bool:
    """Whether an operation stores 64 bits so far from an address; of EIP no other comes near."""
    return peek8(op) == STORE and peek64(argument(op, 2)) == offset


@jit
def is_constant(op: int, result: int) -> bool:
    """Whether an operation moves its second argument, a constant, to the temporary at `result`."""
    return peek8(op) == MOVE_CONSTANT and peek64(argument(op, 0)) == result


@jit
def segment_of(temporary: int) -> int:
    """The segment (0 ES to 5 GS) whose base a temporary stands for; -1 if none."""
    if peek64(temporary + _GLOBAL_BASE) == 0:
        return -1
    place = peek64(temporary + _GLOBAL_OFFSET) - at.SEGMENTS - at.BASE
    for n in range(6):
        if place == at.SEGMENT_SIZE * n:
            return n
    return -1


@jit
def emit_2(t: Cells, context: int, opcode: int, result: int, operand: int) -> None:
    """Emit an operation on two temporaries."""
    call(t[OP_2], (context, opcode, result, operand))


@jit
def emit_3(t: Cells, context: int, opcode: int, result: int, first: int, second: int) -> None:
    """Emit an operation on three; for LOAD and STORE the last is an offset in bytes."""
    call(t[OP_3], (context, opcode, result, first, second))


@jit
def new_temporary(t: Cells, context: int) -> int:
    """A temporary of 64 bits, by its distance from the context."""
    return call(t[NEW_TEMPORARY], (context, _I64, 0)) - context


@jit
def new_constant(t: Cells, context: int, value: int) -> int:
    """The same with a value."""
    return call(t[CONSTANT], (context, value))


@jit
def release(t: Cells, context: int, temporary: int) -> None:
    """Give a temporary back."""
    call(t[RELEASE], (context, context + temporary))


@jit
def emit_call(t: Cells, m: Cells, function: int, first: int, second: int) -> None:
    """Emit the call of a function of ours with two constants, where the engine is translating."""
    context = m[mc.TRANSLATION]
    first = new_constant(t, context, first)
    second = new_constant(t, context, second)
    emit_call_of(t, m, context, function, context + first, context + second)
    release(t, context, first)
    release(t, context, second)


@jit
def emit_call_of(t: Cells, m: Cells, context: int, function: int, first: int, second: int) -> None:
    """Emit the call of a function of ours with two temporaries, by their addresses.

    The engine must know what it calls, so it is asked to call its own CHECK_EXIT.
    """
    m[mc.PAIR] = first
    m[mc.PAIR_2] = second
    emit_prepared_call(t, m, context, function, 2, 0)


@jit
def emit_prepared_call(
    t: Cells, m: Cells, context: int, function: int, count: int, result: int
) -> None:
    """Emit the call of a function of ours with the `count` temporaries in PAIR and after it.

    `result` is the address of a temporary for what it returns, or 0.
    """
    call(t[GEN_CALL], (context, t[CHECK_EXIT], result, count, m[mc.SELF] + 8 * mc.PAIR))
    place = argument(last_op(context), count if result == 0 else count + 1)
    if peek64(place) == t[CHECK_EXIT]:
        poke64(place, function)


@jit
def emit_address_check(
    t: Cells, m: Cells, context: int, function: int, address: int, size: int
) -> None:
    """Emit the call of what looks at an access of `size` bytes; `address`: that of a temporary."""
    machine = new_constant(t, context, m[mc.SELF])
    length = new_constant(t, context, size)
    m[mc.PAIR] = context + machine
    m[mc.PAIR_2] = address
    m[mc.PAIR_3] = context + length
    emit_prepared_call(t, m, context, function, 3, 0)
    release(t, context, machine)
    release(t, context, length)
