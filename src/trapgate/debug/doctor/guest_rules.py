"""SDM, "Checks on the Guest State Area", registers, RIP and RFLAGS."""

from trapgate.debug.doctor.bits import (
    CR4_FRED,
    ENTRY_LOAD_BNDCFGS,
    ENTRY_LOAD_CET,
    ENTRY_LOAD_LBR_CTL,
    ENTRY_LOAD_RTIT_CTL,
    ENTRY_LOAD_UINV,
)
from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs
from trapgate.debug.doctor.processor import ForeignProcessor
from trapgate.debug.doctor.register_rules import registers
from trapgate.debug.doctor.rules import (
    GUEST_FAILS,
    Group,
    Rule,
    canonical,
    entry_has,
    fred,
    in_64_bit_mode,
    linear_width,
    long_guest,
)
from trapgate.debug.doctor.transition_rules import injects, kind
from trapgate.sdm import controls as ct
from trapgate.sdm import state as st
from trapgate.sdm.interruption import (
    TYPE_EXTERNAL_INTERRUPT,
)

_ENTRY = "VM_ENTRY_CONTROLS"
_INFO = "VM_ENTRY_INTERRUPTION_INFORMATION"
_ALL_ONES = (1 << 64) - 1
_DEBUGCTL_RESERVED = ~0xFFFF & _ALL_ONES | 0x38
_RFLAGS_RESERVED = ~0x3FFFFF & _ALL_ONES | st.RFLAGS_RESERVED_LOW


def _loads_debug(p: DumpedVmcs) -> bool:
    return entry_has(p, ct.ENTRY_LOAD_DEBUG_CONTROLS)


def _efer(p: DumpedVmcs) -> bool:
    return entry_has(p, ct.ENTRY_LOAD_EFER)


