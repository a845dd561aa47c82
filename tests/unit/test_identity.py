"""What CPUID says of the interrupt controller, its timer and the topology."""

import pytest

from trapgate.vmm.devices import INSTRUCTIONS_PER_MICROSECOND
from trapgate.vmm.identity import cpuid


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
