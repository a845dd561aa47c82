"""Prints a VMCS as hypervisors of several versions do, and as people paste it."""

from collections.abc import Mapping

from trapgate.debug.doctor.fields import FIELDS, width

Fields = Mapping[str, int]
SEGMENTS = ("CS", "DS", "SS", "ES", "FS", "GS")


def _segment(v: Fields, name: str, form: str) -> str:
    parts = (v[f"GUEST_{name}_{part}"] for part in ("SELECTOR", "ACCESS_RIGHTS", "LIMIT", "BASE"))
    return form.format(*parts)


def kvm(v: Fields, *, new: bool) -> list[str]:
    """What dump_vmcs prints; `new` as since 6.0, else as in 4.x."""
    sel = "sel=0x{:04x}, attr=0x{:05x}, limit=0x{:08x}, base=0x{:016x}"
    table = "                           limit=0x{:08x}, base=0x{:016x}"
    lines = ["VMCS 00000000aabbccdd, last attempted VM-entry on CPU 3"] if new else []
    lines += [
        "*** Guest State ***",
        *(
            f"CR{n}: actual=0x{v[f'GUEST_CR{n}']:016x}, shadow=0x{v[f'CR{n}_READ_SHADOW']:016x}, "
            f"gh_mask={v[f'CR{n}_GUEST_HOST_MASK']:016x}"
            for n in (0, 4)
        ),
        f"CR3 = 0x{v['GUEST_CR3']:016x}",
        *(
            f"PDPTR{n} = 0x{v[f'GUEST_PDPTE{n}']:016x}  "
            f"PDPTR{n + 1} = 0x{v[f'GUEST_PDPTE{n + 1}']:016x}"
            for n in (0, 2)
        ),
        f"RSP = 0x{v['GUEST_RSP']:016x}  RIP = 0x{v['GUEST_RIP']:016x}",
        f"RFLAGS=0x{v['GUEST_RFLAGS']:08x}         DR7 = 0x{v['GUEST_DR7']:016x}",
        (
            f"Sysenter RSP={v['GUEST_IA32_SYSENTER_ESP']:016x} "
            f"CS:RIP={v['GUEST_IA32_SYSENTER_CS']:04x}:{v['GUEST_IA32_SYSENTER_EIP']:016x}"
        ),
        *(_segment(v, name, f"{name}:   {sel}") for name in SEGMENTS),
        "GDTR:" + table.format(v["GUEST_GDTR_LIMIT"], v["GUEST_GDTR_BASE"]),
        _segment(v, "LDTR", f"LDTR: {sel}"),
        "IDTR:" + table.format(v["GUEST_IDTR_LIMIT"], v["GUEST_IDTR_BASE"]),
        _segment(v, "TR", f"TR:   {sel}"),
    ]
    efer, pat = v["GUEST_IA32_EFER"], v["GUEST_IA32_PAT"]
    if new:
        lines += [f"EFER= 0x{efer:016x}", f"PAT = 0x{pat:016x}"]
    else:
        lines += [f"EFER =     0x{efer:016x}  PAT = 0x{pat:016x}"]
    lines += [
        (
            f"DebugCtl = 0x{v['GUEST_IA32_DEBUGCTL']:016x}  "
            f"DebugExceptions = 0x{v['GUEST_PENDING_DEBUG_EXCEPTIONS']:016x}"
        ),
        (
            f"Interruptibility = {v['GUEST_INTERRUPTIBILITY_STATE']:08x}  "
            f"ActivityState = {v['GUEST_ACTIVITY_STATE']:08x}"
        ),
        *_host(v),
        "*** Control State ***",
    ]
    pin, entry = v["PIN_BASED_CONTROLS"], v["VM_ENTRY_CONTROLS"]
    cpu, leave = v["PRIMARY_PROCESSOR_BASED_CONTROLS"], v["VM_EXIT_CONTROLS"]
    second = v["SECONDARY_PROCESSOR_BASED_CONTROLS"]
    if new:
        lines += [
            f"CPUBased=0x{cpu:08x} SecondaryExec=0x{second:08x} TertiaryExec=0x0000000000000000",
            f"PinBased=0x{pin:08x} EntryControls={entry:08x} ExitControls={leave:08x}",
        ]
    else:
        lines += [
            f"PinBased={pin:08x} CPUBased={cpu:08x} SecondaryExec={second:08x}",
            f"EntryControls={entry:08x} ExitControls={leave:08x}",
        ]
    return [*lines, *_control(v)]


