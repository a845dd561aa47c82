"""Inside the engine's translator: counting instructions, and code that must not be translated.

Unicorn calls its translator through slots of its procedure linkage table. Three of
them are given functions of ours here (Linux x86-64 wheel only):

* Every block of translated code begins with a call that looks for a request to exit. Ours
  is called instead: it adds the block's instructions to the virtual clock, looks at the
  deadline, and at the request. A hook of the public interface does the same, at more than
  the cost of a small block. The calls of the same function behind loads and stores are left out.
* Far jumps, far calls and IRET look for a task switch first, which the engine would do by itself.
* What stores to memory, and where code is made of it, `coherence` wants to know.
* The translator is shown UD2 in place of code that it gets wrong, and told other things
  (`odd_code`). What is no #UD after all is carried out where #UD arrives
  (`dispatch.undefined_opcode`).

The slots serve all instances in the process; those that are not ours get what they had.
"""

import ctypes
import functools
import mmap
import struct

import numpy as np
from unicorn.unicorn_py3.unicorn import uclib

from trapgate.compiler.dialect import Cells
from trapgate.compiler.kinds import INT64, UINT32, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, memory, peek16, peek32, peek64, poke32, poke64
from trapgate.engine import assembly as asm
from trapgate.engine import coherence
from trapgate.engine import layout as at
from trapgate.engine import machine as mc
from trapgate.engine.audit import TB_SIZE, is_stale, note_source
from trapgate.engine.blocks import alignment_is_checked, must_stop
from trapgate.engine.linkage import slots
from trapgate.engine.odd_code import (
    CARE_ALIGNMENT,
    CARE_MXCSR,
    LOADS_SS,
    STI,
    TEST_TWIN,
    UNDEFINED,
    look,
)
from trapgate.engine.state import save_paging
from trapgate.errors import EngineError
from trapgate.paging.memory import load8
from trapgate.paging.walk import walk
from trapgate.sdm.state import BLOCKING_BY_MOV_SS, RFLAGS_RF, RFLAGS_VM

(
    TRANSLATOR_LOOP,
    GEN_CALL,
    CODE_BYTE,
    CONST_I64,
    FREE_TEMP,
    CHECK_EXIT,
    COUNT_CODE,
    CARE_CODE,
    GUARD_CODE,
    IRET,
    FAR_JUMP,
    FAR_CALL,
    IRET_CODE,
    FAR_JUMP_CODE,
    FAR_CALL_CODE,
    STI_CODE,
    SHADOW_CODE,
    READ_FLAGS,
    READ_FLAGS_CODE,
    THEIR_OPERATIONS,
    THEIR_TRANSLATE,
    OUR_OPERATIONS,
) = range(22)
"""Cells that all instances share; the last is the first of the translator's operations, as we
want them. What is to be remembered while a block is translated lies in the machine's cells."""

_OPERATIONS = 7
_CELLS = OUR_OPERATIONS + _OPERATIONS
_TRANSLATE_INSN = 4
_SENTINEL = 0x7A9_5EED
"""Stands for a block's count of instructions until it is known."""

# Layout of the translator's data.
_UC = 0x9970
_CPU = 0x1B8
"""In the handle, which is at `_UC` in the translator's context."""
_LAST_OP = 0x7390
_ARGUMENTS = 0x18
_BLOCK_FLAGS = 0xA8
_TB_FLAGS = 0x10
_TB_ICOUNT = 0x16
_TB_CFLAGS = 0x18
_TB_COUNT = 0x7FFF
"""Bits of a block's flags: at most so many instructions, 0 without a limit."""

_TASK_GATE = 5
_AC = 1 << 18
_CARE_AUDIT = 8


@jit
def last_op(context: int) -> int:
    """The operation that was emitted last into the translator's context."""
    return peek64(peek64(peek64(context + _LAST_OP) + 8))


@jit
def call_before(t: Cells, m: Cells, function: int, first: int, second: int) -> None:
    """Emit the call of a function of ours with two constants."""
    context = m[mc.TRANSLATION]
    m[mc.PAIR] = context + call(t[CONST_I64], (context, first))
    m[mc.PAIR_2] = context + call(t[CONST_I64], (context, second))
    call(t[GEN_CALL], (context, t[CHECK_EXIT], 0, 2, m[mc.SELF] + 8 * mc.PAIR))
    poke64(last_op(context) + _ARGUMENTS + 16, function)
    call(t[FREE_TEMP], (context, m[mc.PAIR]))
    call(t[FREE_TEMP], (context, m[mc.PAIR_2]))


