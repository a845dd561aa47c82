"""Instructions that the engine's translator gets wrong: what it is shown or told instead.

`look` is asked about each instruction before it is translated, on both paths of the Linux
wheels. It has these means:

* UD2 is shown in place of code that is not an instruction (`decode.undefined`), and of instructions
  that the core carries out: INS and OUTS, RET that releases 8000H bytes or more, loads of table
  registers, CLFLUSH, XSETBV, ARPL of memory, POPCNT in 16-bit code, above ring 0 MOV CR and MOV
  DR, and in real-address and virtual-8086 mode far JMP and RET that may lead beyond the limit of
  CS. `dispatch` sees it as #UD.
* CR0.TS is hidden from the translator where #UD comes before #NM (SDM, the exception classes
  of MMX and SSE instructions), and where no register of theirs is used at all; CR0.EM and
  CR4.OSFXSR are hidden from CRC32, which the translator takes for one of them.
* Of several prefixes the one that counts is shown in place of all: of F2H and F3H the last one,
  before an SSE instruction also in place of 66H; in 64-bit mode FS or GS of several segments.
  Before a near branch in 64-bit mode 66H is not shown.
* Another byte is shown for a REX, an immediate or a ModR/M byte of which the translator makes more
  than it means (`decode.register_forms`), and for the LOCK of NEG.
* STI, MOV SS and POP SS leave word of what they block, for which the engine has one flag
  only; in the shadow of another the engine would not block again.

The engine clears RF where a block ends, unless a branch leads from block to block. With RF set a
block has one instruction (`translation`), and branches but those of REP go the long way.
"""

from trapgate.compiler.dialect import Cells, core
from trapgate.compiler.program import jit
from trapgate.compiler.raw import call, cells, peek32, peek64, poke32
from trapgate.decode.adjust_rpl import ARPL
from trapgate.decode.read_modify_write import fields_of_one_byte, fields_of_two_bytes
from trapgate.decode.register_forms import (
    bytes_of_operand,
    has_predicate,
    is_narrow_exchange,
    register_exchanged,
    rex_of_mmx,
    rex_of_one_byte,
    spares_x87,
)
from trapgate.decode.sixteen_bit_code import is_misread_in_16_bit_code
from trapgate.decode.sse_arithmetic import NO_ARITHMETIC, sse_arithmetic
from trapgate.decode.sse_operands import (
    has_aligned_operand,
    is_chosen_by_prefix,
    mmx_destination,
    uses_mmx_registers,
)
from trapgate.decode.undefined import (
    ALL_FORMS,
    ONE_BYTE,
    THREE_BYTES,
    TWO_BYTES,
    has_form,
    is_undefined_behind_escape,
    is_undefined_x87,
    undefined_forms,
)
from trapgate.decode.whole_stores import (
    NOT_WHOLE,
    may_store_whole,
    may_store_whole_vector,
    whole_store,
    whole_vector_store,
)
from trapgate.decode.x87_operands import x87_operands
from trapgate.decode.x87_pointers import (
    ACTION_SHIFT,
    EXTENDED,
    IN_MEMORY,
    OPCODE_SHIFT,
    POINTS,
    WIDE,
    image_action,
    x87_action,
)
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.x87.exceptions import ENTERS_MMX, SPARES_X87, kind_of_x87
from trapgate.engine.x87.pointers import look_at_operand
from trapgate.instructions.far_transfers import is_far_branch
from trapgate.instructions.near_return import RET_AND_RELEASE
from trapgate.operands.encoding import is_prefix
from trapgate.sdm.state import RFLAGS_VM

_NEXT_PC = 0x10
_FLAGS = 0xA8
_JUMPS_FAST = 0x98
"""In the translator's context of a block: the next address, the flags that it translates for,
and whether a branch may lead right to the next block."""

# Why a block needs care where it begins (`careful_blocks`).
CARE_MXCSR = 1
"""It may change MXCSR."""
CARE_ALIGNMENT = 2
"""It runs with RFLAGS.AC."""
CARE_LIMIT = 4
"""It may end beyond the limit of CS."""
CARE_AUDIT = 8
"""Its source is compared with what it was made of (`audit`)."""
CARE_BREAKPOINT = 16
"""It begins with a debugger's breakpoint (`breakpoints`)."""