def _host(v: Fields) -> list[str]:
    return [
        "*** Host State ***",
        f"RIP = 0x{v['HOST_RIP']:016x}  RSP = 0x{v['HOST_RSP']:016x}",
        " ".join(f"{name}={v[f'HOST_{name}_SELECTOR']:04x}" for name in (*SEGMENTS, "TR")),
        " ".join(f"{name}Base={v[f'HOST_{name}_BASE']:016x}" for name in ("FS", "GS", "TR")),
        f"GDTBase={v['HOST_GDTR_BASE']:016x} IDTBase={v['HOST_IDTR_BASE']:016x}",
        " ".join(f"CR{n}={v[f'HOST_CR{n}']:016x}" for n in (0, 3, 4)),
        (
            f"Sysenter RSP={v['HOST_IA32_SYSENTER_ESP']:016x} "
            f"CS:RIP={v['HOST_IA32_SYSENTER_CS']:04x}:{v['HOST_IA32_SYSENTER_EIP']:016x}"
        ),
        f"EFER = 0x{v['HOST_IA32_EFER']:016x}  PAT = 0x{v['HOST_IA32_PAT']:016x}",
    ]


def _control(v: Fields) -> list[str]:
    return [
        (
            f"ExceptionBitmap={v['EXCEPTION_BITMAP']:08x} "
            f"PFECmask={v['PAGE_FAULT_ERROR_CODE_MASK']:08x} "
            f"PFECmatch={v['PAGE_FAULT_ERROR_CODE_MATCH']:08x}"
        ),
        (
            f"VMEntry: intr_info={v['VM_ENTRY_INTERRUPTION_INFORMATION']:08x} "
            f"errcode={v['VM_ENTRY_EXCEPTION_ERROR_CODE']:08x} "
            f"ilen={v['VM_ENTRY_INSTRUCTION_LENGTH']:08x}"
        ),
        "VMExit: intr_info=00000000 errcode=00000000 ilen=00000003",
        "        reason=80000021 qualification=0000000000000000",
        "IDTVectoring: info=00000000 errcode=00000000",
        f"TSC Offset = 0x{v['TSC_OFFSET']:016x}",
        f"EPT pointer = 0x{v['EPT_POINTER']:016x}",
        f"Virtual processor ID = 0x{v['VIRTUAL_PROCESSOR_IDENTIFIER']:04x}",
    ]


def xen(v: Fields) -> list[str]:
    """What vmcs_dump_vcpu prints."""
    row = "{:04x} {:05x} {:08x} {:016x}"
    lines = kvm(v, new=False)
    start = next(n for n, line in enumerate(lines) if line.startswith("CS:"))
    end = next(n for n, line in enumerate(lines) if line.startswith("EFER"))
    return [
        "************* VMCS Area **************",
        *(line.replace("PDPTR", "PDPTE") for line in lines[:start]),
        "       sel  attr  limit   base",
        *(_segment(v, name, f"  {name}: {row}") for name in SEGMENTS),
        f"GDTR:            {v['GUEST_GDTR_LIMIT']:08x} {v['GUEST_GDTR_BASE']:016x}",
        _segment(v, "LDTR", f"LDTR: {row}"),
        f"IDTR:            {v['GUEST_IDTR_LIMIT']:08x} {v['GUEST_IDTR_BASE']:016x}",
        _segment(v, "TR", f"  TR: {row}"),
        lines[end].replace("EFER =    ", "EFER(VMCS) ="),
        *lines[end + 1 :],
        "**************************************",
    ]