@callback(VOID, *[INT64] * 6)
def on_translate(
    operations: int, block: int, cpu: int, tb: int, most: int, translator: int
) -> None:
    """translator_loop: translate a block, then tell its first call how long it came out."""
    t = cells(translator, _CELLS)
    if t[THEIR_OPERATIONS] != operations:
        for n in range(_OPERATIONS):
            t[OUR_OPERATIONS + n] = peek64(operations + 8 * n)
        t[THEIR_TRANSLATE] = t[OUR_OPERATIONS + _TRANSLATE_INSN]
        t[OUR_OPERATIONS + _TRANSLATE_INSN] = t[GUARD_CODE]
        t[THEIR_OPERATIONS] = operations
    machine = peek64(cpu + at.CPU_SIZE + at.MACHINE)
    if machine == 0:
        call(t[TRANSLATOR_LOOP], (operations, block, cpu, tb, most))
        return
    m = cells(machine, mc.CELLS)
    m[mc.CALL_OP] = 0
    m[mc.CARE] = 0
    if peek32(tb + _TB_FLAGS) & RFLAGS_RF:
        # It counts for the next instruction only.
        most = 1
    call(t[TRANSLATOR_LOOP], (translator + 8 * OUR_OPERATIONS, block, cpu, tb, most))
    if m[mc.AUDIT] != 0:
        note_source(m, cpu + at.CPU_SIZE, tb)
        m[mc.CARE] |= _CARE_AUDIT
    if m[mc.CALL_OP] == 0:
        return
    if peek32(tb + _TB_FLAGS) & _AC:
        m[mc.CARE] |= CARE_ALIGNMENT
    if m[mc.CARE] != 0:
        poke64(m[mc.CALL_OP] + _ARGUMENTS + 16, t[CARE_CODE])
        # A block is aligned to more than the bits of CARE.
        poke64(m[mc.COUNT_OP] + _ARGUMENTS + 8, tb | m[mc.CARE])
    else:
        poke64(m[mc.COUNT_OP] + _ARGUMENTS + 8, peek16(tb + _TB_ICOUNT))


@callback(VOID, *[INT64] * 6)
def on_gen_call(
    context: int, function: int, result: int, count: int, arguments: int, translator: int
) -> None:
    """tcg_gen_callN: emit the call of a helper, or of ours in its place."""
    t = cells(translator, _CELLS)
    cpu = peek64(peek64(context + _UC) + _CPU)
    machine = peek64(cpu + at.CPU_SIZE + at.MACHINE)
    ours = machine != 0 and cells(machine, mc.CELLS)[mc.NATIVE] != 0
    if machine != 0:
        cells(machine, mc.CELLS)[mc.TRANSLATION] = context
    checks = function == t[CHECK_EXIT] and ours
    # The first such call begins the block. The others follow loads and stores, and cost as much
    # as these: without them a request to exit is seen where the next block begins.
    if checks and cells(machine, mc.CELLS)[mc.CALL_OP] != 0:
        return
    if not checks:
        call(t[GEN_CALL], (context, function, result, count, arguments))
        if ours:
            place = last_op(context) + _ARGUMENTS + 8 * (count & 0xFF)
            for n in range(3):
                if function == t[IRET + n] and peek64(place) == function:
                    poke64(place, t[IRET_CODE + n])
        if machine != 0 and function == t[READ_FLAGS]:
            place = last_op(context) + _ARGUMENTS + 8 * ((count & 0xFF) + 1)
            if peek64(place) == function:
                poke64(place, t[READ_FLAGS_CODE])
        return
    m = cells(machine, mc.CELLS)
    m[mc.PAIR] = context + call(t[CONST_I64], (context, machine))
    m[mc.PAIR_2] = context + call(t[CONST_I64], (context, _SENTINEL))
    m[mc.COUNT_OP] = last_op(context)
    call(t[GEN_CALL], (context, function, result, 2, machine + 8 * mc.PAIR))
    op = last_op(context)
    known = peek64(m[mc.COUNT_OP] + _ARGUMENTS + 8) == _SENTINEL
    if known and peek64(op + _ARGUMENTS + 16) == function:
        m[mc.CALL_OP] = op
        poke64(op + _ARGUMENTS + 16, t[COUNT_CODE])
    call(t[FREE_TEMP], (context, m[mc.PAIR]))
    call(t[FREE_TEMP], (context, m[mc.PAIR_2]))