REGISTERS = Group(
    "Checks on Guest Control Registers, Debug Registers, and MSRs",
    GUEST_FAILS,
    (
        *registers("GUEST"),
        Rule(
            "guest-pg-without-pe",
            ("GUEST_CR0",),
            "PE must be 1 if PG is 1",
            lambda p, cpu: not p["GUEST_CR0"] & st.CR0_PG or bool(p["GUEST_CR0"] & st.CR0_PE),
            "PE was cleared on the way to real mode before PG",
            lambda value, cpu: value | st.CR0_PE,
        ),
        Rule(
            "guest-debugctl",
            ("GUEST_IA32_DEBUGCTL", _ENTRY),
            'reserved bits (63:16, 5:3) must be 0 if "load debug controls" is 1',
            lambda p, cpu: (
                not _loads_debug(p) or p["GUEST_IA32_DEBUGCTL"] & _DEBUGCTL_RESERVED == 0
            ),
            "the guest's WRMSR was stored without its check",
            lambda value, cpu: value & ~_DEBUGCTL_RESERVED,
        ),
        Rule(
            "guest-long-pg",
            ("GUEST_CR0", _ENTRY),
            'PG must be 1 if "IA-32e mode guest" is 1',
            lambda p, cpu: bool(p["GUEST_CR0"] & st.CR0_PG) or not long_guest(p),
            "the guest left paging, and the VM-entry control did not follow",
            lambda value, cpu: value | st.CR0_PG,
        ),
        Rule(
            "guest-long-pae",
            ("GUEST_CR4", _ENTRY),
            'PAE must be 1 if "IA-32e mode guest" is 1',
            lambda p, cpu: bool(p["GUEST_CR4"] & st.CR4_PAE) or not long_guest(p),
            "CR4 was restored after EFER, or is the read shadow",
            lambda value, cpu: value | st.CR4_PAE,
        ),
        Rule(
            "guest-legacy-pcide",
            ("GUEST_CR4", _ENTRY),
            'PCIDE must be 0 if "IA-32e mode guest" is 0',
            lambda p, cpu: not p["GUEST_CR4"] & st.CR4_PCIDE or long_guest(p),
            "the guest left IA-32e mode with PCIDE, which MOV to CR0 would have refused",
            lambda value, cpu: value & ~st.CR4_PCIDE,
        ),
        Rule(
            "guest-legacy-fred",
            ("GUEST_CR4", _ENTRY),
            'FRED (bit 32) must be 0 if "IA-32e mode guest" is 0',
            lambda p, cpu: not p["GUEST_CR4"] & CR4_FRED or long_guest(p),
            "the guest left IA-32e mode with FRED on, which MOV to CR0 would have refused",
            lambda value, cpu: value & ~CR4_FRED,
        ),
        Rule(
            "guest-dr7",
            ("GUEST_DR7", _ENTRY),
            'bits 63:32 must be 0 if "load debug controls" is 1',
            lambda p, cpu: not p["GUEST_DR7"] >> 32 or not _loads_debug(p),
            "MOV to DR7 was emulated without its #GP, or debug registers were restored unchecked",
            lambda value, cpu: value & 0xFFFF_FFFF,
        ),
        Rule(
            "guest-efer-reserved",
            ("GUEST_IA32_EFER", _ENTRY),
            'only SCE, LME, LMA and NXE (bits 0, 8, 10, 11) exist if "load IA32_EFER" is 1',
            lambda p, cpu: not _efer(p) or p["GUEST_IA32_EFER"] & ~st.EFER_DEFINED == 0,
            "an AMD processor's bits (SVME, FFXSR, TCE), as after a migration",
            lambda value, cpu: value & st.EFER_DEFINED,
        ),
        Rule(
            "guest-efer-lma",
            ("GUEST_IA32_EFER", _ENTRY),
            'LMA (bit 10) must equal "IA-32e mode guest"',
            lambda p, cpu: (
                not _efer(p) or bool(p["GUEST_IA32_EFER"] & st.EFER_LMA) == long_guest(p)
            ),
            "the guest switched modes, and the VM-entry control did not follow",
            lambda value, cpu: value ^ st.EFER_LMA,
        ),
        Rule(
            "guest-efer-lme",
            ("GUEST_IA32_EFER", "GUEST_CR0"),
            "LME (bit 8) must equal LMA (bit 10) if CR0.PG is 1",
            lambda p, cpu: (
                not _efer(p)
                or not p["GUEST_CR0"] & st.CR0_PG
                or bool(p["GUEST_IA32_EFER"] & st.EFER_LMA)
                == bool(p["GUEST_IA32_EFER"] & st.EFER_LME)
            ),
            "paging was switched on without LMA being updated",
            lambda value, cpu: value ^ st.EFER_LME,
        ),
        Rule(
            "guest-bndcfgs",
            ("GUEST_IA32_BNDCFGS", _ENTRY),
            'bits 11:2 must be 0 if "load IA32_BNDCFGS" is 1',
            lambda p, cpu: (
                not entry_has(p, ENTRY_LOAD_BNDCFGS) or p["GUEST_IA32_BNDCFGS"] & 0xFFC == 0
            ),
            "a value that WRMSR would have refused was stored unchecked",
            lambda value, cpu: value & ~0xFFC,
        ),
        canonical(
            "guest-bndcfgs-base",
            "GUEST_IA32_BNDCFGS",
            lambda p: entry_has(p, ENTRY_LOAD_BNDCFGS),
        ),
        Rule(
            "guest-rtit-ctl",
            ("GUEST_IA32_RTIT_CTL", _ENTRY),
            'bits 63:59 must be 0 if "load IA32_RTIT_CTL" is 1',
            lambda p, cpu: (
                not entry_has(p, ENTRY_LOAD_RTIT_CTL) or p["GUEST_IA32_RTIT_CTL"] >> 59 == 0
            ),
            "a value that WRMSR would have refused was stored unchecked",
            lambda value, cpu: value & ((1 << 59) - 1),
        ),
        Rule(
            "guest-lbr-ctl",
            ("GUEST_IA32_LBR_CTL", _ENTRY),
            'bits 63:23 and 15:4 must be 0 if "load guest IA32_LBR_CTL" is 1',
            lambda p, cpu: (
                not entry_has(p, ENTRY_LOAD_LBR_CTL) or p["GUEST_IA32_LBR_CTL"] & ~0x7F000F == 0
            ),
            "a value that WRMSR would have refused was stored unchecked",
            lambda value, cpu: value & 0x7F000F,
        ),
        Rule(
            "guest-uinv",
            ("GUEST_UINV", _ENTRY),
            'bits 15:8 must be 0 if "load UINV" is 1',
            lambda p, cpu: not entry_has(p, ENTRY_LOAD_UINV) or p["GUEST_UINV"] < 256,
            "a value that WRMSR would have refused was stored unchecked",
            lambda value, cpu: value & 0xFF,
        ),
    ),
)