def virtualbox(v: Fields) -> list[str]:
    """The list of a VMCS in VirtualBox's release log."""

    def row(label: str, value: int) -> str:
        return f"    {label:<27}= {value:#x}"

    def segment(name: str) -> str:
        return (
            f"    {name.lower():<27}= {{{v[f'GUEST_{name}_SELECTOR']:04x} "
            f"base={v[f'GUEST_{name}_BASE']:016x} limit={v[f'GUEST_{name}_LIMIT']:08x} "
            f"flags={v[f'GUEST_{name}_ACCESS_RIGHTS']:04x}}}"
        )

    return [
        "VMCS cache:",
        "  Control:",
        row("VPID", v["VIRTUAL_PROCESSOR_IDENTIFIER"]),
        row("Pin ctls", v["PIN_BASED_CONTROLS"]),
        row("Processor ctls", v["PRIMARY_PROCESSOR_BASED_CONTROLS"]),
        row("Secondary processor ctls", v["SECONDARY_PROCESSOR_BASED_CONTROLS"]),
        row("VM-exit ctls", v["VM_EXIT_CONTROLS"]),
        row("VM-entry ctls", v["VM_ENTRY_CONTROLS"]),
        row("Exception bitmap", v["EXCEPTION_BITMAP"]),
        f"    {'CR3-target count':<27}= {v['CR3_TARGET_COUNT']}",
        row("VM-entry interruption info", v["VM_ENTRY_INTERRUPTION_INFORMATION"]),
        row("VM-entry xcpt error-code", v["VM_ENTRY_EXCEPTION_ERROR_CODE"]),
        f"    {'VM-entry instr length':<27}= {v['VM_ENTRY_INSTRUCTION_LENGTH']} byte(s)",
        row("EPTP ptr", v["EPT_POINTER"]),
        "  Guest state:",
        *(segment(name) for name in (*SEGMENTS, "LDTR", "TR")),
        *(
            f"    {name.lower():<27}= {{base={v[f'GUEST_{name}_BASE']:016x} "
            f"limit={v[f'GUEST_{name}_LIMIT']:08x}}}"
            for name in ("GDTR", "IDTR")
        ),
        row("Interruptibility state", v["GUEST_INTERRUPTIBILITY_STATE"]),
        row("Activity state", v["GUEST_ACTIVITY_STATE"]),
        row("SysEnter CS", v["GUEST_IA32_SYSENTER_CS"]),
        row("VMCS link ptr", v["VMCS_LINK_POINTER"]),
        row("DBGCTL", v["GUEST_IA32_DEBUGCTL"]),
        row("PAT", v["GUEST_IA32_PAT"]),
        row("EFER", v["GUEST_IA32_EFER"]),
        *(row(f"cr{n}", v[f"GUEST_CR{n}"]) for n in (0, 3, 4)),
        row("dr7", v["GUEST_DR7"]),
        row("rsp", v["GUEST_RSP"]),
        row("rip", v["GUEST_RIP"]),
        row("rflags", v["GUEST_RFLAGS"]),
        row("Pending debug xcpts", v["GUEST_PENDING_DEBUG_EXCEPTIONS"]),
        row("SysEnter ESP", v["GUEST_IA32_SYSENTER_ESP"]),
        "  Host state:",
        *(row(name.lower(), v[f"HOST_{name}_SELECTOR"]) for name in ("CS", "SS", "DS", "ES")),
        *(
            f"    {name.lower():<27}= {{{v[f'HOST_{name}_SELECTOR']:04x} "
            f"base={v[f'HOST_{name}_BASE']:016x}}}"
            for name in ("FS", "GS", "TR")
        ),
        *(row(f"cr{n}", v[f"HOST_CR{n}"]) for n in (0, 3, 4)),
        row("EFER", v["HOST_IA32_EFER"]),
        row("rip", v["HOST_RIP"]),
    ]


def kvm_later(v: Fields) -> list[str]:
    """What dump_vmcs prints of kernels 6.x that know APICv, MSR lists, and CET."""
    lines = kvm(v, new=True)
    guest = lines.index("*** Host State ***")
    lines[guest:guest] = [
        "InterruptStatus = 0000",
        "MSR guest autoload:",
        "   0: msr=0x00000600 value=0x0000000000000000",
        (
            f"S_CET = 0x{v['GUEST_IA32_S_CET']:016x}, SSP = 0x{v['GUEST_SSP']:016x}, SSP TABLE = "
            f"0x{v['GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR']:016x}"
        ),
    ]
    return [
        *lines,
        f"SVI|RVI = 00|00 TPR Threshold = 0x{v['TPR_THRESHOLD']:02x}",
        (
            f"APIC-access addr = 0x{v['APIC_ACCESS_ADDRESS']:016x} virt-APIC addr = "
            f"0x{v['VIRTUAL_APIC_ADDRESS']:016x}"
        ),
        f"PostedIntrVec = 0x{v['POSTED_INTERRUPT_NOTIFICATION_VECTOR']:02x}",
        f"PLE Gap={v['PLE_GAP']:08x} Window={v['PLE_WINDOW']:08x}",
    ]