NEEDS_OF_VECTORS = at.HF_EM | at.HF_TS | at.HF_OSFXSR
"""Of a block's flags those by which MMX and SSE instructions are #UD or #NM."""
_NO_PREFIX = 0x3E
"""A segment override that means nothing in 64-bit mode."""

# What is shown in place of prefixes below PREFIXES_END: a byte each of PREFIXES, 0 for themselves.
REPEATS = 0
"""F2H and F3H."""
OPERAND_SIZES = 8
"""66H."""
SEGMENTS = 16
"""26H, 2EH, 36H and 3EH."""

PLAIN = 0
STI = 1
LOADS_SS = 2
USES_MXCSR = 3
X87 = 4
"""Plus the kind that `kind_of_x87` finds."""
MMX = 8
COMPARES_AND_EXCHANGES = 9
"""CMPXCHG of 32 bits in 64-bit mode, of the register in DESTINATION."""
ENTERS = 10
"""ENTER, with the size of its operands in bytes in DESTINATION."""
"""What `look` finds out beside."""

_SS = 2
_XSETBV = 0xD1
_MOVNTDQA = 0x2A
_PUSHF = 0x9C
_ENTER = 0xC8
_IRET = 0xCF
_REX_W = 8
_EMMS = 0x77
_CPL = 3
_RF = 1 << 16


@jit
def code_byte(reader: int, env: int, address: int) -> int:
    """A byte of code, by the engine's function `reader`; faults as the translator's own fetch."""
    return call(reader, (env, address)) & 0xFF


@core
def uses_vector_registers(opcode_map: int, opcode: int, prefixed: bool) -> bool:
    """Whether an opcode after 0FH is an SSE instruction, which needs CR4.OSFXSR.

    `prefixed`: 66H, F2H or F3H is among the prefixes; without those many are MMX instructions.
    LDMXCSR and STMXCSR aside.
    """
    if opcode_map == THREE_BYTES:
        return prefixed
    if 0x10 <= opcode <= 0x17 or 0x28 <= opcode <= 0x2F or 0x50 <= opcode <= 0x5F:
        return True
    if opcode in (0xC2, 0xC6):
        return True
    return prefixed and (0x60 <= opcode <= 0x7F or opcode >= 0xC4)


@core
def is_vector_opcode(escape: int, opcode: int, repeat: int, operand_size: bool) -> bool:
    """Whether 0FH `escape` (38H or 3AH) `opcode` is an MMX or SSE instruction of this processor.

    `repeat` is the last of F2H and F3H among the prefixes, or 0; `operand_size`: 66H is there.
    """
    if repeat != 0:
        return False
    if escape == 0x3A:
        if opcode == 0x0F:
            return True
        return operand_size and bool(
            0x08 <= opcode <= 0x0E
            or 0x14 <= opcode <= 0x17
            or 0x20 <= opcode <= 0x22
            or 0x40 <= opcode <= 0x42
            or 0x60 <= opcode <= 0x63
        )
    if opcode <= 0x0B or 0x1C <= opcode <= 0x1E:
        return True
    return operand_size and bool(
        opcode in (0x10, 0x14, 0x15, 0x17)
        or 0x20 <= opcode <= 0x25
        or 0x28 <= opcode <= 0x2B
        or (0x30 <= opcode <= 0x41 and opcode != 0x36)
    )


@jit
def hides_task_switched(
    reader: int, env: int, address: int, second: int, repeat: int, operand_size: bool, flags: int
) -> bool:
    """Whether CR0.TS is to be hidden from the opcode 0FH `second`, which ends before `address`."""
    if flags & at.HF_EM:
        return True
    prefixed = operand_size or repeat != 0
    if second in (0x38, 0x3A):
        opcode = code_byte(reader, env, address)
        if second == 0x38 and opcode == _MOVNTDQA and code_byte(reader, env, address + 1) >= 0xC0:
            return True
        return flags & at.HF_OSFXSR == 0 and prefixed
    if flags & at.HF_OSFXSR:
        return False
    if second == 0xAE:
        form = code_byte(reader, env, address)
        return form < 0xC0 and (form >> 3) & 7 in (2, 3)
    return uses_vector_registers(TWO_BYTES, second, prefixed)


