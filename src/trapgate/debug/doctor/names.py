"""The names that the SDM and other hypervisors give to VMCS fields.

A name is recognised by the words in it, whatever their order, case and joints: GUEST_CS_AR_BYTES,
VMX_VMCS32_GUEST_CS_ACCESS_RIGHTS and "guest cs access rights" are one field.
"""

import re

from trapgate.debug.doctor.fields import FIELDS, NAMES

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
    "bitmaps": "bitmap",
    "cnt": "count",
    "ent": "entry",
    "exi": "exit",
    "excep": "exceptions",
    "exc": "exceptions",
    "inst": "instruction",
    "ld": "load",
    "pf": "fault",
    "sec": "secondary",
    "st": "store",
    "vect": "vectoring",
    "vmfunc": "function",
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
        "bytes",
        "code",
        "control",
        "controls",
        "ctl",
        "ctls",
        "ctrl",
        "ctrls",
        "pri",
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
    "vmcs_32bit_control_execution_bitmap": "EXCEPTION_BITMAP",
    **{f"vm_cr3_target_value{n + 1}": f"CR3_TARGET_VALUE_{n}" for n in range(4)},
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
    # Rights, error codes and the bitmap of MSRs are known only by what else is there.
    telling = {"rights", "error", *(("msr",) if "bitmap" in words else ())}
    kept = [word for word in words if word and (word not in _NOISE or word in telling)]
    return frozenset(kept)


_ALSO: dict[str, str] = {
    # KVM, Intel's HAXM.
    "notify window": "INSTRUCTION_TIMEOUT_CONTROL",
    "vapic page": "VIRTUAL_APIC_ADDRESS",
    "exit info reason": "EXIT_REASON",
    "exit info exception error code": "VM_EXIT_INTERRUPTION_ERROR_CODE",
    "exit info idt vectoring": "IDT_VECTORING_INFORMATION",
    "exit info idt vectoring error code": "IDT_VECTORING_ERROR_CODE",
    "exit info instruction length": "VM_EXIT_INSTRUCTION_LENGTH",
    "exit info qualification": "EXIT_QUALIFICATION",
    "exit info io ecx": "IO_RCX",
    "exit info io esi": "IO_RSI",
    "exit info io edi": "IO_RDI",
    "exit info io eip": "IO_RIP",
    "exit info guest linear address": "GUEST_LINEAR_ADDRESS",
    "exit info guest physical address": "GUEST_PHYSICAL_ADDRESS",
    "guest vmcs link ptr": "VMCS_LINK_POINTER",
    "guest pending dbe": "GUEST_PENDING_DEBUG_EXCEPTIONS",
    "guest pending debug": "GUEST_PENDING_DEBUG_EXCEPTIONS",
    # HyperDbg and others with the names of ia32-doc.
    "guest pml index": "PML_INDEX",
    "ctrl ept pointer list address": "EPTP_LIST_ADDRESS",
    "io rsx": "IO_RSI",
    "exit guest linear address": "GUEST_LINEAR_ADDRESS",
    "vpid": "VIRTUAL_PROCESSOR_IDENTIFIER",
    "preemption timer": "VMX_PREEMPTION_TIMER_VALUE",
    "guest preemption timer value": "VMX_PREEMPTION_TIMER_VALUE",
    "preempt timer value": "VMX_PREEMPTION_TIMER_VALUE",
    # kvm-unit-tests.
    "pinv": "POSTED_INTERRUPT_NOTIFICATION_VECTOR",
    "eptp idx": "EPTP_INDEX",
    "guest int status": "GUEST_INTERRUPT_STATUS",
    "ent intr error": "VM_ENTRY_EXCEPTION_ERROR_CODE",
    "enter msr ld addr": "VM_ENTRY_MSR_LOAD_ADDRESS",
    "exec ptr": "EXECUTIVE_VMCS_POINTER",
    "apic accs addr": "APIC_ACCESS_ADDRESS",
    "pmladdr": "PML_ADDRESS",
    "info phys addr": "GUEST_PHYSICAL_ADDRESS",
    "guest pdpte": "GUEST_PDPTE0",
    "cpu exec ctrl0": "PRIMARY_PROCESSOR_BASED_CONTROLS",
    "cpu exec ctrl1": "SECONDARY_PROCESSOR_BASED_CONTROLS",
    "guest intr state": "GUEST_INTERRUPTIBILITY_STATE",
    "guest actv state": "GUEST_ACTIVITY_STATE",
    # bhyve, xhyve.
    "pir vector": "POSTED_INTERRUPT_NOTIFICATION_VECTOR",
    "pir desc": "POSTED_INTERRUPT_DESCRIPTOR_ADDRESS",
    "executive vmcs": "EXECUTIVE_VMCS_POINTER",
    # Bochs, its saved state among it.
    "posted interrupt vector": "POSTED_INTERRUPT_NOTIFICATION_VECTOR",
    "pid addr": "POSTED_INTERRUPT_DESCRIPTOR_ADDRESS",
    "hlat prefix": "HLAT_PREFIX_SIZE",
    "ve exception info addr": "VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS",
    "ve info addr": "VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS",
    "spptp": "SUB_PAGE_PERMISSION_TABLE_POINTER",
    "tertiary controls": "TERTIARY_PROCESSOR_BASED_CONTROLS",
    "lo pasid directory addr": "LOW_PASID_DIRECTORY_ADDRESS",
    "hi pasid directory addr": "HIGH_PASID_DIRECTORY_ADDRESS",
    "seam shared ept pointer": "SHARED_EPT_POINTER",
    "pause loop exiting gap": "PLE_GAP",
    "pause loop exiting window": "PLE_WINDOW",
    "linkptr": "VMCS_LINK_POINTER",
    "eptptr": "EPT_POINTER",
    "eptp": "EPT_POINTER",
    "vmexec ctrls1": "PRIMARY_PROCESSOR_BASED_CONTROLS",
    "vmexec ctrls2": "SECONDARY_PROCESSOR_BASED_CONTROLS",
    "vmexec ctrls3": "TERTIARY_PROCESSOR_BASED_CONTROLS",
    "vmexit ctrls2": "SECONDARY_VM_EXIT_CONTROLS",
    "io bitmap addr1": "IO_BITMAP_A_ADDRESS",
    "io bitmap addr2": "IO_BITMAP_B_ADDRESS",
    **{f"cr{n} mask": f"CR{n}_GUEST_HOST_MASK" for n in (0, 4)},
    **{f"cr{n} shadow": f"CR{n}_READ_SHADOW" for n in (0, 4)},
    **{f"cr3 target{n}": f"CR3_TARGET_VALUE_{n}" for n in range(4)},
    **{f"cr3 target {n}": f"CR3_TARGET_VALUE_{n}" for n in range(4)},
    "cr3 target val base": "CR3_TARGET_VALUE_0",
    **{f"eoi exit{n}": f"EOI_EXIT_BITMAP_{n}" for n in range(4)},
    **{f"{x} fred stack levels": f"{x.upper()}_IA32_FRED_STKLVLS" for x in ("guest", "host")},
}
"""What others call fields, in words that are not the SDM's; matched as the SDM's names are."""

_BY_KEY: dict[frozenset[str], str] = {}
for _name in FIELDS:
    _BY_KEY.setdefault(_key(_name), _name)
for _name, _field in _ALSO.items():
    _BY_KEY.setdefault(_key(_name), _field)

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
