"""The benchmarks, with their peers."""

import os
from collections.abc import Callable
from pathlib import Path

from benchmarks import bare_unicorn, qemu
from benchmarks.guests import Loop, fault_loop, store_loop, tight_loop
from benchmarks.measure import Benchmark, SkipSide, rate

LINUX = Path(os.environ.get("TRAPGATE_LINUX", Path(__file__).parent.parent / "build" / "linux"))
"""Where `tools/fetch-linux` has put Debian's kernels."""

PROMPT = b"/ # "
"""What the shell in the initramfs shows when it is ready."""

APPEND = "console=ttyS0"

QEMU = "qemu tcg"
UNICORN = "bare unicorn"

linux_boot = Benchmark(
    "linux-boot", "Debian's cloud kernel, from the start to a shell", "s", "lower",
    "at most 4 x QEMU's time",
)  # fmt: skip
page_faults = Benchmark(
    "page-faults", "page fault, guest's IDT, IRET, all in ring 0", "faults/s", "higher",
    "2 million native, 50,000 portable",
)  # fmt: skip
vm_exits = Benchmark(
    "vm-exits", "VMCALL to a Python handler and back", "exits/s", "higher",
    "200,000 native, 40,000 portable",
)  # fmt: skip
tight = Benchmark(
    "tight-loop", "integer loop", "instr/s", "higher", "within 20% of bare Unicorn",
)  # fmt: skip
stores = Benchmark(
    "store-loop", "two stores in six instructions", "instr/s", "higher", "500 million",
)  # fmt: skip

SUITE = (linux_boot, page_faults, vm_exits, tight, stores)


def kernel_and_initrd() -> tuple[Path, Path]:
    """The 64-bit kernel and its initramfs; SkipSide if they were not fetched."""
    kernel, initrd = LINUX / "vmlinuz-amd64", LINUX / "initrd-amd64.cpio"
    if not (kernel.is_file() and initrd.is_file()):
        raise SkipSide("no kernel: run tools/fetch-linux")
    return kernel, initrd


def instructions_a_second(
    seconds_of: Callable[[Loop], float], loop: Callable[[int], Loop], few: int, many: int
) -> float:
    """Instructions a second that `seconds_of` shows for loops of `few` and `many` rounds."""
    each = loop(1).instructions
    return each * rate(lambda count: seconds_of(loop(count)), few, many)


@linux_boot.side(QEMU)
def _() -> float:
    return qemu.seconds_to(PROMPT, *kernel_and_initrd(), APPEND)


@page_faults.side(QEMU)
def _() -> float:
    return rate(lambda count: qemu.seconds_of(fault_loop(count)), 100_000, 4_100_000)


@vm_exits.side(QEMU)
def _() -> float:
    raise SkipSide("has no VMX")


@tight.side(UNICORN)
def _() -> float:
    return instructions_a_second(bare_unicorn.seconds_of, tight_loop, 1_000_000, 401_000_000)


@tight.side(QEMU)
def _() -> float:
    return instructions_a_second(qemu.seconds_of, tight_loop, 1_000_000, 801_000_000)


@stores.side(UNICORN)
def _() -> float:
    return instructions_a_second(bare_unicorn.seconds_of, store_loop, 100_000, 10_100_000)


@stores.side(QEMU)
def _() -> float:
    return instructions_a_second(qemu.seconds_of, store_loop, 1_000_000, 401_000_000)