def xen_older(v: Fields) -> list[str]:
    """Xen's as of 4.5 to 4.10, with what the VMM believes beside RSP, RIP and RFLAGS."""

    def beside(line: str) -> str:
        rip, rsp, flags = (f"0x{v[f'GUEST_{n}']:016x}" for n in ("RIP", "RSP", "RFLAGS"))
        line = line.replace(
            f"RSP = {rsp}  RIP = {rip}", f"RSP = {rsp} ({rsp})  RIP = {rip} ({rip})"
        )
        return line.replace(f"RFLAGS=0x{flags[-8:]} ", f"RFLAGS=0x{flags[-8:]} (0x{flags[-8:]}) ")

    return [
        "d7v0 vmentry failure (reason 0x80000021): Invalid guest state (0)",
        *map(beside, xen(v)),
    ]


def haxm(v: Fields) -> list[str]:
    """HAXM's log: encoding, name, bare hexadecimal digits."""
    return [f"haxm_warning: {FIELDS[name]:04x} VMX_{name}: {value:x}" for name, value in v.items()]


def columns(v: Fields) -> list[str]:
    """A table: names, blanks, and hexadecimal digits, as many as the field has."""
    return [f"{name:<44} {value:0{width(name) // 4}x}" for name, value in v.items()]


def commented(v: Fields) -> list[str]:
    """NAME = value lines behind #, with the upper halves of 64-bit fields in lines of their own."""
    lines = ["   # vmread(0x2) failed"]
    for name, value in v.items():
        if width(name) == 64 and FIELDS[name] >> 13 == 1:
            lines.append(f" # {name}_FULL = 0x{value & 0xFFFFFFFF:x}")
            lines.append(f" # {name}_HIGH = 0x{value >> 32:x}")
        else:
            lines.append(f" # {name} = 0x{value:x}")
    return lines


def hyperdbg(v: Fields) -> list[str]:
    """A driver's log with the names of ia32-doc."""
    executed = "PROCESSOR_BASED_VM_EXECUTION_CONTROLS"
    other = {
        "PIN_BASED_CONTROLS": "CTRL_PIN_BASED_VM_EXECUTION_CONTROLS",
        "PRIMARY_PROCESSOR_BASED_CONTROLS": f"CTRL_{executed}",
        "SECONDARY_PROCESSOR_BASED_CONTROLS": f"CTRL_SECONDARY_{executed}",
        "VM_EXIT_CONTROLS": "CTRL_PRIMARY_VMEXIT_CONTROLS",
        "VM_ENTRY_CONTROLS": "CTRL_VMENTRY_CONTROLS",
        "VM_ENTRY_INTERRUPTION_INFORMATION": "CTRL_VMENTRY_INTERRUPTION_INFORMATION_FIELD",
        "VM_ENTRY_EXCEPTION_ERROR_CODE": "CTRL_VMENTRY_EXCEPTION_ERROR_CODE",
        "VM_ENTRY_INSTRUCTION_LENGTH": "CTRL_VMENTRY_INSTRUCTION_LENGTH",
        "VMCS_LINK_POINTER": "GUEST_VMCS_LINK_POINTER",
        "EPT_POINTER": "CTRL_EPT_POINTER",
        "VIRTUAL_PROCESSOR_IDENTIFIER": "CTRL_VIRTUAL_PROCESSOR_IDENTIFIER",
        "MSR_BITMAP_ADDRESS": "CTRL_MSR_BITMAP_ADDRESS",
    }
    return [
        f"[+] Information (VmxDumpVmcs:{n}) | VMCS_{other.get(name, name)} : 0x{value:x}"
        for n, (name, value) in enumerate(v.items(), start=210)
        if name in other or name.startswith(("GUEST_", "HOST_"))
    ]


