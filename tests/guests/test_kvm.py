"""KVM of unmodified Debian kernels, as a VMM on our processor, runs virtual machines of its own.

guests/kvm has the program that asks it to. What a machine has to print stands there too.
"""

import io
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.suite import APPEND, LINUX
from tests.unit.fetch_linux import fetch_linux
from trapgate.decision.decide import Disposition
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import PF
from trapgate.vmm.actions import End
from trapgate.vmm.devices.board import Board
from trapgate.vmm.loaders import load_guest
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.ui.console import Console

pytestmark = pytest.mark.linux

SOURCE = Path(__file__).parents[2] / "guests" / "kvm"
MEMORY = 256 << 20
INIT = """#!/bin/sh
mount -t devtmpfs devtmpfs /dev
for module in irqbypass kvm; do busybox insmod /$module.ko; done
busybox insmod /kvm-intel.ko ept={ept}
/client
poweroff -f
"""
MACHINES = [
    "real",
    "modes",
    "protected",
    "step",
    "tasks",
    "paging",
    "pae",
    "v86",
    "window",
    "timer",
]


def initramfs(kernel: str, base: str, client: str, ept: int, folder: Path) -> Path:
    """The fetched archives, and behind them the client and what starts it."""
    parts = LINUX / base, LINUX / f"kvm-{kernel}.cpio"
    if not all(part.exists() for part in (*parts, LINUX / f"vmlinuz-{kernel}")):
        pytest.skip(f"no {kernel} kernel or modules: run tools/fetch-linux")
    for program in ("make", "gcc"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}")
    built = folder / f"client-{client}"
    make = ["make", "-C", str(SOURCE), f"BUILD={folder}", str(built)]
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    if "No such file" in done.stderr:
        pytest.skip("no kernel headers (linux-libc-dev)")
    assert done.returncode == 0, done.stderr
    init = INIT.format(ept=ept).encode()
    added = [("init", 0o100755, init, (0, 0)), ("client", 0o100755, built.read_bytes(), (0, 0))]
    archive = folder / "initrd.cpio"
    archive.write_bytes(b"".join(part.read_bytes() for part in parts) + fetch_linux().cpio(added))
    return archive


@pytest.mark.parametrize("processors", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ept", [0, 1], ids=["shadow", "ept"])
@pytest.mark.parametrize(
    ("kernel", "base", "client"),
    [
        ("amd64", "initrd-amd64.cpio", "amd64"),
        ("amd64", "initrd-amd64.cpio", "i386"),
        pytest.param("686", "initrd-i386.cpio", "i386", marks=pytest.mark.slow),
        pytest.param("686-pae", "initrd-i386.cpio", "i386", marks=pytest.mark.slow),
    ],
)
def test_kvm_runs_virtual_machines(
    kernel: str, base: str, client: str, ept: int, processors: int, tmp_path: Path
) -> None:
    initrd = initramfs(kernel, base, client, ept, tmp_path)
    output = io.BytesIO()
    failures: list[str] = []
    board = Board(processors=processors)
    vm = VirtualMachine(MEMORY, console=Console(output), explain=failures.append, board=board)
    vm.load(
        load_guest(
            LINUX / f"vmlinuz-{kernel}",
            memory=MEMORY,
            append=f"{APPEND} quiet",
            initrd=initrd,
            processors=processors,
        )
    )
    stop = vm.run(max_instructions=20_000_000_000)
    text = output.getvalue().decode(errors="replace").replace("\r", "")
    assert stop.end == End.POWER_OFF, text[-2000:]
    expected = [*MACHINES, "long"] if client == "amd64" else MACHINES
    machines = [line for line in text.splitlines() if line.startswith("machine ")]
    assert [line.split()[1].rstrip(":") for line in machines] == expected
    assert all(line.endswith(" ok") for line in machines), machines
    assert "0 machines failed" in text
    assert failures == []
    nested = vm.summary().nested
    assert nested is not None
    assert nested.entries > 2000
    assert nested.faults[PF][Disposition.DELIVER] > 100
    if ept:
        assert nested.exits[ExitReason.EPT_VIOLATION] > 100
        assert nested.faults[PF].get(Disposition.EXIT, 0) < 10
    else:
        # KVM keeps shadow page tables: it takes all page faults, and injects the guest's own.
        assert nested.faults[PF][Disposition.EXIT] > 200
        assert ExitReason.EPT_VIOLATION not in nested.exits
