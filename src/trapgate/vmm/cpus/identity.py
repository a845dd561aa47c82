"""What processor guests find: CPUID leaves and the model-specific registers beside the VMCS's.

It is a processor of the Nehalem kind with what later ones have and hypervisors demand, and no
AVX: what CPUID shows executes, and what it does not show is #UD. The time-stamp counter and the
local APIC's timer run at the virtual clock's rate, and leaf 15H says so, so that guests need not
measure them.
"""

from collections.abc import Mapping

from trapgate.sdm.state import XCR0_IMPLEMENTED
from trapgate.vmm.devices import INSTRUCTIONS_PER_MICROSECOND

APIC = 1 << 9
"""Leaf 1, EDX; shown while IA32_APIC_BASE enables the local APIC."""

_FEATURES_EDX = (
    1 << 0  # FPU
    | 1 << 1  # VME
    | 1 << 2  # DE
    | 1 << 3  # PSE
    | 1 << 4  # TSC
    | 1 << 5  # MSR
    | 1 << 6  # PAE
    | 1 << 7  # MCE, without MCA: there are no banks
    | 1 << 8  # CX8
    | APIC
    | 1 << 11  # SEP
    | 1 << 12  # MTRR
    | 1 << 13  # PGE
    | 1 << 15  # CMOV
    | 1 << 16  # PAT
    | 1 << 19  # CLFSH
    | 1 << 23  # MMX
    | 1 << 24  # FXSR
    | 1 << 25  # SSE
    | 1 << 26  # SSE2
)
_FEATURES_ECX = (
    1 << 0  # SSE3
    | 1 << 5  # VMX
    | 1 << 9  # SSSE3
    | 1 << 13  # CX16
    | 1 << 17  # PCID
    | 1 << 19  # SSE4.1
    | 1 << 20  # SSE4.2
    | 1 << 21  # x2APIC
    | 1 << 23  # POPCNT
    | 1 << 24  # the local APIC's timer has a TSC-deadline mode
    | 1 << 26  # XSAVE
    | 1 << 30  # RDRAND
    | 1 << 31  # a hypervisor is present
)
XSAVE = 1 << 26
OSXSAVE = 1 << 27
"""Leaf 1, ECX; the second shown while CR4.OSXSAVE is 1, both if the engine can."""
_STRUCTURED = (
    1 << 0  # FSGSBASE
    | 1 << 1  # IA32_TSC_ADJUST
    | 1 << 7  # SMEP
    | 1 << 9  # ERMS
    | 1 << 10  # INVPCID
    | 1 << 20  # SMAP
    | 1 << 23  # CLFLUSHOPT
)
_ARCH_CAPABILITIES = 1 << 29
_ARAT = 1 << 2
_EXECUTE_DISABLE = 1 << 20
_EXTENDED_EDX = (
    1 << 11  # SYSCALL
    | _EXECUTE_DISABLE
    | 1 << 27  # RDTSCP
    | 1 << 29  # long mode
)
_SIGNATURE = 0x106A5
_HIGHEST_LEAF = 0x16
_LIMITED_LEAF = 2
XSAVE_LEAF = 0xD
_XSAVE_AREA = 512 + 64
"""Bytes."""
_HYPERVISOR = 0x4000_0000
_EXTENDED_FEATURES = 0x8000_0001
_HIGHEST_EXTENDED = 0x8000_0008
Leaf = tuple[int, int, int, int]

_VENDOR = b"GenuineIntel"
_MONITOR = b"TrapgateVMM\0"
_BRAND = b"Trapgate virtual processor".ljust(48, b"\0")


def _word(text: bytes, n: int) -> int:
    return int.from_bytes(text[4 * n : 4 * n + 4], "little")


def _brand(n: int) -> Leaf:
    """The `n`th third of the processor's name."""
    a, b, c, d = (_word(_BRAND, 4 * n + i) for i in range(4))
    return a, b, c, d


_MEGAHERTZ = INSTRUCTIONS_PER_MICROSECOND

_LEAVES: dict[int, Leaf] = {
    0x0: (_HIGHEST_LEAF, _word(_VENDOR, 0), _word(_VENDOR, 2), _word(_VENDOR, 1)),
    # One logical processor in the package.
    0x1: (_SIGNATURE, 0x0001_0800, _FEATURES_ECX, _FEATURES_EDX),
    0x2: (0x0000_0001, 0, 0, 0),
    # The timer of the local APIC never stops.
    0x6: (_ARAT, 0, 0, 0),
    0x7: (0, _STRUCTURED, 0, _ARCH_CAPABILITIES),
    # Version 2 of performance monitoring, without a counter.
    0xA: (2, 0, 0, 0),
    # The legacy region and the header of XSAVE's area; x87 and SSE state.
    XSAVE_LEAF: (XCR0_IMPLEMENTED, _XSAVE_AREA, _XSAVE_AREA, 0),
    # The crystal clock is the TSC's: one tick an instruction.
    0x15: (1, 1, _MEGAHERTZ * 1_000_000, 0),
    0x16: (_MEGAHERTZ, _MEGAHERTZ, 1, 0),
    _HYPERVISOR: (_HYPERVISOR, _word(_MONITOR, 0), _word(_MONITOR, 1), _word(_MONITOR, 2)),
    0x8000_0000: (_HIGHEST_EXTENDED, 0, 0, 0),
    _EXTENDED_FEATURES: (0, 0, 1, _EXTENDED_EDX),
    0x8000_0002: _brand(0),
    0x8000_0003: _brand(1),
    0x8000_0004: _brand(2),
    0x8000_0007: (0, 0, 0, 1 << 8),
    0x8000_0008: (40 | 48 << 8, 0, 0, 0),
}

