"""The kernels and initramfs images of tools/fetch-linux work on a machine that is not ours."""

import pytest

from benchmarks import qemu
from benchmarks.measure import SkipSide
from benchmarks.suite import APPEND, LINUX, PROMPT


@pytest.mark.linux
@pytest.mark.parametrize(
    ("kernel", "initrd"),
    [("vmlinuz-amd64", "initrd-amd64.cpio"), ("vmlinuz-686", "initrd-i386.cpio")],
)
def test_qemu_boots_them_to_a_shell(kernel: str, initrd: str) -> None:
    if not (LINUX / kernel).exists():
        pytest.skip(f"no {kernel}: run tools/fetch-linux")
    try:
        qemu.version()
    except SkipSide as why:
        pytest.skip(f"qemu {why}")
    seconds = qemu.seconds_to(PROMPT.encode(), LINUX / kernel, LINUX / initrd, APPEND)
    assert seconds > 0