def _rip_bits(p: DumpedVmcs, cpu: ForeignProcessor) -> bool:
    # Not quite canonical: RIP may have run from the end of the lower half into the hole.
    rest = p["GUEST_RIP"] >> linear_width(p, cpu)
    return rest in (0, (1 << (64 - linear_width(p, cpu))) - 1) or not in_64_bit_mode(p)


RIP = Group(
    "Checks on Guest RIP, RFLAGS, and SSP",
    GUEST_FAILS,
    (
        Rule(
            "rip-high",
            ("GUEST_RIP", _ENTRY, "GUEST_CS_ACCESS_RIGHTS"),
            "bits 63:32 must be 0 outside 64-bit mode",
            lambda p, cpu: p["GUEST_RIP"] >> 32 == 0 or in_64_bit_mode(p),
            'CS has no L bit, or "IA-32e mode guest" is 0, though the guest runs 64-bit code',
            lambda value, cpu: value & 0xFFFF_FFFF,
        ),
        Rule(
            "rip-canonical",
            ("GUEST_RIP",),
            "bits 63 down to the linear-address width must be all alike in 64-bit mode",
            _rip_bits,
            "the guest jumped through a corrupted pointer, and its #GP was not raised",
        ),
        Rule(
            "rflags-reserved",
            ("GUEST_RFLAGS",),
            "bits 63:22, 15, 5 and 3 must be 0 and bit 1 must be 1",
            lambda p, cpu: (
                p["GUEST_RFLAGS"] & (_RFLAGS_RESERVED | st.RFLAGS_FIXED_1) == st.RFLAGS_FIXED_1
            ),
            "RFLAGS was initialised with 0 instead of 2",
            lambda value, cpu: value & ~_RFLAGS_RESERVED | st.RFLAGS_FIXED_1,
        ),
        Rule(
            "rflags-vm",
            ("GUEST_RFLAGS", _ENTRY, "GUEST_CR0"),
            'VM (bit 17) must be 0 if "IA-32e mode guest" is 1 or CR0.PE is 0',
            lambda p, cpu: (
                not p["GUEST_RFLAGS"] & st.RFLAGS_VM
                or (bool(p["GUEST_CR0"] & st.CR0_PE) and not long_guest(p))
            ),
            "virtual-8086 mode was used for a real mode that the guest has left",
            lambda value, cpu: value & ~st.RFLAGS_VM,
        ),
        Rule(
            "rflags-fred-iopl",
            ("GUEST_RFLAGS", "GUEST_CR4", "GUEST_SS_ACCESS_RIGHTS"),
            "IOPL (bits 13:12) must be 0 if CR4.FRED is 1 and the DPL of SS is 3",
            lambda p, cpu: (
                not fred(p)
                or p["GUEST_SS_ACCESS_RIGHTS"] & st.AR_DPL != st.AR_DPL
                or not p["GUEST_RFLAGS"] & 3 << 12
            ),
            "user code was given an IOPL, which FRED does not allow",
            lambda value, cpu: value & ~(3 << 12),
        ),
        Rule(
            "ssp-high",
            ("GUEST_SSP", _ENTRY, "GUEST_CS_ACCESS_RIGHTS"),
            "bits 63:32 must be 0 outside 64-bit mode if CET is loaded",
            lambda p, cpu: (
                not entry_has(p, ENTRY_LOAD_CET) or p["GUEST_SSP"] >> 32 == 0 or in_64_bit_mode(p)
            ),
            "the shadow stack of 64-bit code stayed when the mode changed",
            lambda value, cpu: value & 0xFFFF_FFFF,
        ),
        Rule(
            "rflags-if",
            ("GUEST_RFLAGS", _INFO),
            "IF (bit 9) must be 1 if an external interrupt is injected",
            lambda p, cpu: (
                bool(p["GUEST_RFLAGS"] & st.RFLAGS_IF)
                or not injects(p)
                or kind(p) != TYPE_EXTERNAL_INTERRUPT
            ),
            "an interrupt was injected without asking whether the guest takes one: wait with "
            '"interrupt-window exiting"',
            lambda value, cpu: value | st.RFLAGS_IF,
        ),
    ),
)
