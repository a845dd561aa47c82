"""The benchmarks, with their peers."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

from benchmarks import bare_unicorn, bochs, ours, qemu
from benchmarks.criteria import CRITERIA
from benchmarks.filters import FILTER_BENCHMARKS
from benchmarks.guests import (
    Loop,
    cpuid_loop,
    fault_loop,
    port_loop,
    store_loop,
    tight_loop,
    vmcall_loop,
)
from benchmarks.measure import Benchmark, SkipSide, rate
from benchmarks.tables import criteria_table
from benchmarks.x86_vmm import under_vmm
from trapgate.sdm.reasons import ExitReason

LINUX = Path(os.environ.get("TRAPGATE_LINUX", Path(__file__).parent.parent / "build" / "linux"))
"""Where `tools/fetch-linux` has put Debian's kernels."""

PROMPT = "/ # "
"""What the shell in the initramfs shows when it is ready."""

APPEND = "console=ttyS0"

NATIVE = "trapgate native"
PORTABLE = "trapgate portable"
QEMU = "qemu tcg"
UNICORN = "bare unicorn"
BOCHS = "bochs"

_ENGINES = ((NATIVE, "native", 1), (PORTABLE, "portable", 20))
"""Name of the side, the engine, and by how much less work it does, being slower."""

linux_boot = Benchmark(
    "linux-boot", "Debian's cloud kernel, from the start to a shell", "s", "lower",
    "at most 4 x QEMU's time",
)  # fmt: skip
linux_686 = Benchmark(
    "linux-686-boot", "Debian's 686 kernel, from the start to a shell", "s", "lower",
    "at most 4 x QEMU's time",
)  # fmt: skip
page_faults = Benchmark(
    "page-faults", "page fault, guest's IDT, IRET, all in ring 0", "faults/s", "higher",
    "2 million native, 50,000 portable",
)  # fmt: skip
user_faults = Benchmark(
    "user-page-faults", "the same from ring 3, the handler in ring 0", "faults/s", "higher",
    "2 million native, 50,000 portable",
)  # fmt: skip
vm_exits = Benchmark(
    "vm-exits", "VMCALL to a Python handler and back", "exits/s", "higher",
    "200,000 native, 40,000 portable",
)  # fmt: skip
cpuid_exits = Benchmark(
    "cpuid-exits", "CPUID to a Python handler and back", "exits/s", "higher",
    "200,000 native, 40,000 portable",
)  # fmt: skip
x86_vmm_exits = Benchmark(
    "x86-vmm-exits", "CPUID to a VMM of x86 code, VMREAD, VMWRITE, VMRESUME", "exits/s", "higher",
    "100,000 native",
)  # fmt: skip
x86_vmm_tagged_exits = Benchmark(
    "x86-vmm-vpid-exits", "the same by a guest that has a VPID", "exits/s", "higher",
    "100,000 native",
)  # fmt: skip
x86_vmm_tight = Benchmark(
    "x86-vmm-tight-loop", "the integer loop under that VMM", "instr/s", "higher", "2 x Bochs",
)  # fmt: skip
x86_vmm_stores = Benchmark(
    "x86-vmm-store-loop", "the store loop under that VMM", "instr/s", "higher", "2 x Bochs",
)  # fmt: skip
port_exits = Benchmark(
    "port-exits", "OUT to a device and back", "exits/s", "higher", "none",
)  # fmt: skip
tight = Benchmark(
    "tight-loop", "integer loop, five instructions a block", "instr/s", "higher",
    "within 20% of bare Unicorn",
)  # fmt: skip
stores = Benchmark(
    "store-loop", "two stores in six instructions", "instr/s", "higher", "500 million",
)  # fmt: skip
cold_start = Benchmark(
    "cold-start", "a fresh process until its processor can run", "s", "lower", "none",
)  # fmt: skip

SUITE = (
    linux_boot,
    linux_686,
    page_faults,
    user_faults,
    vm_exits,
    cpuid_exits,
    port_exits,
    tight,
    stores,
    x86_vmm_exits,
    x86_vmm_tagged_exits,
    x86_vmm_tight,
    x86_vmm_stores,
    cold_start,
    *FILTER_BENCHMARKS,
    criteria_table,
    *CRITERIA,
)


def kernel_and_initrd(bits: int) -> tuple[Path, Path]:
    """The kernel for 64 or 32 bits and its initramfs; SkipSide if they were not fetched."""
    kernel, initrd = {
        64: ("vmlinuz-amd64", "initrd-amd64.cpio"),
        32: ("vmlinuz-686", "initrd-i386.cpio"),
    }[bits]
    if not ((LINUX / kernel).is_file() and (LINUX / initrd).is_file()):
        raise SkipSide("no kernel: run tools/fetch-linux")
    return LINUX / kernel, LINUX / initrd


def a_second(
    seconds_of: Callable[[Loop], float], loop: Callable[[int], Loop], few: int, many: int
) -> float:
    """Rounds a second that `seconds_of` shows for loops of `few` and `many` rounds."""
    return rate(lambda count: seconds_of(loop(count)), few, many)


def instructions_a_second(
    seconds_of: Callable[[Loop], float], loop: Callable[[int], Loop], few: int, many: int
) -> float:
    """The same in instructions."""
    return loop(1).instructions * a_second(seconds_of, loop, few, many)


def _add_boots(benchmark: Benchmark, bits: int) -> None:
    boots: dict[str, Callable[[], float]] = {
        f"{NATIVE}, whole process": lambda: ours.process_seconds_to(
            PROMPT, *kernel_and_initrd(bits), APPEND, "native"
        ),
        f"{NATIVE}, without imports": lambda: ours.seconds_to(
            PROMPT, *kernel_and_initrd(bits), APPEND, "native"
        ),
        f"{PORTABLE}, whole process": lambda: ours.process_seconds_to(
            PROMPT, *kernel_and_initrd(bits), APPEND, "portable"
        ),
        QEMU: lambda: qemu.seconds_to(PROMPT.encode(), *kernel_and_initrd(bits), APPEND),
    }
    for name, boot in boots.items():
        benchmark.side(name)(boot)


