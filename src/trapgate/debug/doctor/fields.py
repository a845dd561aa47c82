"""Every VMCS field of the SDM: name, encoding, width, area.

`sdm.cells` has the fields of this product's processor; a foreign one has more. Source: SDM,
appendix "Field Encoding in VMCS".
"""

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
    "INJECTED_EVENT_DATA": 0x2052,
    "ORIGINAL_EVENT_DATA": 0x2404,
    "GUEST_IA32_PKRS": 0x2818,
    "GUEST_IA32_FRED_CONFIG": 0x281A,
    "GUEST_IA32_FRED_RSP1": 0x281C,
    "GUEST_IA32_FRED_RSP2": 0x281E,
    "GUEST_IA32_FRED_RSP3": 0x2820,
    "GUEST_IA32_FRED_STKLVLS": 0x2822,
    "GUEST_IA32_FRED_SSP1": 0x2824,
    "GUEST_IA32_FRED_SSP2": 0x2826,
    "GUEST_IA32_FRED_SSP3": 0x2828,
    "GUEST_IA32_SPEC_CTRL": 0x282E,
    "HOST_IA32_PKRS": 0x2C06,
    "HOST_IA32_FRED_CONFIG": 0x2C08,
    "HOST_IA32_FRED_RSP1": 0x2C0A,
    "HOST_IA32_FRED_RSP2": 0x2C0C,
    "HOST_IA32_FRED_RSP3": 0x2C0E,
    "HOST_IA32_FRED_STKLVLS": 0x2C10,
    "HOST_IA32_FRED_SSP1": 0x2C12,
    "HOST_IA32_FRED_SSP2": 0x2C14,
    "HOST_IA32_FRED_SSP3": 0x2C16,
    "HOST_IA32_SPEC_CTRL": 0x2C1A,
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