def guru(v: Fields) -> list[str]:
    """The guest's registers in VirtualBox's log after a Guru Meditation."""

    def segment(name: str) -> str:
        shown = {"LDTR": "ldtr", "TR": "tr  "}.get(name, name.lower())
        return (
            f"{shown}={{{v[f'GUEST_{name}_SELECTOR']:04x} base={v[f'GUEST_{name}_BASE']:016x} "
            f"limit={v[f'GUEST_{name}_LIMIT']:08x} flags={v[f'GUEST_{name}_ACCESS_RIGHTS']:08x}}}"
        )

    return [
        "Guest CPUM (VCPU 0) state: ",
        "rax=0000000000000001 rbx=0000000000000000 rcx=0000000000000000 rdx=0000000000000000",
        f"rip={v['GUEST_RIP']:016x} rsp={v['GUEST_RSP']:016x} rbp=0000000000000000 iopl=0 nv up di",
        f"{segment('CS')} dr0=0000000000000000 dr1=0000000000000000",
        f"{segment('DS')} dr2=0000000000000000 dr3=0000000000000000",
        f"{segment('ES')} dr4=0000000000000000 dr5=0000000000000000",
        f"{segment('FS')} dr6=00000000ffff0ff0 dr7={v['GUEST_DR7']:016x}",
        f"{segment('GS')} cr0={v['GUEST_CR0']:016x} cr2=0000000000000000",
        f"{segment('SS')} cr3={v['GUEST_CR3']:016x} cr4={v['GUEST_CR4']:016x}",
        (
            f"gdtr={v['GUEST_GDTR_BASE']:016x}:{v['GUEST_GDTR_LIMIT']:04x}  "
            f"idtr={v['GUEST_IDTR_BASE']:016x}:{v['GUEST_IDTR_LIMIT']:04x}  "
            f"rflags={v['GUEST_RFLAGS']:08x}"
        ),
        segment("LDTR"),
        segment("TR"),
        (
            f"SysEnter={{cs={v['GUEST_IA32_SYSENTER_CS']:04x} "
            f"eip={v['GUEST_IA32_SYSENTER_EIP']:016x} esp={v['GUEST_IA32_SYSENTER_ESP']:016x}}}"
        ),
        f"EFER         ={v['GUEST_IA32_EFER']:016x}",
        f"PAT          ={v['GUEST_IA32_PAT']:016x}",
    ]


def bochs(v: Fields) -> list[str]:
    """The part of Bochs' saved state that is about the current VMCS: controls and host."""

    def row(name: str, field: str) -> str:
        return f"      {name} = 0x{v[field]:x}"

    selectors = ("ES", "CS", "SS", "DS", "FS", "GS", "TR")
    return [
        "VMX = {",
        "  vmcsptr = 0x10c000",
        "  in_vmx = true",
        "  VMCS_CACHE = {",
        "    VMEXEC_CTRLS = {",
        row("pin_vmexec_ctrls", "PIN_BASED_CONTROLS"),
        row("vmexec_ctrls1", "PRIMARY_PROCESSOR_BASED_CONTROLS"),
        row("vmexec_ctrls2", "SECONDARY_PROCESSOR_BASED_CONTROLS"),
        row("vm_exceptions_bitmap", "EXCEPTION_BITMAP"),
        row("vm_pf_mask", "PAGE_FAULT_ERROR_CODE_MASK"),
        row("vm_cr0_mask", "CR0_GUEST_HOST_MASK"),
        f"      vm_cr3_target_cnt = {v['CR3_TARGET_COUNT']}",
        row("msr_bitmap_addr", "MSR_BITMAP_ADDRESS"),
        row("eptptr", "EPT_POINTER"),
        row("vpid", "VIRTUAL_PROCESSOR_IDENTIFIER"),
        row("vmcs_linkptr", "VMCS_LINK_POINTER"),
        "    }",
        "    VMEXIT_CTRLS = {",
        row("vmexit_ctrls", "VM_EXIT_CONTROLS"),
        f"      vmexit_msr_store_cnt = {v['VM_EXIT_MSR_STORE_COUNT']}",
        row("vmexit_msr_store_addr", "VM_EXIT_MSR_STORE_ADDRESS"),
        "    }",
        "    VMENTRY_CTRLS = {",
        row("vmentry_ctrls", "VM_ENTRY_CONTROLS"),
        row("vmentry_interr_info", "VM_ENTRY_INTERRUPTION_INFORMATION"),
        row("vmentry_excep_err_code", "VM_ENTRY_EXCEPTION_ERROR_CODE"),
        "    }",
        "    HOST_STATE = {",
        *(row(f"CR{n}", f"HOST_CR{n}") for n in (0, 3, 4)),
        *(row(name, f"HOST_{name}_SELECTOR") for name in selectors),
        *(row(f"{name}_BASE", f"HOST_{name}_BASE") for name in ("FS", "GS", "GDTR", "IDTR", "TR")),
        row("RIP", "HOST_RIP"),
        row("sysenter_esp_msr", "HOST_IA32_SYSENTER_ESP"),
        row("pat_msr", "HOST_IA32_PAT"),
        row("efer_msr", "HOST_IA32_EFER"),
        row("ia32_s_cet_msr", "HOST_IA32_S_CET"),
        "    }",
        "  }",
        "}",
        "  CR0 = 0xdeadbeef",
    ]


