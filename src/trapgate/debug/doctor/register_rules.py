"""Rules that host state and guest state have in common: control registers and MSRs."""

from collections.abc import Callable

from trapgate.debug.doctor.bits import (
    ENTRY_LOAD_CET,
    ENTRY_LOAD_FRED,
    ENTRY_LOAD_PKRS,
    ENTRY_LOAD_SPEC_CTRL,
    EXIT_LOAD_CET,
    EXIT_LOAD_PKRS,
    SECOND_EXIT_LOAD_FRED,
    SECOND_EXIT_LOAD_SPEC_CTRL,
)
from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs
from trapgate.debug.doctor.processor import ForeignProcessor
from trapgate.debug.doctor.rules import (
    Rule,
    canonical,
    entry_has,
    exit_has,
    long_guest,
    secondary_exit_has,
    unrestricted,
)
from trapgate.sdm import controls as ct
from trapgate.sdm import state as st

_PAT_TYPES = (0, 1, 4, 5, 6, 7)
_PAT_RESET = 0x0007040600070406
_PERF_RESERVED = ~((1 << 49) - 1) & (1 << 64) - 1
_CET_RESERVED = 0x3C0
_FRED_RESERVED = 0x834
_SPEC_CTRL_RESERVED = ~0x5FF & (1 << 64) - 1
_LAM = 3 << 61
_CET_SUPPRESS_AND_TRACK = 0xC00


def pat_is_legal(value: int) -> bool:
    """Whether each of the eight bytes is a memory type."""
    return all(value >> shift & 0xFF in _PAT_TYPES for shift in range(0, 64, 8))


