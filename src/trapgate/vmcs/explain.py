"""Why a VM entry or a VMX instruction failed, in words: field, value, rule, section of the SDM.

A processor says "VMfailValid, error 7" or "exit reason 80000021H" and leaves the rest to
its user. Here the number of the check that failed (`sdm.checks`) is at hand.
"""

from enum import IntFlag

from trapgate.compiler.dialect import Cells
from trapgate.sdm import checks as ck
from trapgate.sdm import controls as ct
from trapgate.sdm import state, vmx
from trapgate.sdm.check_words import CHECKS
from trapgate.sdm.fields import Field
from trapgate.sdm.reasons import REASON_ENTRY_FAILURE, ExitReason, VmInstructionError

_CONTROLS: dict[int, tuple[type[IntFlag], int, int]] = {
    ck.PIN_CONTROLS: (ct.PinControl, ct.PIN_ALLOWED_0, ct.PIN_ALLOWED_1),
    ck.PRIMARY_CONTROLS: (ct.PrimaryControl, ct.PRIMARY_ALLOWED_0, ct.PRIMARY_ALLOWED_1),
    ck.SECONDARY_CONTROLS: (ct.SecondaryControl, ct.SECONDARY_ALLOWED_0, ct.SECONDARY_REPORTED),
    ck.EXIT_CONTROLS: (ct.ExitControl, ct.EXIT_ALLOWED_0, ct.EXIT_ALLOWED_1),
    ck.ENTRY_CONTROLS: (ct.EntryControl, ct.ENTRY_ALLOWED_0, ct.ENTRY_ALLOWED_1),
}


def _register_bits(prefix: str) -> dict[int, str]:
    return {
        value.bit_length() - 1: name.removeprefix(prefix)
        for name, value in vars(state).items()
        if name.startswith(prefix) and isinstance(value, int) and value.bit_count() == 1
    }


_CR0, _CR4 = _register_bits("CR0_"), _register_bits("CR4_")
_FIXED: dict[int, tuple[dict[int, str], int, int]] = {
    ck.HOST_CR0: (_CR0, vmx.CR0_FIXED_0, vmx.CR0_FIXED_1),
    ck.HOST_CR4: (_CR4, vmx.CR4_FIXED_0, state.CR4_IMPLEMENTED),
    ck.GUEST_CR0: (_CR0, vmx.CR0_FIXED_0, vmx.CR0_FIXED_1),
    ck.GUEST_CR4: (_CR4, vmx.CR4_FIXED_0, state.CR4_IMPLEMENTED),
}


_WITH_POINTER = (ExitReason.VMXON, ExitReason.VMCLEAR, ExitReason.VMPTRLD)
_BY_ENCODING = {int(field): field for field in Field}
_FAILED_CHECK = Field.FAILED_CHECK.cell
_REGION = "bits 11:0 and bits 63:40 of the address must be 0"
_IS_VMXON = "the operand is the VMXON pointer; use another region"

_ERRORS: dict[int, tuple[str, str]] = {
    VmInstructionError.VMCALL_IN_ROOT: (
        "VMCALL executed in VMX root operation",
        "VMCALL is for guests; in a VMM it serves only the dual-monitor treatment, not there",
    ),
    VmInstructionError.VMCLEAR_BAD_ADDRESS: ("VMCLEAR with invalid physical address", _REGION),
    VmInstructionError.VMCLEAR_VMXON_POINTER: ("VMCLEAR with VMXON pointer", _IS_VMXON),
    VmInstructionError.VMLAUNCH_NOT_CLEAR: (
        "VMLAUNCH with non-clear VMCS",
        "its launch state is launched: use VMRESUME, or VMCLEAR it first",
    ),
    VmInstructionError.VMRESUME_NOT_LAUNCHED: (
        "VMRESUME with non-launched VMCS",
        "its launch state is clear: use VMLAUNCH",
    ),
    VmInstructionError.ENTRY_CONTROL_FIELDS: ("VM entry with invalid control field(s)", ""),
    VmInstructionError.ENTRY_HOST_STATE: ("VM entry with invalid host-state field(s)", ""),
    VmInstructionError.VMPTRLD_BAD_ADDRESS: ("VMPTRLD with invalid physical address", _REGION),
    VmInstructionError.VMPTRLD_VMXON_POINTER: ("VMPTRLD with VMXON pointer", _IS_VMXON),
    VmInstructionError.VMPTRLD_BAD_REVISION: (
        "VMPTRLD with incorrect VMCS revision identifier",
        f"the region's first 32 bits must be {vmx.REVISION:#x}, which IA32_VMX_BASIC reports",
    ),
    VmInstructionError.UNSUPPORTED_FIELD: (
        "VMREAD/VMWRITE from/to unsupported VMCS component",
        "no field of this processor has that encoding",
    ),
    VmInstructionError.READ_ONLY_FIELD: (
        "VMWRITE to read-only VMCS component",
        "VM-exit information is written by the processor (IA32_VMX_MISC bit 29 is 0)",
    ),
    VmInstructionError.VMXON_IN_ROOT: (
        "VMXON executed in VMX root operation",
        "the processor is in VMX operation already",
    ),
    VmInstructionError.ENTRY_EVENTS_BLOCKED_BY_MOV_SS: (
        "VM entry with events blocked by MOV SS",
        "the instruction before VMLAUNCH or VMRESUME must not be MOV SS or POP SS",
    ),
    VmInstructionError.INVALID_INVEPT_INVVPID_OPERAND: (
        "Invalid operand to INVEPT/INVVPID",
        "",
    ),
}