@core
def is_near_branch(opcode_map: int, opcode: int) -> bool:
    """Whether this is a near branch, or FFH, which may be one."""
    if opcode_map != ONE_BYTE:
        return opcode_map == TWO_BYTES and opcode & 0xF0 == 0x80
    return bool(
        opcode & 0xF0 == 0x70
        or 0xE0 <= opcode <= 0xE3
        or opcode in (0xC2, 0xC3, 0xE8, 0xE9, 0xEB, 0xFF)
    )


@core
def is_carried_out(second: int, form: int, cpl: int) -> bool:
    """Whether the core carries out 0FH `second` (one of 00H, 01H, 20H to 23H) with this ModR/M."""
    if second >= 0x20:
        return cpl != 0
    if second == 1 and form >= 0xC0:
        return form == _XSETBV
    return (form >> 4) & 3 == 1


@core
def is_repeated(opcode: int, repeat: int) -> bool:
    """Whether REP makes one-byte `opcode`, a string instruction, branch to itself."""
    return repeat != 0 and (0xA4 <= opcode <= 0xA7 or 0xAA <= opcode <= 0xAF)


@jit
def reach_of_branch(m: Cells, flags: int, byte: int, branches: bool, large_operand: bool) -> int:
    """What BRANCH_IS_FAR has to say of an instruction with this opcode, if it is a branch.

    `flags` are those of its block, `branches` whether it is a near one. Far is what may lead beyond
    a limit that is not that of all 16-bit code, or above 64 KB.
    """
    if m[mc.ACCESSES] != mc.ACCESSES_ALL:
        return 0
    if flags & at.HF_CODE_LIMITED or (flags & at.HF_CS32 == 0 and large_operand):
        unnamed = byte & 0xFC == 0xE0 or (branches and flags & _RF != 0)
        return mc.FAR_UNNAMED if unnamed else 1
    return 0


@jit
def changes_operand(reader: int, env: int, opcode_map: int, opcode: int, form_at: int) -> int:
    """1 if the instruction with its ModR/M byte at `form_at` writes the operand that it reads."""
    fields = 0
    if opcode_map == ONE_BYTE:
        fields = fields_of_one_byte(opcode)
    elif opcode_map == TWO_BYTES:
        fields = fields_of_two_bytes(opcode)
    if fields == 0:
        return 0
    return (fields >> ((code_byte(reader, env, form_at) >> 3) & 7)) & 1


@jit
def show_byte(m: Cells, address: int, byte: int) -> None:
    """Show the translator another byte at a linear address."""
    m[mc.SHOWN] = mc.IS_SHOWN | byte
    m[mc.SHOWN_AT] = address


@jit
def show_predicate(m: Cells, reader: int, env: int, form_at: int, short_address: bool) -> None:
    """Show the three bits that count of the byte after an operand in ModR/M at `form_at`."""
    form = code_byte(reader, env, form_at)
    sib = code_byte(reader, env, form_at + 1)
    place = form_at + 1 + bytes_of_operand(form, sib, short_address)
    show_byte(m, place, code_byte(reader, env, place) & 7)


@jit
def look_at_prefixes(
    m: Cells, reader: int, env: int, form_at: int, repeat: int, operand_size: bool
) -> None:
    """Tell of an SSE instruction which prefix counts, and whether its operand is aligned.

    Its opcode ends before `form_at`.
    """
    opcode = code_byte(reader, env, form_at - 1)
    escape = 0
    if opcode in (0x38, 0x3A):
        escape = opcode
        opcode = code_byte(reader, env, form_at)
    elif repeat != 0 and is_chosen_by_prefix(opcode):
        m[mc.PREFIXES] |= repeat << REPEATS | repeat << OPERAND_SIZES
    if has_aligned_operand(escape, opcode, repeat, operand_size):
        m[mc.ALIGNED] = 1


