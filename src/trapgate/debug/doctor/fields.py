"""Every VMCS field of the SDM, by the names that the SDM and other hypervisors give it.

`sdm.cells` has the fields of this product's processor; a foreign one has more. Source: SDM,
appendix "Field Encoding in VMCS". A name is recognised by the words in it, whatever their order,
case and joints: GUEST_CS_AR_BYTES, VMX_VMCS32_GUEST_CS_ACCESS_RIGHTS and "guest cs access rights"
are one field.
"""

import re
from collections.abc import Mapping
from typing import Final

from trapgate.sdm.cells import ENCODINGS
from trapgate.sdm.fields import EXTENSION_INDEX

_BEYOND: Mapping[str, int] = {
    "EPTP_INDEX": 0x0004,
    "HLAT_PREFIX_SIZE": 0x0006,
    "LAST_PID_POINTER_INDEX": 0x0008,
    "GUEST_UINV": 0x0814,
    "VM_FUNCTION_CONTROLS": 0x2018,
    "EPTP_LIST_ADDRESS": 0x2024,
    "VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS": 0x202A,
    "XSS_EXITING_BITMAP": 0x202C,
    "ENCLS_EXITING_BITMAP": 0x202E,
    "SUB_PAGE_PERMISSION_TABLE_POINTER": 0x2030,
    "TSC_MULTIPLIER": 0x2032,
    "TERTIARY_PROCESSOR_BASED_CONTROLS": 0x2034,
    "ENCLV_EXITING_BITMAP": 0x2036,
    "LOW_PASID_DIRECTORY_ADDRESS": 0x2038,
    "HIGH_PASID_DIRECTORY_ADDRESS": 0x203A,
    "SHARED_EPT_POINTER": 0x203C,
    "PCONFIG_EXITING_BITMAP": 0x203E,
    "HLAT_POINTER": 0x2040,
    "PID_POINTER_TABLE_ADDRESS": 0x2042,
    "SECONDARY_VM_EXIT_CONTROLS": 0x2044,
    "SPEC_CTRL_MASK": 0x204A,
    "SPEC_CTRL_SHADOW": 0x204C,
    "GUEST_IA32_BNDCFGS": 0x2812,
    "GUEST_IA32_RTIT_CTL": 0x2814,
    "GUEST_IA32_LBR_CTL": 0x2816,
    "GUEST_IA32_PKRS": 0x2818,
    "HOST_IA32_PKRS": 0x2C06,
    "INSTRUCTION_TIMEOUT_CONTROL": 0x4024,
    "GUEST_IA32_S_CET": 0x6828,
    "GUEST_SSP": 0x682A,
    "GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR": 0x682C,
    "HOST_IA32_S_CET": 0x6C18,
    "HOST_SSP": 0x6C1A,
    "HOST_IA32_INTERRUPT_SSP_TABLE_ADDR": 0x6C1C,
}

FIELDS: Final[Mapping[str, int]] = dict(
    sorted(
        (
            *((n, e) for n, e in ENCODINGS.items() if e >> 1 & 0x1FF < EXTENSION_INDEX),
            *_BEYOND.items(),
        ),
        key=lambda row: row[1],
    )
)
"""Name to encoding, of every field that shipped processors have."""

NAMES: Final[Mapping[int, str]] = {encoding: name for name, encoding in FIELDS.items()}
"""Encoding to name."""

_WIDTHS = (16, 64, 32, 64)

SEGMENTS: Final = ("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR")
"""In the order of their encodings."""


def width(name: str) -> int:
    """Bits of the field: 16, 32 or 64."""
    return _WIDTHS[FIELDS[name] >> 13 & 3]


def area(name: str) -> str:
    """`control`, `exit information`, `guest state` or `host state`."""
    return ("control", "exit information", "guest state", "host state")[FIELDS[name] >> 10 & 3]