_ABORTS: dict[int, str] = {
    1: "there was a failure in saving guest MSRs (VM-exit MSR-store area)",
    2: "checking of the host page-directory-pointer-table entries (PDPTEs) failed",
    3: "the current VMCS was corrupted by writes to its region",
    4: "there was a failure on loading host MSRs (VM-exit MSR-load area)",
    5: "there was a machine-check event during the VM exit",
    vmx.ABORT_HOST_IDT: "the host's IDT, its gate or its stack did not take the exit's event",
    6: 'the VMM was in IA-32e mode, and "host address-space size" was 0 at the VM exit',
}

_MSR_LOADING = (
    "bits 63:32 of the entry must be 0, its MSR must not be IA32_FS_BASE, IA32_GS_BASE or one "
    "that may not be loaded so, and WRMSR of the value must not fault"
)


def hexadecimal(value: int) -> str:
    """A field's value as messages show it, unsigned."""
    return f"{value & (1 << 64) - 1:#x}"


def explain(check: int, v: Cells) -> str:
    """Which check a VM entry did not pass, on which fields of VMCS `v` with which values.

    `check` is the number that `vmcs["FAILED_CHECK"]` or `v[cells.FAILED_CHECK]` holds.
    """
    row = CHECKS.get(check)
    if row is None:
        return f"check {check}, which this version does not know"
    values = [f"{name} = {_shown(name, int(v[Field[name].cell]))}" for name in row.fields]
    bits = _bits_at_fault(check, int(v[Field[row.fields[0]].cell]))
    others = f" (with {', '.join(values[1:])})" if values[1:] else ""
    source = f'SDM, "{row.section}"' if row.section else "an extension, not the SDM's"
    return f"{values[0]}: {row.rule}{bits}{others} [check {check}; {source}]"


def _shown(name: str, value: int) -> str:
    if name == Field.FAILED_RULE.name:
        return f"rule {value >> 16}, clause {value & 0xFFFF} (counted from 0)"
    return hexadecimal(value)


def _bits_at_fault(check: int, value: int) -> str:
    """The names of the bits that are reserved, or fixed, the other way."""
    if check in _CONTROLS:
        flags, must, may = _CONTROLS[check]
        if check == ck.SECONDARY_CONTROLS:
            # Which may be 1 depends on the engine and on whose VMCS it is: name no bit in vain.
            known = (ct.SECONDARY_WITH_EPT, ct.SECONDARY_ALLOWED_1, may)
            may = next((allowed for allowed in known if value & ~allowed), may)
        names = {flag.value.bit_length() - 1: str(flag.name) for flag in flags}
    elif check in _FIXED:
        names, must, may = _FIXED[check]
    else:
        return ""
    value &= (1 << 64) - 1
    complaints = [
        f"{_listed(bits, names)} must be {wanted}"
        for bits, wanted in ((must & ~value, 1), (value & ~may, 0))
        if bits
    ]
    return f"; {' and '.join(complaints)}" if complaints else ""


def _listed(bits: int, names: dict[int, str]) -> str:
    found = [bit for bit in range(64) if bits >> bit & 1]
    listed = (f"{bit} ({names[bit]})" if bit in names else str(bit) for bit in found)
    return f"bit{'s' if len(found) > 1 else ''} {', '.join(listed)}"


def explain_failure(
    instruction: int,
    error: int,
    v: Cells,
    *,
    valid: bool = True,
    operand: int = 0,
    descriptor: tuple[int, int, int] | None = None,
) -> str:
    """Why the VMX instruction with that exit reason failed with that VM-instruction error.

    `v` is the current VMCS; it holds the number of the failed check, if a check of VM
    entry failed. `valid` is False if there is none: VMfailInvalid, and the error number
    is what it would have been, 0 for what has none. `operand` is the physical address or
    the field's encoding that the instruction was given, `descriptor` the type and the halves of
    the descriptor that an INVEPT or INVVPID was.
    """
    name = ExitReason(instruction).name
    kind = f"VMfailValid({error})" if valid else "VMfailInvalid"
    if error in (VmInstructionError.ENTRY_CONTROL_FIELDS, VmInstructionError.ENTRY_HOST_STATE):
        return f"{name}: {kind}, {_ERRORS[error][0]}: {explain(int(v[_FAILED_CHECK]), v)}"
    if error == 0:
        meaning, remedy, source = _without_number(instruction)
    else:
        meaning, remedy = _ERRORS.get(error, (f"VM-instruction error {error}", "see the SDM"))
        source = "VM Instruction Error Numbers"
        if error == VmInstructionError.INVALID_INVEPT_INVVPID_OPERAND and descriptor is not None:
            wrong = _wrong_invvpid if instruction == ExitReason.INVVPID else _wrong_invept
            remedy, source = wrong(*descriptor), f"{name} - Invalidate Translations"
    given = _operand(instruction, operand)
    return f'{name}{given}: {kind}, {meaning}: {remedy} [SDM, "{source}"]'


