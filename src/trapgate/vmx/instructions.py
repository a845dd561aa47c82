"""The VMX instructions: which one it is, whether it may be executed, and what it does.

SDM, "VMX Instruction Reference". In VMX non-root operation each exits to the x86 VMM; where
the processor has no VMX for its guest, or the guest has not entered VMX operation, to the VMM
in Python. Answers are those of `intercepts`, and ENTER.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.instructions.effects import (
    cr0_seen,
    cr4_seen,
)
from trapgate.instructions.intercepts import (
    GO_ON,
    RAISE_GP,
    RAISE_UD,
    intercept_vmx,
    secondary_controls,
    vmx_undefined,
)
from trapgate.operands.encoding import (
    INFO_REGISTER,
    code_byte,
    decode_operand,
    has_prefix,
    operand_offset,
    register_value,
    set_register,
)
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.paging.memory import MAXPHYADDR, load8
from trapgate.sdm.cells import (
    GUEST_INTERRUPTIBILITY_STATE,
    GUEST_RFLAGS,
    GUEST_RIP,
    VM_INSTRUCTION_ERROR,
    VMCS_LINK_POINTER,
    VMREAD_BITMAP_ADDRESS,
    VMWRITE_BITMAP_ADDRESS,
)
from trapgate.sdm.controls import SECONDARY_EPT, SECONDARY_VMCS_SHADOWING
from trapgate.sdm.reasons import (
    ERROR_ENTRY_EVENTS_BLOCKED_BY_MOV_SS,
    ERROR_INVALID_INVEPT_INVVPID_OPERAND,
    ERROR_UNSUPPORTED_FIELD,
    ERROR_VMCALL_IN_ROOT,
    ERROR_VMCLEAR_BAD_ADDRESS,
    ERROR_VMCLEAR_VMXON_POINTER,
    ERROR_VMLAUNCH_NOT_CLEAR,
    ERROR_VMPTRLD_BAD_ADDRESS,
    ERROR_VMPTRLD_BAD_REVISION,
    ERROR_VMPTRLD_VMXON_POINTER,
    ERROR_VMRESUME_NOT_LAUNCHED,
    ERROR_VMXON_IN_ROOT,
    REASON_INVEPT,
    REASON_INVVPID,
    REASON_VMCALL,
    REASON_VMCLEAR,
    REASON_VMLAUNCH,
    REASON_VMPTRLD,
    REASON_VMPTRST,
    REASON_VMREAD,
    REASON_VMRESUME,
    REASON_VMWRITE,
    REASON_VMXOFF,
    REASON_VMXON,
)
from trapgate.sdm.state import (
    BLOCKING_BY_MOV_SS,
    CR4_VMXE,
    RFLAGS_AF,
    RFLAGS_CF,
    RFLAGS_OF,
    RFLAGS_PF,
    RFLAGS_SF,
    RFLAGS_ZF,
)
from trapgate.sdm.vmx import (
    CLEAR,
    CR0_FIXED_0,
    CURRENT,
    ENTRY_LENGTH,
    ERROR,
    FAILED_RIP,
    FAILURES,
    FEATURE_CONTROL,
    FEATURE_LOCKED,
    FEATURE_VMX_OUTSIDE_SMX,
    FLUSH,
    INSTRUCTION,
    LAUNCHED,
    MODE,
    MODE_NON_ROOT,
    MODE_OFF,
    MODE_ROOT,
    NONE,
    OFFERED,
    OPERAND,
    OPERAND_REST,
    OPERAND_TYPE,
    SECONDARY_ALLOWED,
    SHADOW,
    VMXON_POINTER,
)
from trapgate.vmx.checks.controls import check_ept_pointer
from trapgate.vmx.operand import (
    operand_linear,
    read_operand,
    write_operand,
)
from trapgate.vmx.region import (
    UNSUPPORTED,
    cell_of_encoding,
    clear_launch_state,
    initialise_region,
    is_shadow,
    load_field,
    load_region,
    revision_matches,
    store_field,
    store_region,
    value_read,
    value_written,
)

NOT_VMX = -1
"""The code is not a VMX instruction."""
ENTER = 9
"""A VM entry has to be tried: RIP is still at the VMLAUNCH or VMRESUME."""

_STATUS = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF
_LOW = 0xFFFF_FFFF


@core
def vmx_reason(v: Cells, mem: Memory, word: int, start: int) -> int:
    """The basic exit reason of the VMX instruction after `start` prefixes, or NOT_VMX.

    `word` holds the first eight bytes of code; byte `start` is 0FH.
    """
    second = code_byte(v, mem, word, start + 1)
    third = code_byte(v, mem, word, start + 2)
    small = has_prefix(word, start, 0x66)
    repeat = has_prefix(word, start, 0xF3)
    repeat_not = has_prefix(word, start, 0xF2)
    if has_prefix(word, start, 0xF0):
        return NOT_VMX
    if second == 0x01 and 0xC1 <= third <= 0xC4:
        if third == 0xC1:
            return REASON_VMCALL
        if third == 0xC2:
            return REASON_VMLAUNCH
        return REASON_VMRESUME if third == 0xC3 else REASON_VMXOFF
    if second in (0x78, 0x79) and not (small or repeat or repeat_not):
        return REASON_VMREAD if second == 0x78 else REASON_VMWRITE
    if second == 0xC7 and third < 0xC0 and not repeat_not:
        field = (third >> 3) & 7
        if field == 6:
            if repeat:
                return REASON_VMXON
            return REASON_VMCLEAR if small else REASON_VMPTRLD
        if field == 7 and not (small or repeat):
            return REASON_VMPTRST
    flushes = second == 0x38 and third in (0x80, 0x81) and small and not (repeat or repeat_not)
    if flushes and code_byte(v, mem, word, start + 3) < 0xC0:
        return REASON_INVEPT if third == 0x80 else REASON_INVVPID
    return NOT_VMX


@core
def execute_vmx(
    v: Cells,
    r: Cells,
    mem: Memory,
    x: Cells,
    n: Cells,
    word: int,
    start: int,
    rex: int,
    reason: int,
) -> tuple[int, int]:
    """Carry out the VMX instruction `reason` (see `vmx_reason`): (outcome, length in bytes).

    `v` is the VMCS in force. The outcome is GO_ON (done: the flags say how), EXITED, RAISE_*,
    or ENTER.
    """
    length = start + 3
    information = 0
    displacement = 0
    if reason not in (REASON_VMCALL, REASON_VMLAUNCH, REASON_VMRESUME, REASON_VMXOFF):
        at = start + 2
        if reason in (REASON_INVEPT, REASON_INVVPID):
            at = start + 3
        length, information, displacement = decode_operand(v, mem, word, start, rex, at)
    mode = x[MODE]
    starts = reason == REASON_VMXON and x[OFFERED] != 0 and cr4_seen(v) & CR4_VMXE != 0
    region = NONE
    shadowed = mode == MODE_NON_ROOT and is_shadowed(v, r, mem, reason, information)
    if shadowed:
        region = v[VMCS_LINK_POINTER]
    if (mode == MODE_NON_ROOT and not shadowed) or (mode == MODE_OFF and not starts):
        if reason not in (REASON_VMREAD, REASON_VMWRITE, REASON_INVEPT, REASON_INVVPID):
            # Without a second operand bits 31:28 say nothing.
            information = information & 0xFFF_FFFF
        return intercept_vmx(v, reason, displacement, information, length), length
    if vmx_undefined(v) or (reason == REASON_INVEPT and not has_ept(x)):
        return RAISE_UD, length
    if privilege_level(v) != 0:
        return RAISE_GP, length
    if reason == REASON_VMXON and mode == MODE_OFF:
        if not may_start(x, v):
            return RAISE_GP, length
    elif reason in (REASON_VMLAUNCH, REASON_VMRESUME):
        return before_entry(x, v, n, reason, length), length
    elif reason == REASON_VMCALL:
        return fail(x, v, n, reason, ERROR_VMCALL_IN_ROOT), length
    elif reason == REASON_VMXOFF:
        store_region(x, n, mem)
        x[MODE] = MODE_OFF
        x[VMXON_POINTER] = NONE
        return succeed(v), length
    elif reason == REASON_VMXON:
        return fail(x, v, n, reason, ERROR_VMXON_IN_ROOT), length
    elif reason in (REASON_VMREAD, REASON_VMWRITE):
        if shadowed and region == NONE:
            return fail_invalid(x, v, reason), length
        if x[CURRENT] == NONE:
            return fail(x, v, n, reason, 0), length

    long = in_64_bit_mode(v)
    size = 8
    if reason in (REASON_VMREAD, REASON_VMWRITE) and not long:
        size = 4
    linear = 0
    if information & INFO_REGISTER == 0:
        write = 1 if reason in (REASON_VMREAD, REASON_VMPTRST) else 0
        span = 16 if reason in (REASON_INVVPID, REASON_INVEPT) else size
        offset = operand_offset(v, r, information, displacement)
        segment = (information >> 15) & 7
        outcome, linear = operand_linear(v, segment, offset, span, write)
        if outcome != GO_ON:
            return outcome, length
    if reason == REASON_VMREAD:
        return vmread(x, v, r, mem, n, region, information, linear, long), length
    if reason == REASON_VMWRITE:
        return vmwrite(x, v, r, mem, n, region, information, linear, long), length
    if reason == REASON_VMPTRST:
        outcome = write_operand(x, v, mem, linear, 8, x[CURRENT])
        if outcome == GO_ON:
            succeed(v)
        return outcome, length
    if reason == REASON_INVVPID:
        kind = register_value(v, r, (information >> 28) & 0xF)
        return invvpid(x, v, mem, n, linear, kind if long else kind & _LOW), length
    if reason == REASON_INVEPT:
        kind = register_value(v, r, (information >> 28) & 0xF)
        return invept(x, v, mem, n, linear, kind if long else kind & _LOW), length
    outcome, pointer = read_operand(x, v, mem, linear, 8)
    if outcome != GO_ON:
        return outcome, length
    x[OPERAND] = pointer
    if reason == REASON_VMXON:
        return vmxon(x, v, mem, pointer), length
    if reason == REASON_VMCLEAR:
        return vmclear(x, v, mem, n, pointer), length
    return vmptrld(x, v, mem, n, pointer), length


@core
def succeed(v: Cells) -> int:
    """VMsucceed (SDM, "Conventions" of the instruction reference)."""
    v[GUEST_RFLAGS] = v[GUEST_RFLAGS] & ~_STATUS
    return GO_ON


@core
def fail(x: Cells, v: Cells, n: Cells, reason: int, error: int) -> int:
    """VMfail: VMfailInvalid without a current VMCS, else VMfailValid(`error`).

    `reason` names the instruction, for whoever explains failures.
    """
    x[FAILURES] += 1
    x[FAILED_RIP] = v[GUEST_RIP]
    x[INSTRUCTION] = reason
    x[ERROR] = error
    flag = RFLAGS_CF
    if x[CURRENT] != NONE:
        flag = RFLAGS_ZF
        n[VM_INSTRUCTION_ERROR] = error
    v[GUEST_RFLAGS] = (v[GUEST_RFLAGS] & ~_STATUS) | flag
    return GO_ON


@core
def fail_invalid(x: Cells, v: Cells, reason: int) -> int:
    """VMfailInvalid, whatever is current."""
    x[FAILURES] += 1
    x[FAILED_RIP] = v[GUEST_RIP]
    x[INSTRUCTION] = reason
    x[ERROR] = 0
    v[GUEST_RFLAGS] = (v[GUEST_RFLAGS] & ~_STATUS) | RFLAGS_CF
    return GO_ON


@core
def may_start(x: Cells, v: Cells) -> bool:
    """Whether VMXON finds CR0, CR4 and IA32_FEATURE_CONTROL as VMX operation wants them."""
    wanted = FEATURE_LOCKED | FEATURE_VMX_OUTSIDE_SMX
    return bool(cr0_seen(v) & CR0_FIXED_0 == CR0_FIXED_0 and x[FEATURE_CONTROL] & wanted == wanted)


@core
def is_region_address(pointer: int) -> bool:
    """Whether a region may lie at a physical address: a page within the physical width."""
    return bool(pointer & 0xFFF == 0 and pointer >> MAXPHYADDR == 0)


@core
def vmxon(x: Cells, v: Cells, mem: Memory, pointer: int) -> int:
    """Enter VMX root operation with the VMXON region at `pointer`."""
    is_one = is_region_address(pointer) and revision_matches(mem, pointer)
    if not is_one or is_shadow(mem, pointer):
        return fail_invalid(x, v, REASON_VMXON)
    x[MODE] = MODE_ROOT
    x[VMXON_POINTER] = pointer
    x[CURRENT] = NONE
    return succeed(v)


@core
def vmclear(x: Cells, v: Cells, mem: Memory, n: Cells, pointer: int) -> int:
    """The VMCS at `pointer` goes back to memory, its launch state clear."""
    if not is_region_address(pointer):
        return fail(x, v, n, REASON_VMCLEAR, ERROR_VMCLEAR_BAD_ADDRESS)
    if pointer == x[VMXON_POINTER]:
        return fail(x, v, n, REASON_VMCLEAR, ERROR_VMCLEAR_VMXON_POINTER)
    if pointer == x[CURRENT]:
        x[LAUNCHED] = CLEAR
        store_region(x, n, mem)
    else:
        clear_launch_state(mem, pointer)
    return succeed(v)


@core
def vmptrld(x: Cells, v: Cells, mem: Memory, n: Cells, pointer: int) -> int:
    """The VMCS at `pointer` becomes current."""
    if not is_region_address(pointer):
        return fail(x, v, n, REASON_VMPTRLD, ERROR_VMPTRLD_BAD_ADDRESS)
    if pointer == x[VMXON_POINTER]:
        return fail(x, v, n, REASON_VMPTRLD, ERROR_VMPTRLD_VMXON_POINTER)
    if not revision_matches(mem, pointer):
        return fail(x, v, n, REASON_VMPTRLD, ERROR_VMPTRLD_BAD_REVISION)
    if pointer != x[CURRENT]:
        store_region(x, n, mem)
        load_region(x, n, mem, pointer)
    return succeed(v)


@core
def is_shadowed(v: Cells, r: Cells, mem: Memory, reason: int, information: int) -> bool:
    """Whether a guest's VMREAD or VMWRITE means the shadow VMCS, and does not exit.

    SDM, "VMCS Shadowing": the control is 1, the encoding has no bit above 14, and the bitmap of
    the instruction has a 0 for it.
    """
    if secondary_controls(v) & SECONDARY_VMCS_SHADOWING == 0 or vmx_undefined(v):
        return False
    bitmap = v[VMREAD_BITMAP_ADDRESS]
    if reason == REASON_VMWRITE:
        bitmap = v[VMWRITE_BITMAP_ADDRESS]
    elif reason != REASON_VMREAD:
        return False
    encoding = register_value(v, r, (information >> 28) & 0xF)
    if not in_64_bit_mode(v):
        encoding = encoding & _LOW
    if encoding >> 15 != 0:
        return False
    return (load8(mem, bitmap + (encoding >> 3)) >> (encoding & 7)) & 1 == 0


@core
def vmread(
    x: Cells,
    v: Cells,
    r: Cells,
    mem: Memory,
    n: Cells,
    region: int,
    information: int,
    linear: int,
    long: bool,
) -> int:
    """VMREAD of the field whose encoding bits 31:28 of `information` find.

    `region` is the address of a shadow VMCS, NONE for the current VMCS.
    """
    encoding = register_value(v, r, (information >> 28) & 0xF)
    if not long:
        encoding = encoding & _LOW
    x[OPERAND] = encoding
    cell = cell_of_encoding(x, encoding)
    if cell == UNSUPPORTED:
        return fail(x, v, n, REASON_VMREAD, ERROR_UNSUPPORTED_FIELD)
    value = n[cell]
    if region != NONE:
        initialise_region(mem, region)
        value = load_field(mem, region, cell)
    value = value_read(value, encoding, long)
    if information & INFO_REGISTER:
        set_register(v, r, (information >> 3) & 0xF, value)
    else:
        outcome = write_operand(x, v, mem, linear, 8 if long else 4, value)
        if outcome != GO_ON:
            return outcome
    return succeed(v)


@core
def vmwrite(
    x: Cells,
    v: Cells,
    r: Cells,
    mem: Memory,
    n: Cells,
    region: int,
    information: int,
    linear: int,
    long: bool,
) -> int:
    """VMWRITE of the field whose encoding bits 31:28 of `information` find; see `vmread`.

    VM-exit information can be written, as IA32_VMX_MISC says by its bit 29.
    """
    encoding = register_value(v, r, (information >> 28) & 0xF)
    if information & INFO_REGISTER:
        value = register_value(v, r, (information >> 3) & 0xF)
    else:
        outcome, value = read_operand(x, v, mem, linear, 8 if long else 4)
        if outcome != GO_ON:
            return outcome
    if not long:
        encoding = encoding & _LOW
        value = value & _LOW
    x[OPERAND] = encoding
    cell = cell_of_encoding(x, encoding)
    if cell == UNSUPPORTED:
        return fail(x, v, n, REASON_VMWRITE, ERROR_UNSUPPORTED_FIELD)
    if region == NONE:
        n[cell] = value_written(n[cell], cell, encoding, value, long)
    else:
        initialise_region(mem, region)
        old = load_field(mem, region, cell)
        store_field(mem, region, cell, value_written(old, cell, encoding, value, long))
    return succeed(v)


@core
def read_invalidation(x: Cells, v: Cells, mem: Memory, linear: int) -> tuple[int, int, int]:
    """The descriptor of INVEPT or INVVPID: (outcome, and its two quadwords)."""
    outcome, first = read_operand(x, v, mem, linear, 8)
    if outcome != GO_ON:
        return outcome, 0, 0
    outcome, second = read_operand(x, v, mem, linear + 8, 8)
    return outcome, first, second


@core
def invvpid(x: Cells, v: Cells, mem: Memory, n: Cells, linear: int, kind: int) -> int:
    """INVVPID: one tag stands for all VPIDs, so that each type flushes everything."""
    x[OPERAND_TYPE] = kind
    if kind < 0 or kind > 3:
        return fail(x, v, n, REASON_INVVPID, ERROR_INVALID_INVEPT_INVVPID_OPERAND)
    outcome, vpid, address = read_invalidation(x, v, mem, linear)
    if outcome != GO_ON:
        return outcome
    x[OPERAND], x[OPERAND_REST] = vpid, address
    wrong = vpid >> 16 != 0 or (kind != 2 and vpid == 0)
    if kind == 0 and address >> 47 not in (0, -1):
        wrong = True
    if wrong:
        return fail(x, v, n, REASON_INVVPID, ERROR_INVALID_INVEPT_INVVPID_OPERAND)
    x[FLUSH] = 1
    return succeed(v)


@core
def has_ept(x: Cells) -> bool:
    """Whether the processor reports EPT to the x86 VMM."""
    return bool(x[SECONDARY_ALLOWED] & SECONDARY_EPT)


@core
def invept(x: Cells, v: Cells, mem: Memory, n: Cells, linear: int, kind: int) -> int:
    """INVEPT: one tag stands for all EPT pointers, so that both types flush everything."""
    x[OPERAND_TYPE] = kind
    if kind < 1 or kind > 2:
        return fail(x, v, n, REASON_INVEPT, ERROR_INVALID_INVEPT_INVVPID_OPERAND)
    outcome, pointer, _ = read_invalidation(x, v, mem, linear)
    if outcome != GO_ON:
        return outcome
    x[OPERAND] = pointer
    if kind == 1 and check_ept_pointer(pointer) != 0:
        return fail(x, v, n, REASON_INVEPT, ERROR_INVALID_INVEPT_INVVPID_OPERAND)
    x[FLUSH] = 1
    return succeed(v)


@core
def before_entry(x: Cells, v: Cells, n: Cells, reason: int, length: int) -> int:
    """What VMLAUNCH and VMRESUME look at before the VMCS: ENTER, or GO_ON after a VMfail."""
    if x[CURRENT] == NONE or x[SHADOW] != 0:
        return fail_invalid(x, v, reason)
    if v[GUEST_INTERRUPTIBILITY_STATE] & BLOCKING_BY_MOV_SS:
        return fail(x, v, n, reason, ERROR_ENTRY_EVENTS_BLOCKED_BY_MOV_SS)
    if reason == REASON_VMLAUNCH and x[LAUNCHED] != CLEAR:
        return fail(x, v, n, reason, ERROR_VMLAUNCH_NOT_CLEAR)
    if reason == REASON_VMRESUME and x[LAUNCHED] == CLEAR:
        return fail(x, v, n, reason, ERROR_VMRESUME_NOT_LAUNCHED)
    x[ENTRY_LENGTH] = length
    x[FAILED_RIP] = v[GUEST_RIP]
    x[INSTRUCTION] = reason
    return ENTER
