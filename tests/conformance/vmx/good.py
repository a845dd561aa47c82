"""A VMCS that passes all checks of VM entry, for a flat 32-bit or 64-bit guest and host."""

SELECTORS = {"ES": 0x10, "CS": 0x08, "SS": 0x10, "DS": 0x10, "FS": 0x10, "GS": 0x10, "TR": 0x18}


def good_fields(bits: int) -> dict[str, int]:
    """The fields that are not 0; addresses of tables, stacks and code are for the user to set."""
    long = bits == 64
    fields = {
        "PIN_BASED_CONTROLS": 0x16,
        "PRIMARY_PROCESSOR_BASED_CONTROLS": 0x04006172,
        "VM_EXIT_CONTROLS": 0x00036DFB | 1 << 2 | 1 << 20 | 1 << 21 | long << 9,
        "VM_ENTRY_CONTROLS": 0x000011FB | 1 << 2 | 1 << 15 | long << 9,
        "VMCS_LINK_POINTER": (1 << 64) - 1,
        "GUEST_CR0": 0x80010031,
        "GUEST_CR3": 0x4000,
        "GUEST_CR4": 0x2020 if long else 0x2010,
        "GUEST_IA32_EFER": 0x500 if long else 0,
        "GUEST_IA32_PAT": 0x0007040600070406,
        "GUEST_DR7": 0x400,
        "GUEST_RFLAGS": 2,
        "GUEST_RIP": 0x10000,
        "GUEST_RSP": 0x9000,
        "GUEST_GDTR_LIMIT": 0xFF,
        "GUEST_IDTR_LIMIT": 0xFFF,
        "GUEST_LDTR_ACCESS_RIGHTS": 1 << 16,
        "GUEST_TR_ACCESS_RIGHTS": 0x8B,
        "GUEST_TR_LIMIT": 0x67,
        "HOST_CR0": 0x80010031,
        "HOST_CR3": 0x4000,
        "HOST_CR4": 0x2020 if long else 0x2010,
        "HOST_IA32_EFER": 0x500 if long else 0,
        "HOST_IA32_PAT": 0x0007040600070406,
        "HOST_RIP": 0x11000,
        "HOST_RSP": 0xA000,
    }
    for name, selector in SELECTORS.items():
        fields[f"GUEST_{name}_SELECTOR"] = fields[f"HOST_{name}_SELECTOR"] = selector
    for name in ("ES", "CS", "SS", "DS", "FS", "GS"):
        fields[f"GUEST_{name}_LIMIT"] = 0xFFFF_FFFF
        fields[f"GUEST_{name}_ACCESS_RIGHTS"] = 0xC093
    fields["GUEST_CS_ACCESS_RIGHTS"] = 0xA09B if long else 0xC09B
    return fields