@callback(VOID, *[INT64] * 3)
def on_instruction(block: int, cpu: int, translator: int) -> None:
    """translate_insn: look at an instruction before it is translated (`odd_code`)."""
    t = cells(translator, _CELLS)
    env = cpu + at.CPU_SIZE
    machine = peek64(env + at.MACHINE)
    m = cells(machine, mc.CELLS)
    task_switched = peek32(block + _BLOCK_FLAGS) & at.HF_TS
    found = look(t[CODE_BYTE], block, env)
    if found == STI:
        call_before(t, m, t[STI_CODE], machine, env)
    elif found == LOADS_SS:
        call_before(t, m, t[SHADOW_CODE], machine, BLOCKING_BY_MOV_SS)
    call(t[THEIR_TRANSLATE], (block, cpu))
    # It may have been hidden from this instruction.
    poke32(block + _BLOCK_FLAGS, peek32(block + _BLOCK_FLAGS) | task_switched)
    m[mc.FORBIDDEN] = 0


@callback(UINT32, *[INT64] * 3)
def on_code_byte(env: int, address: int, translator: int) -> int:
    """cpu_ldub_code: a byte of code; of UD2 where what is there must not be translated."""
    t = cells(translator, _CELLS)
    machine = peek64(env + at.MACHINE)
    if machine != 0:
        m = cells(machine, mc.CELLS)
        if m[mc.FORBIDDEN] == TEST_TWIN and address == m[mc.FORBIDDEN_AT]:
            # With reg 0 it is TEST, too.
            return call(t[CODE_BYTE], (env, address)) & 0xC7
        if m[mc.FORBIDDEN] == UNDEFINED:
            if address == m[mc.FORBIDDEN_AT]:
                return 0x0F
            if address == m[mc.FORBIDDEN_AT] + 1:
                return 0x0B
    return call(t[CODE_BYTE], (env, address)) & 0xFF


@jit
def switch_tasks(env: int, return_address: int) -> None:
    """Leave the instruction that would switch tasks for the hook to deal with."""
    m = cells(peek64(env + at.MACHINE), mc.CELLS)
    poke32(env + at.ERROR_CODE, 0)
    poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_TASK_SWITCH)
    call(m[mc.CPU_LOOP_EXIT_RESTORE], (m[mc.CPU], return_address))


@callback(VOID, *[INT64] * 3)
def on_task_return(env: int, selector: int, return_address: int) -> None:
    """IRET with RFLAGS.NT: in protected mode a task switch, in IA-32e mode the engine's #GP."""
    if peek64(env + at.EFER) & 1 << 10 == 0:
        switch_tasks(env, return_address)


@callback(VOID, *[INT64] * 3)
def on_far_transfer(env: int, selector: int, return_address: int) -> None:
    """A far jump or call to `selector`: whether that is a TSS or a task gate."""
    m = cells(peek64(env + at.MACHINE), mc.CELLS)
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    selector &= 0xFFFF
    table = env + at.SEGMENTS + at.SEGMENT_SIZE * (6 if selector & 4 else 8)
    if selector & 0xFFFC == 0 or selector | 7 > peek32(table + at.LIMIT):
        return
    linear = peek64(table + at.BASE) + (selector & 0xFFF8) + 5
    v = cells(m[mc.V], m[mc.V_CELLS])
    save_paging(env, v)
    physical, code, _, _ = walk(v, 0x40000, mem, linear, 0, 0)
    kind = load8(mem, physical) & 0x1F if code < 0 else 0
    coherence.forget_stale_code(m)
    if kind == _TASK_GATE or (kind & ~10 == 1 and peek64(env + at.EFER) & 1 << 10 == 0):
        switch_tasks(env, return_address)


@callback(INT64, INT64)
def on_deadline(machine: int) -> int:
    """At a block's start, when the deadline has come: whether the engine has to stop."""
    m = cells(machine, mc.CELLS)
    if not must_stop(m):
        return 0
    call(m[mc.EMU_STOP], (m[mc.UC],))
    return 1


@callback(INT64, *[INT64] * 3)
def on_careful_block(machine: int, tagged: int, return_address: int) -> int:
    """At the start of a block that needs care: whether the engine has to stop.

    Where alignment is checked, `trapgate.processor.stepping` executes the block. Where the block
    may change MXCSR it is cut: executed one instruction at a time, until the one after
    which exceptions may be unmasked.
    """
    m = cells(machine, mc.CELLS)
    tb = tagged & ~0xF
    if tagged & _CARE_AUDIT and is_stale(m, m[mc.ENV], tb, peek64(tb), peek16(tb + TB_SIZE)):
        call(m[mc.EMU_STOP], (m[mc.UC],))
        return 1
    if m[mc.TIME] >= m[mc.DEADLINE] and must_stop(m):
        call(m[mc.EMU_STOP], (m[mc.UC],))
        return 1
    if m[mc.STEPPING] != 0:
        m[mc.TIME] += peek16(tb + _TB_ICOUNT)
        return 0
    if alignment_is_checked(m):
        m[mc.STOP] = mc.CHECKED
        m[mc.STOP_CODE] = mc.CHECK_NEXT
        call(m[mc.EMU_STOP], (m[mc.UC],))
        return 1
    if tagged & CARE_MXCSR == 0:
        m[mc.TIME] += peek16(tb + _TB_ICOUNT)
        return 0
    if peek32(tb + _TB_CFLAGS) & _TB_COUNT == 1:
        m[mc.TIME] += 1
        # What it has done to MXCSR is looked at where the next block starts.
        m[mc.DEADLINE] = 0
        return 0
    poke32(m[mc.CPU] + at.CFLAGS_NEXT_TB, 1)
    poke32(m[mc.EXCEPTION_INDEX], -1)
    call(m[mc.CPU_LOOP_EXIT_RESTORE], (m[mc.CPU], return_address))
    return 0


