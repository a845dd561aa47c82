"""The capability MSRs, computed from what is implemented.

Source: SDM, appendix "VMX Capability Reporting Facility". What VM entry checks and what these
say come from the same constants (`sdm.controls`).
"""

from collections.abc import Mapping

from trapgate.decision.criteria_table import MOST_CLAUSES, MOST_RULES, TABLE_BYTES
from trapgate.sdm import controls as ct
from trapgate.sdm import vmx
from trapgate.sdm.cells import ENCODINGS
from trapgate.sdm.fields import EXTENSION_INDEX
from trapgate.sdm.state import CR4_IMPLEMENTED

_DEFAULT_1_PRIMARY = 0x0401E172
_DEFAULT_1_EXIT = 0x00036DFF
_DEFAULT_1_ENTRY = 0x000011FF
_WRITE_BACK = 6
_EXTENSIONS = 1 | MOST_CLAUSES << 8 | MOST_RULES << 16 | TABLE_BYTES << 32
_EXIT_SAVES_LMA = 1 << 5
_ACTIVITY_STATES = 7 << 6
_VMWRITE_ANY_FIELD = 1 << 29
_INVVPID = 1 << 32 | 0xF << 40
_EXECUTE_ONLY = 1 << 0
_FOUR_LEVELS = 1 << 6
_UNCACHEABLE_OR_WRITE_BACK = 1 << 8 | 1 << 14
_LARGE_PAGES = 1 << 16 | 1 << 17
_INVEPT = 1 << 20 | 1 << 25 | 1 << 26
_ACCESSED_DIRTY = 1 << 21
_EPT = (
    _EXECUTE_ONLY
    | _FOUR_LEVELS
    | _UNCACHEABLE_OR_WRITE_BACK
    | _LARGE_PAGES
    | _INVEPT
    | _ACCESSED_DIRTY
)


def _allowed(must: int, may: int) -> int:
    return must | may << 32


def capability_msrs(*, extended: bool, secondary: int) -> Mapping[int, int]:
    """MSR number to value (64 bits).

    `extended` says whether the extension fields exist, `secondary` which secondary processor-based
    controls may be 1: EPT is among them or not, as the engine can.
    """
    ept = _EPT if secondary & ct.SECONDARY_EPT else 0
    highest = max(
        encoding >> 1 & 0x1FF
        for encoding in ENCODINGS.values()
        if extended or encoding >> 1 & 0x1FF < EXTENSION_INDEX
    )
    return {
        vmx.MSR_VMX_BASIC: (
            vmx.REVISION | vmx.REGION_SIZE << 32 | _WRITE_BACK << 50 | 1 << 54 | 1 << 55
        ),
        vmx.MSR_VMX_PINBASED_CTLS: _allowed(ct.PIN_ALLOWED_0, ct.PIN_ALLOWED_1),
        vmx.MSR_VMX_PROCBASED_CTLS: _allowed(_DEFAULT_1_PRIMARY, ct.PRIMARY_ALLOWED_1),
        vmx.MSR_VMX_EXIT_CTLS: _allowed(_DEFAULT_1_EXIT, ct.EXIT_ALLOWED_1),
        vmx.MSR_VMX_ENTRY_CTLS: _allowed(_DEFAULT_1_ENTRY, ct.ENTRY_ALLOWED_1),
        vmx.MSR_VMX_MISC: _EXIT_SAVES_LMA | _ACTIVITY_STATES | 4 << 16 | _VMWRITE_ANY_FIELD,
        vmx.MSR_VMX_CR0_FIXED0: vmx.CR0_FIXED_0,
        vmx.MSR_VMX_CR0_FIXED1: vmx.CR0_FIXED_1,
        vmx.MSR_VMX_CR4_FIXED0: vmx.CR4_FIXED_0,
        vmx.MSR_VMX_CR4_FIXED1: CR4_IMPLEMENTED,
        vmx.MSR_VMX_VMCS_ENUM: highest << 1,
        vmx.MSR_VMX_PROCBASED_CTLS2: _allowed(ct.SECONDARY_ALLOWED_0, secondary),
        vmx.MSR_VMX_EPT_VPID_CAP: _INVVPID | ept,
        vmx.MSR_VMX_TRUE_PINBASED_CTLS: _allowed(ct.PIN_ALLOWED_0, ct.PIN_ALLOWED_1),
        vmx.MSR_VMX_TRUE_PROCBASED_CTLS: _allowed(ct.PRIMARY_ALLOWED_0, ct.PRIMARY_ALLOWED_1),
        vmx.MSR_VMX_TRUE_EXIT_CTLS: _allowed(ct.EXIT_ALLOWED_0, ct.EXIT_ALLOWED_1),
        vmx.MSR_VMX_TRUE_ENTRY_CTLS: _allowed(ct.ENTRY_ALLOWED_0, ct.ENTRY_ALLOWED_1),
        **({vmx.MSR_TRAPGATE_EXTENSIONS: _EXTENSIONS} if extended else {}),
    }