def linux_names(v: Fields) -> list[str]:
    """NAME: value lines with the names of a C header."""
    other = {
        "PRIMARY_PROCESSOR_BASED_CONTROLS": "CPU_BASED_VM_EXEC_CONTROL",
        "SECONDARY_PROCESSOR_BASED_CONTROLS": "SECONDARY_VM_EXEC_CONTROL",
        "PIN_BASED_CONTROLS": "PIN_BASED_VM_EXEC_CONTROL",
        "VM_ENTRY_INTERRUPTION_INFORMATION": "VM_ENTRY_INTR_INFO_FIELD",
        "GUEST_INTERRUPTIBILITY_STATE": "GUEST_INTERRUPTIBILITY_INFO",
    }
    return [
        f"{other.get(name, name).replace('ACCESS_RIGHTS', 'AR_BYTES')}: {value:#x}"
        for name, value in v.items()
    ]


def qemu(v: Fields) -> list[str]:
    """What `info registers` prints of a 64-bit guest."""
    rows = []
    for name in (*SEGMENTS, "LDTR", "TR"):
        word = (v[f"GUEST_{name}_ACCESS_RIGHTS"] & 0xF0FF) << 8
        rows.append(
            f"{name if name != 'LDTR' else 'LDT':<3}={v[f'GUEST_{name}_SELECTOR']:04x} "
            f"{v[f'GUEST_{name}_BASE']:016x} {v[f'GUEST_{name}_LIMIT']:08x} {word:08x} DPL=0"
        )
    return [
        "KVM: entry failed, hardware error 0x80000021",
        "",
        "RAX=0000000000000000 RBX=0000000000000000 RCX=0000000000000000 RDX=0000000000000000",
        f"RSI=0 RDI=0 RBP=0000000000000000 RSP={v['GUEST_RSP']:016x}",
        (
            f"RIP={v['GUEST_RIP']:016x} RFL={v['GUEST_RFLAGS']:08x} [-------] CPL=0 "
            f"II={v['GUEST_INTERRUPTIBILITY_STATE'] & 1} A20=1 SMM=0 "
            f"HLT={v['GUEST_ACTIVITY_STATE'] & 1}"
        ),
        *rows,
        f"GDT=     {v['GUEST_GDTR_BASE']:016x} {v['GUEST_GDTR_LIMIT']:08x}",
        f"IDT=     {v['GUEST_IDTR_BASE']:016x} {v['GUEST_IDTR_LIMIT']:08x}",
        (
            f"CR0={v['GUEST_CR0']:08x} CR2=0000000000000000 CR3={v['GUEST_CR3']:016x} "
            f"CR4={v['GUEST_CR4']:08x}"
        ),
        f"DR6=00000000ffff0ff0 DR7={v['GUEST_DR7']:016x}",
        f"EFER={v['GUEST_IA32_EFER']:016x}",
    ]


def _members(rights: int) -> dict[str, int]:
    return {
        "type": rights & 15,
        "present": rights >> 7 & 1,
        "dpl": rights >> 5 & 3,
        "db": rights >> 14 & 1,
        "s": rights >> 4 & 1,
        "l": rights >> 13 & 1,
        "g": rights >> 15 & 1,
        "avl": rights >> 12 & 1,
        "unusable": rights >> 16 & 1,
    }


