"""The initramfs that tools/fetch-linux packs, and when it has nothing to do."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.fetch_linux import PROGRAM, fetch_linux


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return fetch_linux()


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """An independent reader of cpio's "newc" format: name -> (mode, content)."""
    files: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        data = (at + 110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            assert archive[data:].strip(b"\0") == b""
            return files
        files[name] = (fields[1], archive[data : data + fields[6]])
        assert fields[5] == 0, "a time stamp would differ from run to run"
        at = (data + fields[6] + 3) & ~3


def test_the_archive_holds_busybox_its_links_and_init(tool: ModuleType) -> None:
    files = unpacked(tool.initramfs(b"BUSYBOX"))
    assert files["bin/busybox"] == (0o100755, b"BUSYBOX")
    assert files["bin/sh"] == (0o120777, b"busybox")
    assert files["dev/console"][0] == 0o020600
    mode, script = files["init"]
    assert mode == 0o100755
    commands = {line.split()[0] for line in script.decode().splitlines()[1:]}
    assert all(f"bin/{command}" in files for command in commands)
    assert {"proc", "sys", "dev"} < set(files)


def test_equal_busyboxes_give_equal_archives(tool: ModuleType) -> None:
    assert tool.initramfs(b"BUSYBOX") == tool.initramfs(b"BUSYBOX")
    assert len(tool.initramfs(b"BUSYBOX")) % 512 == 0


def test_archives_behind_each_other_stay_aligned(tool: ModuleType) -> None:
    more = tool.cpio([("kvm.ko", 0o100644, b"MODULE", (0, 0))])
    assert unpacked(more) == {"kvm.ko": (0o100644, b"MODULE")}
    assert len(more) % 512 == 0


def test_a_complete_folder_is_left_alone(tool: ModuleType, tmp_path: Path) -> None:
    assert not tool.is_complete(tmp_path)
    (tmp_path / "vmlinuz-amd64").write_bytes(b"kernel")
    described = {
        "program": tool.digest(PROGRAM.read_bytes()),
        "files": {"vmlinuz-amd64": {"sha256": tool.digest(b"kernel")}},
    }
    (tmp_path / "contents.json").write_text(json.dumps(described))
    assert tool.is_complete(tmp_path)
    (tmp_path / "vmlinuz-amd64").write_bytes(b"another kernel")
    assert not tool.is_complete(tmp_path)
    (tmp_path / "contents.json").write_text("[]")
    assert not tool.is_complete(tmp_path)