def _without_number(instruction: int) -> tuple[str, str, str]:
    if instruction == ExitReason.VMXON:
        return (
            "no VMXON region there",
            f"{_REGION}, and its first 32 bits the revision identifier {vmx.REVISION:#x}",
            "VMXON - Enter VMX Operation",
        )
    if instruction in (ExitReason.VMLAUNCH, ExitReason.VMRESUME):
        return (
            "there is no current VMCS, or it is a shadow VMCS",
            "VMPTRLD one first that is none",
            "Basic VM-Entry Checks",
        )
    return (
        "there is no current VMCS, or the guest with VMCS shadowing has none",
        "VMPTRLD one first; for a guest, VMCS_LINK_POINTER says where its shadow VMCS is",
        "VMX Instruction Reference",
    )


def _operand(instruction: int, operand: int) -> str:
    if instruction in _WITH_POINTER:
        return f" of {hexadecimal(operand)}"
    if instruction in (ExitReason.VMREAD, ExitReason.VMWRITE):
        field = _BY_ENCODING.get(operand & ~1)
        known = "" if field is None else f" ({field.name})"
        return f" of field {hexadecimal(operand)}{known}"
    return ""


_TYPES = {
    ExitReason.INVEPT: "1 (single-context) or 2 (all-context)",
    ExitReason.INVVPID: (
        "0 (individual-address), 1 (single-context), 2 (all-context) or 3 "
        "(single-context-retaining-globals)"
    ),
}


def _wrong_type(instruction: ExitReason, kind: int) -> str:
    return (
        f"its type is {hexadecimal(kind)}, and must be {_TYPES[instruction]}, as "
        "IA32_VMX_EPT_VPID_CAP reports"
    )


def _wrong_invvpid(kind: int, vpid: int, address: int) -> str:
    vpid &= (1 << 64) - 1
    if not 0 <= kind <= 3:
        return _wrong_type(ExitReason.INVVPID, kind)
    if vpid >> 16:
        return f"bits 63:16 of its descriptor must be 0, and bits 63:0 are {hexadecimal(vpid)}"
    if vpid == 0 and kind != 2:
        return f"VPID 0 is the VMM's own, and type {kind} does not take it"
    return f"its linear address {hexadecimal(address)} is not canonical"


def _wrong_invept(kind: int, pointer: int, _rest: int) -> str:
    if not 1 <= kind <= 2:
        return _wrong_type(ExitReason.INVEPT, kind)
    return (
        f"its EPT pointer {hexadecimal(pointer)} would fail VM entry: memory type (bits 2:0) 0 or "
        "6, page-walk length (bits 5:3) 3, bits 11:7 and those beyond the physical-address width 0"
    )


def explain_entry_failure(v: Cells, msr: str = "") -> str:
    """Why the VM entry failed that VMCS `v` reports, or "" if EXIT_REASON reports none.

    `msr` says why an MSR was not loaded, if somebody has looked.
    """
    reason = int(v[Field.EXIT_REASON.cell])
    if reason & REASON_ENTRY_FAILURE == 0:
        return ""
    qualification = int(v[Field.EXIT_QUALIFICATION.cell])
    if reason & 0xFFFF == ExitReason.ENTRY_FAILURE_GUEST_STATE:
        what = "invalid guest state"
        why = explain(int(v[_FAILED_CHECK]), v)
    else:
        what = f"MSR loading, entry {qualification}"
        area = hexadecimal(int(v[Field.VM_ENTRY_MSR_LOAD_ADDRESS.cell]))
        why = f'VM_ENTRY_MSR_LOAD_ADDRESS = {area}: {msr or _MSR_LOADING} [SDM, "Loading MSRs"]'
    return (
        f"VM-entry failure, exit reason {hexadecimal(reason)} ({what}), exit qualification "
        f"{qualification}: {why}"
    )


def explain_abort(code: int, why: str = "") -> str:
    """What the VMX-abort indicator `code` means (SDM, "VMX Aborts"), and `why` in particular."""
    what = _ABORTS.get(code, "no such abort")
    return f'VMX abort {code}: {what}{f": {why}" if why else ""} [SDM, "VMX Aborts"]'