_SAME_WORD = {
    "ptr": "pointer",
    "addr": "address",
    "desc": "descriptor",
    "intr": "interruption",
    "interrupt": "interruption",
    "interr": "interruption",
    "info": "information",
    "err": "error",
    "errcode": "error",
    "instr": "instruction",
    "insn": "instruction",
    "ilen": "length",
    "len": "length",
    "exec": "execution",
    "ar": "access rights",
    "attr": "access rights",
    "attributes": "access rights",
    "sel": "selector",
    "lim": "limit",
    "dbg": "debug",
    "xcpt": "exceptions",
    "xcpts": "exceptions",
    "exception": "exceptions",
    "cpu": "processor",
    "proc": "processor",
    "intstate": "interruptibility",
    "vpid": "processoridentifier",
    "pdptr0": "pdpte0",
    "pdptr1": "pdpte1",
    "pdptr2": "pdpte2",
    "pdptr3": "pdpte3",
    "dbgctl": "debugctl",
    "debugctrl": "debugctl",
    "perfglobalctrl": "perfglobal",
    "accessaddr": "access",
    "pageaddr": "",
    "bitmap0": "bitmap 0",
    "bitmap1": "bitmap 1",
    "bitmap2": "bitmap 2",
    "bitmap3": "bitmap 3",
    "value0": "value 0",
    "value1": "value 1",
    "value2": "value 2",
    "value3": "value 3",
    "exiting": "exit",
    "pagefault": "fault",
    "vmentry": "entry",
    "vmexit": "exit",
    "vmexec": "execution",
    "qual": "qualification",
    "func": "function",
    "functions": "function",
    "masks": "mask",
    "virt": "virtual",
}
_NOISE = frozenset(
    (
        "16",
        "16bit",
        "32",
        "32bit",
        "64",
        "64bit",
        "address",
        "based",
        "bitmaps",
        "bytes",
        "code",
        "control",
        "controls",
        "ctl",
        "ctls",
        "ctrl",
        "error",
        "execution",
        "field",
        "full",
        "ia32",
        "idt",
        "k",
        "msr",
        "n",
        "page",
        "primary",
        "reg",
        "register",
        "rights",
        "state",
        "vm",
        "vmcs",
        "vmcs16",
        "vmcs32",
        "vmcs64",
        "vmcsn",
        "vmx",
    )
)
_JOINTS = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SPECIAL = {
    "guest_intr_status": "GUEST_INTERRUPT_STATUS",
    "posted_intr_nv": "POSTED_INTERRUPT_NOTIFICATION_VECTOR",
    "vmx_vmcs32_ctrl_proc_exec2": "SECONDARY_PROCESSOR_BASED_CONTROLS",
    "vmx_vmcs_ctrl_proc_exec_controls2": "SECONDARY_PROCESSOR_BASED_CONTROLS",
    "procctls2": "SECONDARY_PROCESSOR_BASED_CONTROLS",
    "procctls": "PRIMARY_PROCESSOR_BASED_CONTROLS",
    "pinctls": "PIN_BASED_CONTROLS",
    "vmx_vmcs32_ctrl_entry": "VM_ENTRY_CONTROLS",
    "vmx_vmcs32_ctrl_exit": "VM_EXIT_CONTROLS",
    "vmx_vmcs32_guest_int_state": "GUEST_INTERRUPTIBILITY_STATE",
    "guest_interruptibility_info": "GUEST_INTERRUPTIBILITY_STATE",
    "guest_interruptibility": "GUEST_INTERRUPTIBILITY_STATE",
    "vmx_instruction_info": "VM_EXIT_INSTRUCTION_INFORMATION",
    "vmx_vmcs64_guest_vmcs_link_ptr": "VMCS_LINK_POINTER",
    "vmcs_guest_vmcs_link_pointer": "VMCS_LINK_POINTER",
    "vmcs_64bit_guest_link_pointer": "VMCS_LINK_POINTER",
    "vmcs_guest_link_pointer": "VMCS_LINK_POINTER",
    "virtual_processor_id": "VIRTUAL_PROCESSOR_IDENTIFIER",
    "vmx_vmcs16_ctrl_vpid": "VIRTUAL_PROCESSOR_IDENTIFIER",
    "vmx_vmcs16_vpid": "VIRTUAL_PROCESSOR_IDENTIFIER",
    "vpid": "VIRTUAL_PROCESSOR_IDENTIFIER",
    "vm_exit_intr_error_code": "VM_EXIT_INTERRUPTION_ERROR_CODE",
    "idt_vectoring_error_code": "IDT_VECTORING_ERROR_CODE",
    "idt_vectoring_info_field": "IDT_VECTORING_INFORMATION",
    "idt_vectoring_info": "IDT_VECTORING_INFORMATION",
    "vm_instruction_error": "VM_INSTRUCTION_ERROR",
    "exit_reason": "EXIT_REASON",
    "vm_exit_reason": "EXIT_REASON",
    "vmcs_exit_reason": "EXIT_REASON",
    "guest_s_cet": "GUEST_IA32_S_CET",
    "host_s_cet": "HOST_IA32_S_CET",
    "guest_intr_ssp_table": "GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR",
    "host_intr_ssp_table": "HOST_IA32_INTERRUPT_SSP_TABLE_ADDR",
    "secondary_vm_exec_control": "SECONDARY_PROCESSOR_BASED_CONTROLS",
    "vmcs_32bit_control_secondary_vmexec_controls": "SECONDARY_PROCESSOR_BASED_CONTROLS",
    "guest_pml_index": "PML_INDEX",
    "vmx_vmcs64_ctrl_eptp": "EPT_POINTER",
    "eptp": "EPT_POINTER",
    "tertiary_vm_exec_control": "TERTIARY_PROCESSOR_BASED_CONTROLS",
    "ve_information_address": "VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS",
    "vm_function_control": "VM_FUNCTION_CONTROLS",
}


def _key(name: str) -> frozenset[str]:
    words: list[str] = []
    for word in _JOINTS.split(name):
        words += _SAME_WORD.get(word.lower(), word.lower()).split()
    # Rights and error codes name a field only together with what else is there.
    kept = [word for word in words if word and (word not in _NOISE or word in ("rights", "error"))]
    return frozenset(kept)


_BY_KEY: dict[frozenset[str], str] = {}
for _name in FIELDS:
    _BY_KEY.setdefault(_key(_name), _name)

_NUMBER = re.compile(r"(?:0x)?([0-9A-Fa-f]{3,8})[hH]?")


def field_called(word: str) -> str | None:
    """The SDM's name of the field that somebody calls `word`, or whose encoding it is."""
    bare = word.strip().strip("\"'`*[](){}").strip()
    if bare.upper() in FIELDS:
        return bare.upper()
    special = _SPECIAL.get(re.sub(r"\W+", "_", bare).lower().removesuffix("_full"))
    if special:
        return special
    number = _NUMBER.fullmatch(bare)
    if number and (bare.lower().startswith("0x") or len(number[1]) in (4, 8)):
        return NAMES.get(int(number[1], 16) & ~1)
    if len(bare) > 80 or not re.search(r"[A-Za-z]{2}", bare):
        return None
    return _BY_KEY.get(_key(bare))