def _mended_pat(value: int, cpu: ForeignProcessor) -> int:
    masks = (0xFF << shift for shift in range(0, 64, 8))
    return sum((value if (value & m) // (m & -m) in _PAT_TYPES else _PAT_RESET) & m for m in masks)


def _stack(name: str, low: int, when: Callable[[DumpedVmcs], bool]) -> tuple[Rule, Rule]:
    """The rules that a stack pointer of FRED is aligned, and canonical."""
    rule = name.lower().replace("_ia32", "").replace("_", "-")
    return (
        Rule(
            f"{rule}-aligned",
            (name,),
            f"bits {low - 1}:0 must be 0 if FRED's MSRs are loaded",
            lambda p, cpu: not when(p) or p[name] & (1 << low) - 1 == 0,
            "with FRED regular stacks are aligned to 64 bytes, and shadow stacks to 8",
            lambda value, cpu: value & ~((1 << low) - 1),
        ),
        canonical(rule, name, when),
    )


def registers(side: str) -> tuple[Rule, ...]:
    """CR0, CR3, CR4 and the MSRs; `side` is GUEST or HOST."""
    guest = side == "GUEST"
    low = side.lower()
    cr0, cr3, cr4 = (f"{side}_CR{n}" for n in (0, 3, 4))

    def loads(entry_bit: int, exit_bit: int) -> Callable[[DumpedVmcs], bool]:
        return lambda p: entry_has(p, entry_bit) if guest else exit_has(p, exit_bit)

    def loads_second(entry_bit: int, exit_bit: int) -> Callable[[DumpedVmcs], bool]:
        return lambda p: entry_has(p, entry_bit) if guest else secondary_exit_has(p, exit_bit)

    def masking(p: DumpedVmcs) -> int:
        # Processors differ; the SDM, "Linear-Address Masking".
        long = p.values.get("VM_ENTRY_CONTROLS", 0) & ct.ENTRY_IA32E_MODE_GUEST
        return _LAM if guest and long else 0

    def cr0_ones(p: DumpedVmcs, cpu: ForeignProcessor) -> bool:
        must = cpu.fixed("CR0")[0]
        if guest and must & ~p[cr0] and unrestricted(p):
            must &= ~(st.CR0_PE | st.CR0_PG)
        return p[cr0] & must == must

    pat = loads(ct.ENTRY_LOAD_PAT, ct.EXIT_LOAD_PAT)
    perf = loads(ct.ENTRY_LOAD_PERF_GLOBAL_CTRL, ct.EXIT_LOAD_PERF_GLOBAL_CTRL)
    cet = loads(ENTRY_LOAD_CET, EXIT_LOAD_CET)
    pkrs = loads(ENTRY_LOAD_PKRS, EXIT_LOAD_PKRS)
    fred = loads_second(ENTRY_LOAD_FRED, SECOND_EXIT_LOAD_FRED)
    spec_ctrl = loads_second(ENTRY_LOAD_SPEC_CTRL, SECOND_EXIT_LOAD_SPEC_CTRL)
    long_field, long_words = (
        ("VM_ENTRY_CONTROLS", '"IA-32e mode guest" is 0')
        if guest
        else ("VM_EXIT_CONTROLS", '"host address-space size" is 0')
    )

    def legacy(p: DumpedVmcs) -> bool:
        return not (long_guest(p) if guest else exit_has(p, ct.EXIT_HOST_ADDRESS_SPACE_SIZE))

    perf_field, pat_field = f"{side}_IA32_PERF_GLOBAL_CTRL", f"{side}_IA32_PAT"
    s_cet, ssp = f"{side}_IA32_S_CET", f"{side}_SSP"
    unless = ' (PE and PG not with "unrestricted guest")' if guest else ""
    return (
        Rule(
            f"{low}-cr0-must-be-1",
            (cr0, "SECONDARY_PROCESSOR_BASED_CONTROLS") if guest else (cr0,),
            f"PE, NE and PG, or what IA32_VMX_CR0_FIXED0 says, must be 1{unless}",
            cr0_ones,
            "the guest's own CR0 was written as it is: NE must be added, and hidden behind mask "
            "and read shadow"
            if guest
            else "CR0 was not read from the processor",
            lambda value, cpu: value | cpu.fixed("CR0")[0],
        ),
        Rule(
            f"{low}-cr0-may-be-1",
            (cr0,),
            "must have no bit that IA32_VMX_CR0_FIXED1 does not allow; bits 63:32 are always 0",
            lambda p, cpu: p[cr0] & ~cpu.fixed("CR0")[1] == 0,
            "a value of more than 32 bits, or one never written",
            lambda value, cpu: value & cpu.fixed("CR0")[1],
        ),
        Rule(
            f"{low}-cr4-must-be-1",
            (cr4,),
            "VMXE (bit 13), or what IA32_VMX_CR4_FIXED0 says, must be 1",
            lambda p, cpu: p[cr4] & cpu.fixed("CR4")[0] == cpu.fixed("CR4")[0],
            "the guest's own CR4 was written as it is: VMXE must be added, and hidden behind mask "
            "and read shadow"
            if guest
            else "CR4 was read before VMXE was set",
            lambda value, cpu: value | cpu.fixed("CR4")[0],
        ),
        Rule(
            f"{low}-cr4-may-be-1",
            (cr4,),
            "must have no bit that IA32_VMX_CR4_FIXED1 does not allow",
            lambda p, cpu: p[cr4] & ~cpu.fixed("CR4")[1] == 0,
            "the guest was shown a feature that this processor lacks, as after a migration",
            lambda value, cpu: value & cpu.fixed("CR4")[1],
        ),
        Rule(
            f"{low}-cet-without-wp",
            (cr4, cr0),
            "CET (bit 23) must be 0 if CR0.WP is 0",
            lambda p, cpu: not p[cr4] & st.CR4_CET or bool(p[cr0] & st.CR0_WP),
            "CR0.WP was cleared (by a debugger, or to patch code) while shadow stacks are on",
            lambda value, cpu: value & ~st.CR4_CET,
        ),
        Rule(
            f"{low}-cr3-reserved",
            (cr3,),
            "bits beyond the physical-address width must be 0",
            lambda p, cpu: (p[cr3] & ~masking(p)) >> cpu.physical_limit == 0,
            "bit 63 of the operand of MOV to CR3 (keep translations, with PCIDs) is not part of CR3"
            if guest
            else "a virtual address was written",
            lambda value, cpu: value & ((1 << cpu.physical_limit) - 1),
        ),
        *(
            canonical(f"{low}-sysenter-{x.lower()}", f"{side}_IA32_SYSENTER_{x}")
            for x in ("ESP", "EIP")
        ),
        Rule(
            f"{low}-perf-global-ctrl",
            (perf_field,),
            "reserved bits (63:49 of every processor so far) must be 0 if it is loaded",
            lambda p, cpu: not perf(p) or p[perf_field] & _PERF_RESERVED == 0,
            "counters that this processor does not have, as after a migration",
            lambda value, cpu: value & ~_PERF_RESERVED,
        ),
        Rule(
            f"{low}-pat",
            (pat_field,),
            "each byte must be a memory type (0, 1, 4, 5, 6 or 7) if it is loaded",
            lambda p, cpu: not pat(p) or pat_is_legal(p[pat_field]),
            "the guest wrote what WRMSR would have refused, or the field was never written",
            _mended_pat,
        ),
        Rule(
            f"{low}-s-cet",
            (s_cet,),
            "bits 9:6 must be 0, bits 11:10 not both 1, and the rest canonical if CET is loaded",
            lambda p, cpu: (
                not cet(p)
                or (
                    p[s_cet] & _CET_RESERVED == 0
                    and p[s_cet] & _CET_SUPPRESS_AND_TRACK != _CET_SUPPRESS_AND_TRACK
                )
            ),
            "a value that WRMSR would have refused was stored unchecked",
            lambda value, cpu: value & ~(_CET_RESERVED | _CET_SUPPRESS_AND_TRACK),
        ),
        canonical(f"{low}-s-cet-canonical", s_cet, cet),
        Rule(
            f"{low}-s-cet-high",
            (s_cet, long_field),
            f"bits 63:32 must be 0 if {long_words} and CET is loaded",
            lambda p, cpu: not cet(p) or not legacy(p) or p[s_cet] >> 32 == 0,
            "the value of 64-bit code stayed when the mode changed",
            lambda value, cpu: value & 0xFFFF_FFFF,
        ),
        canonical(f"{low}-ssp-table", f"{side}_IA32_INTERRUPT_SSP_TABLE_ADDR", cet),
        Rule(
            f"{low}-ssp-aligned",
            (ssp,),
            "bits 1:0 must be 0 if CET is loaded",
            lambda p, cpu: not cet(p) or p[ssp] & 3 == 0,
            "a shadow-stack token was taken for the pointer: its bits 1:0 are flags",
            lambda value, cpu: value & ~3,
        ),
        canonical(f"{low}-ssp", ssp, cet),
        Rule(
            f"{low}-pkrs",
            (f"{side}_IA32_PKRS",),
            "bits 63:32 must be 0 if it is loaded",
            lambda p, cpu: not pkrs(p) or p[f"{side}_IA32_PKRS"] >> 32 == 0,
            "a mask was sign-extended: the register has 32 bits",
            lambda value, cpu: value & 0xFFFF_FFFF,
        ),
        Rule(
            f"{low}-spec-ctrl",
            (f"{side}_IA32_SPEC_CTRL",),
            "reserved bits (63:11 and 9 of every processor so far) must be 0 if it is loaded",
            lambda p, cpu: (
                not spec_ctrl(p) or p[f"{side}_IA32_SPEC_CTRL"] & _SPEC_CTRL_RESERVED == 0
            ),
            "bits that this processor does not have, as after a migration",
            lambda value, cpu: value & ~_SPEC_CTRL_RESERVED,
        ),
        Rule(
            f"{low}-fred-config",
            (f"{side}_IA32_FRED_CONFIG",),
            "bits 11, 5:4 and 2 must be 0 if FRED's MSRs are loaded",
            lambda p, cpu: not fred(p) or p[f"{side}_IA32_FRED_CONFIG"] & _FRED_RESERVED == 0,
            "the entry point is not at the beginning of a page, or a stack level is in wrong bits",
            lambda value, cpu: value & ~_FRED_RESERVED,
        ),
        canonical(f"{low}-fred-config-canonical", f"{side}_IA32_FRED_CONFIG", fred),
        *(
            rule
            for n in (1, 2, 3)
            for kind, bits in (("RSP", 6), ("SSP", 3))
            for rule in _stack(f"{side}_IA32_FRED_{kind}{n}", bits, fred)
        ),
    )