_NOTHING: Leaf = (0, 0, 0, 0)

MISC_ENABLE = 0x1A0
_FAST_STRINGS, _LIMIT_CPUID, _XD_DISABLE = 1 << 0, 1 << 22, 1 << 34
_MISC_ENABLE_READ_ONLY = (
    1 << 7  # performance monitoring available
    | 1 << 11  # branch trace storage unavailable
    | 1 << 12  # precise event-based sampling unavailable
)
_MISC_ENABLE_WRITABLE = (
    _FAST_STRINGS
    | 1 << 3  # automatic thermal control
    | 1 << 16  # Enhanced SpeedStep
    | 1 << 18  # MONITOR
    | _LIMIT_CPUID
    | 1 << 23  # xTPR messages off
    | _XD_DISABLE
)
MISC_ENABLE_AT_RESET = _FAST_STRINGS | 1 << 11 | 1 << 12
"""IA32_MISC_ENABLE, 64 bits (SDM, volume 4, "Architectural MSRs")."""


def misc_enable_with(present: int, value: int) -> int | None:
    """What IA32_MISC_ENABLE holds once `value` is written to it; None for #GP: a reserved bit."""
    if value & ~(_MISC_ENABLE_WRITABLE | _MISC_ENABLE_READ_ONLY):
        return None
    return present & _MISC_ENABLE_READ_ONLY | value & _MISC_ENABLE_WRITABLE


_TOPOLOGY = ((1, 1 << 8), (1, 2 << 8 | 1))
"""EBX and ECX of leaf BH: one thread in a core, one of these in a package."""


def cpuid(
    leaf: int, subleaf: int, number: int = 0, misc_enable: int = MISC_ENABLE_AT_RESET
) -> Leaf:
    """EAX, EBX, ECX, EDX of CPUID with EAX = `leaf`, ECX = `subleaf`; or zeros.

    `number` is the initial APIC ID; each processor is a package of its own. `misc_enable` is
    IA32_MISC_ENABLE, of which two bits hide things.
    """
    if subleaf and leaf in (0x7, XSAVE_LEAF):
        return _NOTHING
    if leaf == 0xB:
        count, level = _TOPOLOGY[subleaf] if subleaf < len(_TOPOLOGY) else (0, subleaf & 0xFF)
        return 0, count, level, number
    eax, ebx, ecx, edx = _LEAVES.get(leaf, _NOTHING)
    if leaf == 0 and misc_enable & _LIMIT_CPUID:
        eax = _LIMITED_LEAF
    elif leaf == 1:
        ebx |= number << 24
    elif leaf == _EXTENDED_FEATURES and misc_enable & _XD_DISABLE:
        edx &= ~_EXECUTE_DISABLE
    return eax, ebx, ecx, edx


FLAWS_ABSENT = (
    1 << 0  # RDCL_NO: Meltdown, and L1TF
    | 1 << 3  # SKIP_L1DFL_VMENTRY: a VMM need not flush the L1 data cache
    | 1 << 4  # SSB_NO
    | 1 << 5  # MDS_NO
    | 1 << 6  # IF_PSCHANGE_MC_NO
    | 1 << 8  # TAA_NO
    | 1 << 13  # SBDR_SSDP_NO
    | 1 << 14  # FBSDP_NO
    | 1 << 15  # PSDP_NO
    | 1 << 20  # BHI_NO
    | 1 << 24  # PBRSB_NO
    | 1 << 26  # GDS_NO
    | 1 << 27  # RFDS_NO
)
"""IA32_ARCH_CAPABILITIES: of what no processor suffers that executes nothing speculatively."""

MSRS: Mapping[int, int] = {
    0x000: 0,  # IA32_P5_MC_ADDR
    0x001: 0,  # IA32_P5_MC_TYPE
    0x017: 0,  # IA32_PLATFORM_ID
    0x08B: 0,  # IA32_BIOS_SIGN_ID
    0x0CE: 0,  # MSR_PLATFORM_INFO
    0x10A: FLAWS_ABSENT,
    0x140: 0,  # MISC_FEATURES_ENABLES
    0x179: 0,  # IA32_MCG_CAP
    0x17A: 0,  # IA32_MCG_STATUS
    0x38D: 0,  # IA32_FIXED_CTR_CTRL
    0x38E: 0,  # IA32_PERF_GLOBAL_STATUS
    0x390: 0,  # IA32_PERF_GLOBAL_OVF_CTRL
}
"""MSRs that read as constants; writing back what they hold is allowed."""

WRITABLE_MSRS = frozenset({0x08B, 0x140})
"""Those of them that take any write without effect."""
