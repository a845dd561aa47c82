"""What CPUID says of the interrupt controller, its timer and the topology."""

import pytest

from trapgate.vmm.cpus.identity import MSRS, cpuid
from trapgate.vmm.devices import INSTRUCTIONS_PER_MICROSECOND


def test_the_local_apic() -> None:
    _, ebx, ecx, edx = cpuid(1, 0)
    assert edx >> 9 & 1
    assert (ecx >> 21 & 1, ecx >> 24 & 1) == (1, 1)
    assert (ebx >> 24, ebx >> 16 & 0xFF) == (0, 1)
    assert cpuid(6, 0)[0] == 4


def test_the_crystal_clock_is_the_time_stamp_counters() -> None:
    denominator, numerator, hertz, _ = cpuid(0x15, 0)
    assert hertz * numerator // denominator == INSTRUCTIONS_PER_MICROSECOND * 1_000_000
    assert hertz == INSTRUCTIONS_PER_MICROSECOND * 1_000_000


@pytest.mark.parametrize(
    ("subleaf", "leaf"),
    [(0, (0, 1, 0x100, 0)), (1, (0, 1, 0x201, 0)), (2, (0, 0, 2, 0)), (0x1FF, (0, 0, 0xFF, 0))],
)
def test_topology(subleaf: int, leaf: tuple[int, ...]) -> None:
    assert cpuid(0xB, subleaf) == leaf


def test_meltdown_and_its_like_are_said_to_be_absent() -> None:
    """Else Linux has a second set of tables for user mode, and flushes at each system call."""
    assert cpuid(7, 0)[3] == 1 << 29
    assert MSRS[0x10A] & 0b1_0011_1001 == 0b1_0011_1001
    # Not said: IBRS_ALL, RSBA, TSX_CTRL, and whatever would come with an MSR to control it.
    assert not MSRS[0x10A] & (1 << 1 | 1 << 2 | 1 << 7 | 1 << 9 | 1 << 18 | 1 << 25 | 1 << 28)