def sregs(v: Fields) -> list[str]:
    """A structure of KVM_GET_SREGS as a debugger or Rust prints it."""
    lines = ["kvm_sregs {"]
    for name in (*SEGMENTS, "TR", "LDTR"):
        members = {
            "base": v[f"GUEST_{name}_BASE"],
            "limit": v[f"GUEST_{name}_LIMIT"],
            "selector": v[f"GUEST_{name}_SELECTOR"],
            **_members(v[f"GUEST_{name}_ACCESS_RIGHTS"]),
        }
        inner = ", ".join(f"{'type_' if k == 'type' else k}: {n}" for k, n in members.items())
        low = "ldt" if name == "LDTR" else name.lower()
        lines.append(f"    {low}: kvm_segment {{ {inner}, padding: 0 }},")
    for low, name in (("gdt", "GDTR"), ("idt", "IDTR")):
        lines.append(
            f"    {low}: kvm_dtable {{ base: {v[f'GUEST_{name}_BASE']}, "
            f"limit: {v[f'GUEST_{name}_LIMIT']}, padding: [0, 0, 0] }},"
        )
    lines += [f"    cr{n}: {v[f'GUEST_CR{n}']}," for n in (0, 3, 4)]
    return [*lines, f"    efer: {v['GUEST_IA32_EFER']},", "    apic_base: 4276094976", "}"]


def sregs_table(v: Fields) -> list[str]:
    """The same as a table, as kvmtool prints it."""
    lines = [" register  selector  base              limit     type  p dpl db s l g avl"]
    for name in (*SEGMENTS, "TR", "LDTR"):
        m = _members(v[f"GUEST_{name}_ACCESS_RIGHTS"])
        low = "ldt" if name == "LDTR" else name.lower()
        lines.append(
            f" {low:<9} {v[f'GUEST_{name}_SELECTOR']:04x}      {v[f'GUEST_{name}_BASE']:016x}  "
            f"{v[f'GUEST_{name}_LIMIT']:08x}  {m['type']:02x}    {m['present']} {m['dpl']}   "
            f"{m['db']}  {m['s']} {m['l']} {m['g']} {m['avl']}"
        )
    return [
        (
            f" rip: {v['GUEST_RIP']:016x}   rsp: {v['GUEST_RSP']:016x} "
            f"rflags: {v['GUEST_RFLAGS']:016x}"
        ),
        *lines,
        f" cr0: {v['GUEST_CR0']:016x}   cr3: {v['GUEST_CR3']:016x}   cr4: {v['GUEST_CR4']:016x}",
        f" efer: {v['GUEST_IA32_EFER']:016x}",
    ]


def as_is(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def dmesg(lines: list[str]) -> str:
    return "".join(
        f"[ 7058.{n:06}] kvm_intel: {line}\n" for n, line in enumerate(lines, start=290000)
    )


def journal(lines: list[str]) -> str:
    return "".join(
        f"Nov 29 13:37:01 host-7 kernel: [ 12.{n:06}] {x}\n" for n, x in enumerate(lines)
    )


def mail(lines: list[str]) -> str:
    return "".join(f"> > {line}\n" for line in lines)


def wrapped(lines: list[str]) -> str:
    """Broken between words at 60 columns, as mail programs do."""
    result = []
    for line in lines:
        row = ""
        for word in line.split():
            if row and len(row) + len(word) > 59:
                result.append(row)
                row = ""
            row += f"{' ' if row else ''}{word}"
        result.append(row)
    return "\n".join(result)


def serial(lines: list[str]) -> str:
    return "\r\n".join(f"\x1b[31m(XEN) [2024-02-06 14:25:08] {line}\x1b[0m" for line in lines)


def terminal(lines: list[str]) -> str:
    """Broken at 80 columns wherever that is, as a terminal does that a screen is copied from."""
    return "\n".join(line[n : n + 80] for line in lines for n in range(0, max(len(line), 1), 80))


FORMS = {
    "kvm 4": lambda v: kvm(v, new=False),
    "kvm 6": lambda v: kvm(v, new=True),
    "xen": xen,
    "kvm 6 later": kvm_later,
    "xen 4.8": xen_older,
    "virtualbox": virtualbox,
    "haxm": haxm,
    "columns": columns,
    "commented": commented,
    "hyperdbg": hyperdbg,
    "names": linux_names,
}
REGISTERS = {"qemu": qemu, "sregs": sregs, "sregs table": sregs_table, "guru": guru}
PASTED = {
    "as is": as_is,
    "dmesg": dmesg,
    "journal": journal,
    "mail": mail,
    "wrapped": wrapped,
    "serial": serial,
    "terminal": terminal,
}
