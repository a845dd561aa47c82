"""The checks of VM entry on the host-state area, each on both sides of its limits. No engine."""

import pytest

from tests.conformance.vmx.good import SELECTORS
from tests.unit.test_entry_pages import vmcs
from trapgate.sdm import checks as ck
from trapgate.sdm import controls as ct
from trapgate.sdm import state
from trapgate.vmx.checks.host_state import check_host_state


def host_check(bits: int = 32, **changes: int) -> int:
    """The check of the host state that fails; the VMM is in the mode that it returns to."""
    return int(check_host_state(vmcs(bits, **changes), bits == 64))


HOST_CR0, HOST_CR4 = 0x8001_0031, 0x2010
HIGH, LOW, BEYOND = 0xFFFF_8000_0000_0000, 0x7FFF_FFFF_FFFF, 1 << 47
"""The least canonical address of the upper half, the greatest of the lower, and the next."""
COUNT, COUNTERS = ct.EXIT_LOAD_PERF_GLOBAL_CTRL, "HOST_IA32_PERF_GLOBAL_CTRL"
CANONICAL = {
    "HOST_IA32_SYSENTER_ESP": ck.HOST_SYSENTER_ESP,
    "HOST_IA32_SYSENTER_EIP": ck.HOST_SYSENTER_EIP,
    "HOST_FS_BASE": ck.HOST_FS_BASE,
    "HOST_GS_BASE": ck.HOST_GS_BASE,
    "HOST_GDTR_BASE": ck.HOST_GDTR_BASE,
    "HOST_IDTR_BASE": ck.HOST_IDTR_BASE,
    "HOST_TR_BASE": ck.HOST_TR_BASE,
}


def leave(*bits: int) -> int:
    """VM-exit controls with these bits and those that must be 1."""
    return ct.EXIT_ALLOWED_0 | sum(bits)


@pytest.mark.parametrize(
    ("bits", "changes", "wanted"),
    [
        *((32, {"HOST_CR0": HOST_CR0 ^ 1 << n}, ck.HOST_CR0) for n in (0, 5, 31, 32, 63)),
        *((32, {"HOST_CR0": HOST_CR0 ^ 1 << n}, 0) for n in (1, 4, 16, 18, 30)),
        *((32, {"HOST_CR4": HOST_CR4 ^ 1 << n}, ck.HOST_CR4) for n in (12, 13, 14, 32, 63)),
        *((32, {"HOST_CR4": HOST_CR4 ^ 1 << n}, 0) for n in (0, 4, 5, 20, 21)),
        (32, {"HOST_CR3": 1 << 39}, 0),
        (32, {"HOST_CR3": 1 << 40}, ck.HOST_CR3),
        (32, {"HOST_CR3": 1 << 63}, ck.HOST_CR3),
        *((32, {name: value}, 0) for name in CANONICAL for value in (HIGH, LOW)),
        *((32, {name: BEYOND}, check) for name, check in CANONICAL.items()),
        # What an exit does not load may be anything.
        (32, {"VM_EXIT_CONTROLS": leave(), "HOST_IA32_PAT": 2, "HOST_IA32_EFER": 2}, 0),
        (32, {"VM_EXIT_CONTROLS": leave(), COUNTERS: 8}, 0),
        (32, {"HOST_IA32_PAT": 2}, 0),
        (32, {"VM_EXIT_CONTROLS": leave(ct.EXIT_LOAD_PAT), "HOST_IA32_PAT": 2}, ck.HOST_PAT),
        (32, {"VM_EXIT_CONTROLS": leave(ct.EXIT_LOAD_PAT)}, 0),
        (32, {"VM_EXIT_CONTROLS": leave(COUNT)}, 0),
        *(
            (32, {"VM_EXIT_CONTROLS": leave(COUNT), COUNTERS: 1 << n}, ck.HOST_PERF_GLOBAL_CTRL)
            for n in (0, 32)
        ),
        (32, {"HOST_IA32_EFER": 0x801}, 0),
        (32, {"HOST_IA32_EFER": 2}, ck.HOST_EFER_RESERVED),
        (32, {"HOST_IA32_EFER": 0x500}, ck.HOST_EFER_MODE),
        (32, {"HOST_IA32_EFER": 0x100}, ck.HOST_EFER_MODE),
        (32, {"HOST_IA32_EFER": 0x400}, ck.HOST_EFER_MODE),
        (64, {"HOST_IA32_EFER": 0xD01}, 0),
        (64, {"HOST_IA32_EFER": 0x100}, ck.HOST_EFER_MODE),
        (64, {"HOST_IA32_EFER": 0x400}, ck.HOST_EFER_MODE),
    ],
)
def test_the_hosts_registers(bits: int, changes: dict[str, int], wanted: int) -> None:
    assert host_check(bits, **changes) == wanted


@pytest.mark.parametrize(
    ("bits", "changes", "wanted"),
    [
        *(
            (32, {f"HOST_{name}_SELECTOR": 0x10 | low}, ck.HOST_SELECTOR + n)
            for n, name in enumerate(SELECTORS)
            for low in (1, 2, 4)
        ),
        *((32, {f"HOST_{name}_SELECTOR": 8}, 0) for name in SELECTORS),
        *((32, {f"HOST_{name}_SELECTOR": 0}, 0) for name in ("ES", "DS", "FS", "GS")),
        (32, {"HOST_CS_SELECTOR": 0}, ck.HOST_CS_NULL),
        (32, {"HOST_TR_SELECTOR": 0}, ck.HOST_TR_NULL),
        (32, {"HOST_SS_SELECTOR": 0}, ck.HOST_SS_NULL),
        (64, {"HOST_SS_SELECTOR": 0}, 0),
    ],
)
def test_the_hosts_selectors(bits: int, changes: dict[str, int], wanted: int) -> None:
    assert host_check(bits, **changes) == wanted


@pytest.mark.parametrize(
    ("now", "bits", "changes", "wanted"),
    [
        (32, 32, {}, 0),
        (64, 64, {}, 0),
        (32, 64, {}, ck.LONG_GUEST_OUTSIDE),
        (32, 64, {"VM_ENTRY_CONTROLS": ct.ENTRY_ALLOWED_0}, ck.LONG_HOST_OUTSIDE),
        (64, 32, {}, ck.LEGACY_HOST_INSIDE),
        (64, 64, {"HOST_CR4": 0x2010}, ck.HOST_PAE),
        (64, 64, {"HOST_RIP": HIGH}, 0),
        (64, 64, {"HOST_RIP": BEYOND}, ck.HOST_RIP_CANONICAL),
        (64, 64, {"HOST_CR4": 0x2020 | state.CR4_PCIDE}, 0),
        (32, 32, {"HOST_CR4": 0x2010 | state.CR4_PCIDE}, ck.HOST_PCIDE),
        (32, 32, {"HOST_RIP": 0xFFFF_FFFF}, 0),
        (32, 32, {"HOST_RIP": 1 << 32}, ck.HOST_RIP_HIGH),
        (32, 32, {"HOST_RIP": 1 << 63}, ck.HOST_RIP_HIGH),
    ],
)
def test_the_hosts_address_space_size(
    now: int, bits: int, changes: dict[str, int], wanted: int
) -> None:
    assert check_host_state(vmcs(bits, **changes), now == 64) == wanted
