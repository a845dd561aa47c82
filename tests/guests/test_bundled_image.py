"""The bundled guest's image is what its source says, and runs on a peer."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from trapgate import guests

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "guests"
EXPECTED = (Path(__file__).with_name("bundled_expected.txt")).read_text()
QEMU = "qemu-system-i386"
QEMU_EXIT = {0: 1, 1: 3, 2: 5}  # isa-debug-exit turns status n into 2 n + 1

needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")


def settled(output: str) -> list[str]:
    """The output's lines without the one that depends on the processor (#AC is optional)."""
    return [line for line in output.splitlines() if not line.startswith("fault #AC")]


def workload_lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("workload ")]


def boot(append: str, *options: str) -> tuple[str, int]:
    """Run the image under QEMU's own CPU: serial output and exit status."""
    machine = [QEMU, "-accel", "tcg", "-nodefaults", "-no-reboot", "-display", "none", "-m", "32M"]
    devices = ["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    guest = ["-kernel", str(guests.IMAGE_PATH), "-append", append]
    run = subprocess.run(
        [*machine, *devices, *guest, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return run.stdout, run.returncode


def recorded_toolchain_or_skip() -> None:
    for tool in ("gcc", "ld", "objcopy", "make"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: the image cannot be rebuilt here")
    recorded = (SOURCE / "toolchain.txt").read_text()
    show = ["make", "--silent", "-C", str(SOURCE), "toolchain"]
    here = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    if here != recorded:
        pytest.skip(f"the image was built with {recorded!r}, here is {here!r}")


def test_image_is_built_from_its_source(tmp_path: Path) -> None:
    recorded_toolchain_or_skip()
    copy = tmp_path / "elsewhere"  # another directory: no path may get into the image
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("build"))
    built = subprocess.run(
        ["make", "--silent", "-C", str(copy)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    assert (copy / "build" / "guest.elf").read_bytes() == guests.image()
    assert (copy / "build" / "hypervisor.elf").read_bytes() == guests.hypervisor()


def test_image_is_a_small_multiboot_elf() -> None:
    image = guests.image()
    assert len(image) < 64 * 1024
    assert image[:6] == b"\x7fELF\x01\x01"  # 32-bit, little endian
    header = image[: 8192 + 4096].index((0x1BADB002).to_bytes(4, "little"))
    words = [int.from_bytes(image[header + i : header + i + 4], "little") for i in (0, 4, 8)]
    assert sum(words) % 2**32 == 0


def test_workloads_are_the_guests() -> None:
    line = re.search(r"^#define WORKLOAD_NAMES (.*)$", (SOURCE / "abi.h").read_text(), re.MULTILINE)
    assert line is not None
    names = [workload.name for workload in guests.WORKLOADS]
    assert re.findall(r'"(\w+)"', line.group(1)) == names
    image = guests.image()
    for name in names:
        assert name.encode() + b"\0" in image
    assert [line.split()[1] for line in workload_lines(EXPECTED)] == names


def test_command_line() -> None:
    assert guests.command_line() == "workload=all scale=1"
    wanted = "workload=swap,aging scale=3 timer=off"
    assert guests.command_line("swap", "aging", scale=3, timer=False) == wanted


@pytest.mark.parametrize("scale", [0, -1, 10_001])
def test_command_line_refuses_scale(scale: int) -> None:
    with pytest.raises(ValueError, match="1 to 10000"):
        guests.command_line(scale=scale)


def test_command_line_refuses_name() -> None:
    with pytest.raises(ValueError, match="demand, fork"):
        guests.command_line("nonsense")


@needs_qemu
def test_default_run() -> None:
    output, status = boot("")
    assert settled(output) == settled(EXPECTED)
    assert status == QEMU_EXIT[0]


@needs_qemu
@pytest.mark.parametrize("pace", ["shift=0", "shift=7"])
def test_output_does_not_depend_on_time(pace: str) -> None:
    """One instruction a nanosecond, or one in 128: ticks and preemption fall elsewhere."""
    output, status = boot("", "-icount", pace)
    assert settled(output) == settled(EXPECTED)
    assert status == QEMU_EXIT[0]


@needs_qemu
def test_chosen_workloads_in_little_memory_without_timer() -> None:
    output, status = boot(guests.command_line("swap", "demand", timer=False), "-m", "9M")
    chosen = ("workload demand ", "workload swap ")
    assert workload_lines(output) == [
        line for line in workload_lines(EXPECTED) if line.startswith(chosen)
    ]
    assert output.endswith("all done\n")
    assert status == QEMU_EXIT[0]


@needs_qemu
def test_scale_multiplies() -> None:
    output, status = boot(guests.command_line("fork", scale=3))
    once = next(line for line in workload_lines(EXPECTED) if line.startswith("workload fork "))
    (thrice,) = workload_lines(output)
    assert status == QEMU_EXIT[0]
    assert 2.9 < int(thrice.split()[-1]) / int(once.split()[-1]) < 3.1
    assert thrice.split()[3] != once.split()[3]


@needs_qemu
@pytest.mark.parametrize(
    ("append", "status", "says"),
    [
        ("workload=demand,bogus", 1, "unknown workload 'bogus'; valid workloads: all, demand"),
        ("workload=", 1, "unknown workload ''"),
        ("scale=0", 1, "bad scale '0'; a number from 1 to 10000"),
        ("scale=2x", 1, "bad scale '2x'"),
        ("console=ttyS0", 1, "unknown option 'console=ttyS0'; valid options: workload="),
    ],
)
def test_bad_command_line_is_one_line(append: str, status: int, says: str) -> None:
    output, code = boot(append)
    _banner, error = output.splitlines()
    assert error.startswith("error: ")
    assert says in error
    assert code == QEMU_EXIT[status]


@needs_qemu
def test_too_little_memory() -> None:
    output, code = boot("", "-m", "7M")
    assert output.endswith("panic: less than 8 MiB of memory: give the machine more\n")
    assert code == QEMU_EXIT[2]
