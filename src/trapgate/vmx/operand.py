"""Operands of VMX instructions in memory: their addresses, and access to them."""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.instructions.intercepts import (
    GO_ON,
    RAISE_GP,
    RAISE_OPERAND_PF,
    RAISE_SS,
)
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.paging.memory import load_operand, store_operand
from trapgate.paging.walk import READ, WRITE, translate
from trapgate.sdm.cells import (
    GUEST_ES_ACCESS_RIGHTS,
    GUEST_ES_BASE,
    GUEST_ES_LIMIT,
    GUEST_IA32_EFER,
)
from trapgate.sdm.state import (
    AR_CODE,
    AR_DB,
    AR_EXPAND_DOWN,
    AR_UNUSABLE,
    AR_WRITABLE,
    EFER_LMA,
)
from trapgate.sdm.vmx import FAULT_ADDRESS, FAULT_ERROR

_LOW = 0xFFFF_FFFF
_SS, _DS = 2, 3


@core
def operand_linear(v: Cells, segment: int, offset: int, size: int, write: int) -> tuple[int, int]:
    """(GO_ON, linear address) of `size` bytes at `offset` in a segment, or the fault, RAISE_*."""
    fault = RAISE_SS if segment == _SS else RAISE_GP
    base = int(v[GUEST_ES_BASE + segment])
    if in_64_bit_mode(v):
        linear = offset + base if segment > _DS else offset
        last = linear + size - 1
        if linear >> 47 not in (0, -1) or last >> 47 not in (0, -1):
            return fault, 0
        return GO_ON, linear
    rights = int(v[GUEST_ES_ACCESS_RIGHTS + segment])
    limit = int(v[GUEST_ES_LIMIT + segment])
    last = offset + size - 1
    if rights & AR_UNUSABLE:
        return fault, 0
    if write and (rights & AR_CODE or rights & AR_WRITABLE == 0):
        return fault, 0
    if rights & AR_CODE and rights & AR_WRITABLE == 0:
        # Execute-only code.
        return fault, 0
    if rights & AR_CODE == 0 and rights & AR_EXPAND_DOWN:
        top = _LOW if rights & AR_DB else 0xFFFF
        if offset <= limit or last > top:
            return fault, 0
    elif last > limit:
        return fault, 0
    return GO_ON, (offset + base) & _LOW


@core
def operand_pages(
    x: Cells, v: Cells, mem: Memory, linear: int, size: int, access: int
) -> tuple[int, int, int]:
    """(GO_ON, physical address of the first byte, of the last), or RAISE_OPERAND_PF."""
    user = 1 if privilege_level(v) == 3 else 0
    last = linear + size - 1
    if v[GUEST_IA32_EFER] & EFER_LMA == 0:
        last = last & _LOW
    first_physical, error = translate(v, mem, linear, access, user)
    if error < 0 and (linear ^ last) >> 12 == 0:
        return GO_ON, first_physical, first_physical + size - 1
    address = linear
    last_physical = 0
    if error < 0:
        address = last & ~0xFFF
        last_physical, error = translate(v, mem, last, access, user)
    if error < 0:
        return GO_ON, first_physical, last_physical
    x[FAULT_ERROR] = error
    x[FAULT_ADDRESS] = address
    return RAISE_OPERAND_PF, 0, 0


@core
def read_operand(x: Cells, v: Cells, mem: Memory, linear: int, size: int) -> tuple[int, int]:
    """(GO_ON, value of 2, 4 or 8 bytes at a linear address), or (RAISE_OPERAND_PF, 0)."""
    outcome, first, last = operand_pages(x, v, mem, linear, size, READ)
    if outcome != GO_ON:
        return outcome, 0
    if last - first == size - 1:
        return GO_ON, load_operand(mem, first, size)
    value = 0
    in_first = 0x1000 - (linear & 0xFFF)
    for k in range(size):
        at = first + k if k < in_first else last - (size - 1 - k)
        byte = load_operand(mem, at, 1)
        if k == 7 and byte > 0x7F:
            byte -= 0x100
        value |= byte << (8 * k)
    return GO_ON, value


@core
def write_operand(x: Cells, v: Cells, mem: Memory, linear: int, size: int, value: int) -> int:
    """Store 4 or 8 bytes at a linear address; GO_ON or RAISE_OPERAND_PF."""
    outcome, first, last = operand_pages(x, v, mem, linear, size, WRITE)
    if outcome != GO_ON:
        return outcome
    if last - first == size - 1:
        store_operand(mem, first, size, value)
        return GO_ON
    in_first = 0x1000 - (linear & 0xFFF)
    for k in range(size):
        at = first + k if k < in_first else last - (size - 1 - k)
        store_operand(mem, at, 1, (value >> (8 * k)) & 0xFF)
    return GO_ON