def _add_faults(benchmark: Benchmark, *, user: bool) -> None:
    for name, engine, less in _ENGINES:
        run = functools.partial(ours.seconds_of, engine=engine, user=user)
        few, many = 100_000 // less, 4_100_000 // less
        benchmark.side(name)(functools.partial(a_second, run, fault_loop, few, many))
    peer = functools.partial(qemu.seconds_of, user=user)
    benchmark.side(QEMU)(functools.partial(a_second, peer, fault_loop, 100_000, 4_100_000))
    peer = functools.partial(bochs.seconds_of, user=user)
    benchmark.side(BOCHS)(functools.partial(a_second, peer, fault_loop, 100_000, 4_100_000))


def _add_exits(
    benchmark: Benchmark, loop: Callable[[int], Loop], reason: ExitReason | None
) -> None:
    for name, engine, less in _ENGINES:
        few, many = 1_000, 1_000 + 200_000 // less
        machine = functools.partial(ours.seconds_of_machine, engine=engine)
        if reason is not None:
            plain = functools.partial(ours.seconds_of_exits, engine=engine, reason=reason)
            benchmark.side(name)(functools.partial(a_second, plain, loop, few, many))
        benchmark.side(f"{name}, VirtualMachine")(
            functools.partial(a_second, machine, loop, few, many)
        )


def _add_instructions(
    benchmark: Benchmark, loop: Callable[[int], Loop], counts: dict[str, tuple[int, int]]
) -> None:
    runs: dict[str, Callable[[Loop], float]] = {
        NATIVE: functools.partial(ours.seconds_of, engine="native"),
        PORTABLE: functools.partial(ours.seconds_of, engine="portable"),
        UNICORN: bare_unicorn.seconds_of,
        QEMU: qemu.seconds_of,
    }
    for name, run in runs.items():
        few, many = counts[name]
        benchmark.side(name)(functools.partial(instructions_a_second, run, loop, few, many))


_add_boots(linux_boot, 64)
_add_boots(linux_686, 32)
_add_faults(page_faults, user=False)
_add_faults(user_faults, user=True)
_add_exits(vm_exits, vmcall_loop, ExitReason.VMCALL)
_add_exits(cpuid_exits, cpuid_loop, ExitReason.CPUID)
_add_exits(port_exits, port_loop, None)
_MILLION = 1_000_000
_add_instructions(
    tight,
    tight_loop,
    {
        NATIVE: (_MILLION, 201 * _MILLION),
        PORTABLE: (_MILLION, 101 * _MILLION),
        UNICORN: (_MILLION, 401 * _MILLION),
        QEMU: (_MILLION, 801 * _MILLION),
    },
)
_add_instructions(
    stores,
    store_loop,
    {
        NATIVE: (_MILLION, 101 * _MILLION),
        PORTABLE: (_MILLION, 11 * _MILLION),
        UNICORN: (_MILLION, 11 * _MILLION),
        QEMU: (_MILLION, 401 * _MILLION),
    },
)


def _add_under_vmm(
    benchmark: Benchmark,
    loop: Callable[[int], Loop],
    reason: ExitReason,
    counts: dict[str, tuple[int, int]],
    *,
    in_instructions: bool = False,
    vpid: int = 0,
) -> None:
    """Sides on which `loop` runs under a VMM of x86 code, the same bytes for each."""
    runs: dict[str, Callable[[Loop], float]] = {
        NATIVE: functools.partial(ours.seconds_of_machine, engine="native"),
        PORTABLE: functools.partial(ours.seconds_of_machine, engine="portable"),
        BOCHS: bochs.seconds_of,
    }
    in_unit = instructions_a_second if in_instructions else a_second

    def seconds_under_vmm(run: Callable[[Loop], float], plain: Loop) -> float:
        return run(under_vmm(plain, reason, vpid=vpid))

    for name, (few, many) in counts.items():
        run = functools.partial(seconds_under_vmm, runs[name])
        benchmark.side(name)(functools.partial(in_unit, run, loop, few, many))


def _no_vmx() -> float:
    raise SkipSide("has no VMX")


_add_under_vmm(vm_exits, vmcall_loop, ExitReason.VMCALL, {BOCHS: (10_000, 410_000)})
vm_exits.side(QEMU)(_no_vmx)
for _benchmark, _vpid in ((x86_vmm_exits, 0), (x86_vmm_tagged_exits, 1)):
    _add_under_vmm(
        _benchmark,
        cpuid_loop,
        ExitReason.CPUID,
        {NATIVE: (10_000, 410_000), PORTABLE: (1_000, 11_000), BOCHS: (10_000, 410_000)},
        vpid=_vpid,
    )
    _benchmark.side(QEMU)(_no_vmx)
for _benchmark, _loop in ((x86_vmm_tight, tight_loop), (x86_vmm_stores, store_loop)):
    _add_under_vmm(
        _benchmark,
        _loop,
        ExitReason.VMCALL,
        {
            NATIVE: (_MILLION, 101 * _MILLION),
            PORTABLE: (_MILLION, 11 * _MILLION),
            BOCHS: (_MILLION, 51 * _MILLION),
        },
        in_instructions=True,
    )


cold_start.side("trapgate, compiled before")(ours.process_seconds)
cold_start.side("trapgate, nothing compiled (once)")(ours.process_seconds_uncached)