@jit
def examine_instruction(reader: int, block: int, env: int) -> int:
    """Look at the instruction that `block` translates next; PLAIN, STI, LOADS_SS or X87.

    FORBIDDEN is 1 if UD2 is to be shown at FORBIDDEN_AT.
    """
    m = cells(peek64(env + at.MACHINE), mc.CELLS)
    m[mc.FORBIDDEN] = 0
    m[mc.PREFIXES] = 0
    m[mc.SHOWN] = 0
    m[mc.ALIGNED] = 0
    m[mc.WHOLE] = NOT_WHOLE
    m[mc.ARITHMETIC] = NO_ARITHMETIC
    m[mc.X87_WHAT] = 0
    m[mc.X87_OPERANDS] = 0
    m[mc.OPERAND] = 0
    m[mc.CHANGES_OPERAND] = 0
    m[mc.NARROW] = 0
    m[mc.BRANCHES] = 0
    m[mc.BRANCH_IS_FAR] = 0
    start = peek64(block + _NEXT_PC)
    flags = peek32(block + _FLAGS)
    long = flags & at.HF_CS64 != 0
    lock = operand_size = False
    short_address = not long and flags & at.HF_CS32 == 0
    repeat = 0
    segment = 0
    ignored = mixed = False
    rex = 0
    lock_at = 0
    byte = 0
    n = 0
    while n < 15:
        byte = code_byte(reader, env, start + n)
        if not is_prefix(byte, long):
            break
        # It counts right before the opcode only.
        rex = byte if byte & 0xF0 == 0x40 else 0
        if byte == 0xF0:
            lock = True
            lock_at = start + n
        elif byte == 0x66:
            operand_size = True
        elif byte == 0x67:
            short_address = not long and flags & at.HF_CS32 != 0
        elif byte in (0xF2, 0xF3):
            mixed = mixed or byte ^ repeat == 1
            repeat = byte
        elif byte in (0x64, 0x65):
            segment = byte
        elif byte & 0xE7 == 0x26:
            ignored = long
        n += 1
    if n > 12:
        # The engine finds such code too long.
        return PLAIN
    m[mc.PREFIXES_END] = start + n
    if mixed:
        m[mc.PREFIXES] |= repeat << REPEATS
    if segment != 0 and ignored:
        m[mc.PREFIXES] |= segment << SEGMENTS
    m[mc.PUSHES_FLAGS] = 1 if byte == _PUSHF else 0
    if flags & _RF and not is_repeated(byte, repeat):
        poke32(block + _JUMPS_FAST, 0)
    if flags & _RF and byte == _IRET:
        # The engine would clear the RF that it loads.
        tb = peek64(block)
        poke32(tb + at.TB_FLAGS, peek32(tb + at.TB_FLAGS) & ~_RF)
    forbidden = False
    opcode_map = ONE_BYTE
    opcode = byte
    form_at = start + n + 1
    if byte == 0x0F:
        opcode = code_byte(reader, env, form_at)
        opcode_map = THREE_BYTES if opcode in (0x38, 0x3A) else TWO_BYTES
        form_at += 1
        if opcode_map == THREE_BYTES and not is_vector_opcode(
            opcode, code_byte(reader, env, form_at), repeat, operand_size
        ):
            poke32(block + _FLAGS, flags & ~NEEDS_OF_VECTORS | at.HF_OSFXSR)
        elif flags & at.HF_TS and hides_task_switched(
            reader, env, form_at, opcode, repeat, operand_size, flags
        ):
            poke32(block + _FLAGS, flags & ~at.HF_TS)
    branches = is_near_branch(opcode_map, opcode)
    m[mc.BRANCHES] = 1 if branches and not long else 0
    m[mc.BRANCH_IS_FAR] = reach_of_branch(m, flags, byte, branches, operand_size)
    forms = undefined_forms(opcode_map, opcode, lock, repeat, operand_size)
    if forms == ALL_FORMS:
        forbidden = True
    elif forms != 0:
        forbidden = has_form(forms, code_byte(reader, env, form_at))
    elif opcode_map != ONE_BYTE and repeat != 0 and (opcode_map == THREE_BYTES or opcode == 0xB8):
        third = code_byte(reader, env, form_at)
        small = not long and flags & at.HF_CS32 == 0
        forbidden = small and is_misread_in_16_bit_code(opcode, third, repeat)
        if opcode_map == THREE_BYTES and is_undefined_behind_escape(opcode, third, repeat):
            forbidden = True
    elif opcode_map == TWO_BYTES and opcode == 0xAE:
        form = code_byte(reader, env, form_at)
        field = (form >> 3) & 7
        # LDMXCSR, FXRSTOR and XRSTOR.
        if form < 0xC0 and field in (1, 2, 5):
            m[mc.CARE] |= CARE_MXCSR
        # The engine has no #NM for XSAVE and XRSTOR, and no faults for CLFLUSH.
        forbidden = form < 0xC0 and (field == 7 or (flags & at.HF_TS != 0 and field in (4, 5)))
    elif opcode_map == TWO_BYTES and (opcode <= 1 or 0x20 <= opcode <= 0x23):
        forbidden = is_carried_out(opcode, code_byte(reader, env, form_at), flags & _CPL)
    elif opcode_map == TWO_BYTES and opcode in (0x05, 0x07):
        # SYSCALL and SYSRET are for 64-bit mode.
        forbidden = not long
    elif opcode_map == ONE_BYTE and byte in (0xC4, 0xC5):
        # VEX, or LES and LDS with a register.
        forbidden = long or code_byte(reader, env, form_at) >= 0xC0
    elif opcode_map == ONE_BYTE and byte & 0xFE == 0xF6:
        form = code_byte(reader, env, form_at)
        if (form >> 3) & 7 == 1:
            # The second encoding of TEST, which the engine does not know: as the first, with reg 0.
            show_byte(m, form_at, form & 0xC7)
    elif opcode_map == ONE_BYTE and byte & 0xF8 == 0xD8:
        forbidden = is_undefined_x87(byte, code_byte(reader, env, form_at))
    elif opcode_map == ONE_BYTE and byte & 0xFC == 0x6C:
        # INS would store before anybody can stop it.
        forbidden = True
    elif opcode_map == ONE_BYTE and byte == ARPL and not long:
        forbidden = code_byte(reader, env, form_at) < 0xC0
    elif opcode_map == ONE_BYTE and byte == RET_AND_RELEASE:
        # The engine takes what is to be released as signed.
        forbidden = code_byte(reader, env, form_at + 1) >= 0x80
    if lock and byte & 0xFE == 0xF6 and (code_byte(reader, env, form_at) >> 3) & 7 == 3:
        # The engine sets the flags of LOCK NEG by its operand, not by its result. A processor has
        # its turn to itself, so LOCK need not be seen; NEG ignores this prefix.
        show_byte(m, lock_at, 0xF3)
    if m[mc.BRANCH_IS_FAR] != 0 and (flags & at.HF_PE == 0 or flags & RFLAGS_VM):
        # The engine would have loaded CS before it looks at the limit.
        form = code_byte(reader, env, form_at) if byte == 0xFF else 0
        forbidden = forbidden or is_far_branch(byte, form)
    branches = branches and long and operand_size
    if branches and opcode == 0xFF:
        branches = (code_byte(reader, env, form_at) >> 3) & 7 in (2, 4)
    if branches:
        # SDM, "Near branches in 64-bit mode": their operands have 64 bits, whatever 66H says.
        m[mc.PREFIXES] |= _NO_PREFIX << OPERAND_SIZES
    if forbidden:
        m[mc.FORBIDDEN] = 1
        m[mc.FORBIDDEN_AT] = start
        return PLAIN
    if m[mc.ACCESSES] != mc.ACCESSES_UNCHECKED:
        m[mc.CHANGES_OPERAND] = changes_operand(reader, env, opcode_map, opcode, form_at)
    if opcode_map != ONE_BYTE:
        if opcode_map == TWO_BYTES and may_store_whole_vector(opcode):
            form = code_byte(reader, env, form_at)
            m[mc.WHOLE] = whole_vector_store(opcode, form, repeat, operand_size)
        if opcode_map == TWO_BYTES and long and is_narrow_exchange(opcode, rex, operand_size):
            m[mc.DESTINATION] = register_exchanged(code_byte(reader, env, form_at), rex)
            return COMPARES_AND_EXCHANGES
        if opcode_map == TWO_BYTES and has_predicate(opcode):
            show_predicate(m, reader, env, form_at, short_address)
        if opcode_map == TWO_BYTES and opcode == 0xAE:
            form = code_byte(reader, env, form_at)
            action = image_action(form)
            if action != POINTS and flags & (at.HF_EM | at.HF_TS) == 0:
                what = look_at_operand(reader, env, start, form_at, flags)
                extended = EXTENDED if form & 0x20 else 0
                m[mc.X87_WHAT] = what | extended | action << ACTION_SHIFT
                m[mc.X87_POINTS] = 1
            return USES_MXCSR if form < 0xC0 else PLAIN
        look_at_prefixes(m, reader, env, form_at, repeat, operand_size)
        escape = opcode if opcode_map == THREE_BYTES else 0
        if escape != 0:
            opcode = code_byte(reader, env, form_at)
        m[mc.ARITHMETIC] = sse_arithmetic(escape, opcode, repeat, operand_size)
        waits = uses_mmx_registers(escape, opcode, repeat, operand_size)
        if waits and spares_x87(escape, opcode, operand_size, code_byte(reader, env, form_at)):
            m[mc.X87_OPERANDS] = SPARES_X87
            return PLAIN
        if waits and not (escape == 0 and opcode == _EMMS):
            m[mc.X87_OPERANDS] = ENTERS_MMX
            # PUNPCKLBW and its like.
            m[mc.NARROW] = 1 if escape == 0 and 0x60 <= opcode <= 0x62 else 0
            form = code_byte(reader, env, form_at if escape == 0 else form_at + 1)
            m[mc.DESTINATION] = mmx_destination(escape, opcode, form)
            if escape == 0 and opcode == 0xD6 and repeat == 0xF3:
                # MOVQ2DQ.
                m[mc.DESTINATION] = -1
        if waits and escape != 0 and rex != 0:
            # Of these the engine takes REX for more than it is.
            form = code_byte(reader, env, form_at + 1)
            show_byte(m, start + n - 1, rex_of_mmx(form, rex))
        return MMX if waits and flags & (at.HF_EM | at.HF_TS) == 0 else PLAIN
    if may_store_whole(byte):
        wide = (flags & at.HF_CS32 != 0) != operand_size
        m[mc.WHOLE] = whole_store(byte, code_byte(reader, env, form_at), wide)
    if byte & 0xF8 == 0xD8 and flags & (at.HF_EM | at.HF_TS) == 0:
        form = code_byte(reader, env, form_at)
        m[mc.X87_OPERANDS] = x87_operands(byte, form)
        what = look_at_operand(reader, env, start, form_at, flags) & ~WIDE
        if (flags & at.HF_CS32 != 0) != operand_size:
            what |= WIDE
        what |= ((byte & 7) << 8 | form) << OPCODE_SHIFT
        m[mc.X87_WHAT] = what | x87_action(byte, form) << ACTION_SHIFT
        m[mc.X87_POINTS] = 1 if what & IN_MEMORY else 0
        return X87 + kind_of_x87(byte, form)
    if rex != 0 and rex_of_one_byte(byte, rex) != rex:
        show_byte(m, start + n - 1, rex_of_one_byte(byte, rex))
    found = PLAIN
    if byte == _ENTER:
        size = 8 if long else 4
        if operand_size != (not long and flags & at.HF_CS32 == 0) and rex & _REX_W == 0:
            size = 2
        m[mc.DESTINATION] = size
        return ENTERS
    if byte == 0xFB:
        found = STI
    elif (byte == 0x17 and not long) or (
        byte == 0x8E and (code_byte(reader, env, form_at) >> 3) & 7 == _SS
    ):
        found = LOADS_SS
    if found != PLAIN:
        # In the shadow of another one it would not block.
        poke32(block + _FLAGS, flags & ~at.HF_INHIBIT_IRQ)
    return found