def _stub(function: int, register: int, value: int) -> bytes:
    """Machine code that goes on at `function` with one more argument."""
    return asm.assemble(asm.constant(register, value), *asm.jump_to(function))


def _asked_to_exit(check_exit: int) -> list[asm.Line]:
    """Go on at the engine's own look for a request to exit; RDI is the machine."""
    return [
        asm.load(asm.RDI, asm.RDI, 8 * mc.UC),
        asm.clear(asm.RSI),
        *asm.jump_to(check_exit),
    ]


def _count_code(request: int, check_exit: int) -> bytes:
    """Begin a block of RSI instructions on the machine RDI.

    The engine calls this where it would call its own `check_exit`, at every block;
    `request` is where in the CPU both look for a request to exit, in bytes.
    """
    return asm.assemble(
        asm.load(asm.RAX, asm.RDI, 8 * mc.TIME),
        asm.load(asm.RCX, asm.RDI, 8 * mc.CPU),
        asm.compare(asm.RAX, asm.RDI, 8 * mc.DEADLINE),
        (asm.JGE, "deadline"),
        "begin",
        asm.compare_32(asm.RCX, request, 0),
        (asm.JS, "asked to exit"),
        asm.add(asm.RAX, asm.RSI),
        asm.store(asm.RDI, 8 * mc.TIME, asm.RAX),
        asm.RET,
        "deadline",
        *asm.call_saving(on_deadline.address, asm.RDI, asm.RSI, asm.RCX),
        asm.test(asm.RAX),
        (asm.JNE, "asked to exit"),
        asm.load(asm.RAX, asm.RDI, 8 * mc.TIME),
        (asm.JMP, "begin"),
        "asked to exit",
        *_asked_to_exit(check_exit),
    )


def _care_code(request: int, check_exit: int) -> bytes:
    """Begin a block that needs care, the tagged RSI, on the machine RDI."""
    return asm.assemble(
        asm.load(asm.RDX, asm.RSP, 0),  # where the block's code goes on
        *asm.call_saving(on_careful_block.address, asm.RDI, asm.RSI, asm.RCX),
        asm.test(asm.RAX),
        (asm.JNE, "asked to exit"),
        asm.load(asm.RCX, asm.RDI, 8 * mc.CPU),
        asm.compare_32(asm.RCX, request, 0),
        (asm.JS, "asked to exit"),
        asm.RET,
        "asked to exit",
        *_asked_to_exit(check_exit),
    )


def _before(check: int, function: int, *unless: asm.Line) -> bytes:
    """Go on at `function`, a helper of the engine's, after `check` with two of its arguments.

    `unless` is code that says by ZF = 1 that no check is needed.
    """
    saved = asm.RDI, asm.RSI, asm.RDX, asm.RCX, asm.R8
    goes_on = asm.load(asm.RDX, asm.RSP, 8 * len(saved))  # where the block's code goes on
    return asm.assemble(
        *unless,
        *([(asm.JE, "go on")] if unless else []),
        *asm.call_saving(check, *saved, first=(goes_on,)),
        "go on",
        *asm.jump_to(function),
    )


def _pushed_flags_code(read_flags: int) -> bytes:
    """The flags as PUSHF stores them: without RF and VM."""
    return asm.assemble(
        *asm.call_saving(read_flags, asm.RDI),
        asm.and_32(asm.EAX, ~(RFLAGS_RF | RFLAGS_VM)),
        asm.RET,
    )


_STI_CODE = asm.assemble(
    asm.clear(asm.RAX),
    asm.test_32(asm.RSI, at.EFLAGS, 1 << 9),
    asm.set_if_zero(asm.AL),
    asm.store(asm.RDI, 8 * mc.SHADOW, asm.RAX),
    asm.RET,
)
"""STI of the CPU state RSI on the machine RDI blocks interrupts if it enables them."""

_SHADOW_CODE = asm.assemble(asm.store(asm.RDI, 8 * mc.SHADOW, asm.RSI), asm.RET)
"""What RSI says is blocked behind the instruction."""

_NESTED_TASK = asm.test_32(asm.RDI, at.EFLAGS, 1 << 14)
"""Whether RFLAGS.NT of the CPU state at RDI is 1."""


class Translator:
    """The functions of ours in the engine's translator; one for the process, never taken out.

    Raises EngineError where the library is not as expected.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        names = ("translator_loop", "tcg_gen_callN", "cpu_ldub_code")
        places = slots(library, tuple(f"{name}_x86_64" for name in (*names, *coherence.SLOTS)))
        check_exit = _symbol(library, "helper_check_exit_request")
        request = _request(check_exit)
        t = self.cells = np.zeros(_CELLS, np.int64)
        address = int(t.ctypes.data)
        self._code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._free = 0
        t[TRANSLATOR_LOOP] = _symbol(library, "translator_loop")
        t[GEN_CALL] = _symbol(library, "tcg_gen_callN")
        t[CODE_BYTE] = _symbol(library, "cpu_ldub_code")
        t[CONST_I64] = _symbol(library, "tcg_const_i64")
        t[FREE_TEMP] = _symbol(library, "tcg_temp_free_internal")
        t[CHECK_EXIT] = check_exit
        t[COUNT_CODE] = self._place(_count_code(request, check_exit))
        t[CARE_CODE] = self._place(_care_code(request, check_exit))
        t[GUARD_CODE] = self._place(_stub(on_instruction.address, asm.RDX, address))
        t[READ_FLAGS] = _symbol(library, "helper_read_eflags")
        t[READ_FLAGS_CODE] = self._place(_pushed_flags_code(int(t[READ_FLAGS])))
        t[STI_CODE] = self._place(_STI_CODE)
        t[SHADOW_CODE] = self._place(_SHADOW_CODE)
        t[IRET] = _symbol(library, "helper_iret_protected")
        t[FAR_JUMP] = _symbol(library, "helper_ljmp_protected")
        t[FAR_CALL] = _symbol(library, "helper_lcall_protected")
        t[IRET_CODE] = self._place(_before(on_task_return.address, int(t[IRET]), _NESTED_TASK))
        t[FAR_JUMP_CODE] = self._place(_before(on_far_transfer.address, int(t[FAR_JUMP])))
        t[FAR_CALL_CODE] = self._place(_before(on_far_transfer.address, int(t[FAR_CALL])))
        for name, function, register in zip(
            names, (on_translate, on_gen_call, on_code_byte), (asm.R9, asm.R9, asm.RDX), strict=True
        ):
            stub = self._place(_stub(function.address, register, address))
            ctypes.c_uint64.from_address(places[f"{name}_x86_64"]).value = stub

        for name, (coherent, register) in coherence.SLOTS.items():
            # Each is told, behind its arguments, the address of what the engine would have called.
            theirs = _symbol(library, name)
            stub = self._place(_stub(coherent.address, register, theirs))
            ctypes.c_uint64.from_address(places[f"{name}_x86_64"]).value = stub

    def _place(self, code: bytes) -> int:
        start = self._free
        self._code[start : start + len(code)] = code
        self._free += (len(code) + 15) & ~15
        return self._page + start


def _symbol(library: ctypes.CDLL, name: str) -> int:
    try:
        address = ctypes.cast(getattr(library, f"{name}_x86_64"), ctypes.c_void_p).value
    except AttributeError:
        raise EngineError(f"the Unicorn library has no symbol {name}_x86_64") from None
    assert address is not None
    return address


def _request(check_exit: int) -> int:
    """Where in the CPU `check_exit` looks for a request to exit, by its own machine code."""
    code = ctypes.string_at(check_exit, 16)
    # mov r8, [rdi + cpu]; mov eax, [r8 + request]; test eax, eax
    if (code[:3], code[7:10], code[14:16]) != (b"\x4c\x8b\x87", b"\x41\x8b\x80", b"\x85\xc0"):
        raise EngineError("the engine's check for requests to exit is not the expected one")
    cpu, request = (struct.unpack_from("<i", code, place)[0] for place in (3, 10))
    if cpu != _CPU:
        raise EngineError("the engine's handle has another layout")
    assert isinstance(request, int)
    return request


@functools.cache
def translator() -> Translator:
    """The process's one `Translator`. Raises EngineError where the library is not as expected."""
    return Translator(uclib)
