"""Disk images: files of sectors, which a guest's writes never reach unless somebody says so.

An image is opened as `FILE[,write][,overlay=FILE]`. Without an option what the guest writes is
kept in memory and lost with the machine; `overlay` keeps it in a file beside; `write` changes
the image itself, in the order of the writes, as a real disk would be changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import Protocol

from trapgate.errors import TrapgateError

SECTOR = 512
BLOCK = 2048
"""Bytes of a block of a CD."""

_FOREIGN = (
    (b"QFI\xfb", "a qcow2 image", "qemu-img convert -O raw"),
    (b"KDMV", "a VMDK image", "qemu-img convert -O raw"),
    (b"# Disk DescriptorFile", "a VMDK descriptor", "qemu-img convert -O raw"),
    (b"conectix", "a VHD image", "qemu-img convert -O raw"),
    (b"vhdxfile", "a VHDX image", "qemu-img convert -O raw"),
    (b"<<< Oracle VM VirtualBox", "a VDI image", "qemu-img convert -O raw"),
    (b"\x1f\x8b", "gzip-compressed", "gunzip"),
    (b"\xfd7zXZ", "xz-compressed", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "unzstd"),
    (b"BZh", "bzip2-compressed", "bunzip2"),
)
_LARGEST = 1 << 41
_SAMPLES = 2048
_OVERLAY = Struct("<8sQ")
_OVERLAY_MAGIC = b"TrapgOvl"
_OVERLAY_HEAD = 4096


class DiskImageError(TrapgateError):
    """A disk image cannot be used; the message names the file, what is wrong, and what to do."""


class Sectors(Protocol):
    """Where sectors of 512 bytes are kept."""

    count: int

    def read(self, first: int, count: int) -> bytes:
        """`count` sectors from `first` on."""

    def write(self, first: int, data: bytes) -> None:
        """Whole sectors from `first` on."""


class ImageFile:
    """A file of sectors, opened for reading, or for writing too."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self._path = path
        self.is_changed = writable
        """Whether what a guest writes goes to the file."""
        flags = os.O_RDWR if writable else os.O_RDONLY
        with _told(path):
            self._handle = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        weakref.finalize(self, os.close, self._handle)
        self._check(writable)

    def _check(self, writable: bool) -> None:
        found = os.fstat(self._handle)
        if stat.S_ISDIR(found.st_mode):
            raise DiskImageError(f"{self._path}: is a directory; give a file of sectors")
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISBLK(found.st_mode):
            raise DiskImageError(f"{self._path}: is not a regular file; give a file of sectors")
        size = os.lseek(self._handle, 0, os.SEEK_END)
        head = os.pread(self._handle, 64, 0)
        for magic, what, how in _FOREIGN:
            if head.startswith(magic):
                raise DiskImageError(
                    f"{self._path}: this is {what}, not sectors; convert it with {how}"
                )
        if size == 0:
            raise DiskImageError(f"{self._path}: is empty; a disk has at least one sector")
        if size % SECTOR:
            raise DiskImageError(
                f"{self._path}: has {size} bytes, not a multiple of {SECTOR}; if it is not "
                f"truncated, add {-size % SECTOR} bytes (truncate -s %{SECTOR})"
            )
        if size > _LARGEST:
            raise DiskImageError(f"{self._path}: is larger than 2 TiB; give a smaller image")
        try:
            lock = fcntl.LOCK_EX if writable else fcntl.LOCK_SH
            fcntl.flock(self._handle, lock | fcntl.LOCK_NB)
        except OSError:
            other = "somebody uses it" if writable else "somebody writes to it"
            raise DiskImageError(f"{self._path}: {other}; wait, or copy it") from None
        self.count = size // SECTOR

    def __str__(self) -> str:
        """The file's name."""
        return str(self._path)

    def identity(self) -> str:
        """A digest of the file's size and of sectors all over it, to know it again by."""
        digest = hashlib.sha256(self.count.to_bytes(8, "little"))
        step = max(self.count // _SAMPLES, 1)
        for first in range(0, self.count, step):
            digest.update(self.read(first, min(8, self.count - first)))
        return digest.hexdigest()

    def read(self, first: int, count: int) -> bytes:
        """`count` sectors from `first` on; zeros where the file has shrunk meanwhile."""
        data = os.pread(self._handle, count * SECTOR, first * SECTOR)
        return data.ljust(count * SECTOR, b"\0")

    def write(self, first: int, data: bytes) -> None:
        """Whole sectors from `first` on, into the file. Raises DiskImageError if that fails."""
        with _told(self._path):
            os.pwrite(self._handle, data, first * SECTOR)


class Memory:
    """Sectors in memory: a small image that is not a file, all zeros at first or `data`."""

    def __init__(self, data: bytes) -> None:
        self._data = bytearray(data)
        self._data += bytes(-len(data) % SECTOR)
        self.count = len(self._data) // SECTOR

    def read(self, first: int, count: int) -> bytes:
        """`count` sectors from `first` on."""
        return bytes(self._data[first * SECTOR : (first + count) * SECTOR])

    def write(self, first: int, data: bytes) -> None:
        """Whole sectors from `first` on."""
        self._data[first * SECTOR : first * SECTOR + len(data)] = data


class Overlay:
    """An image and, in memory, the sectors that differ from it: never more than the image has."""

    def __init__(self, below: Sectors) -> None:
        self._below = below
        self._changed: dict[int, bytes] = {}
        self.count = below.count

    def read(self, first: int, count: int) -> bytes:
        """`count` sectors from `first` on."""
        data = bytearray(self._below.read(first, count))
        if self._changed:
            for n in range(count):
                sector = self._changed.get(first + n)
                if sector is not None:
                    data[n * SECTOR : (n + 1) * SECTOR] = sector
        return bytes(data)

    def write(self, first: int, data: bytes) -> None:
        """Whole sectors from `first` on, which only this machine sees."""
        for n in range(len(data) // SECTOR):
            self._changed[first + n] = bytes(data[n * SECTOR : (n + 1) * SECTOR])


class OverlayFile:
    """An image and a file with the sectors that differ: a head, the sectors, and which are there.

    The file is sparse. A sector is marked once it is written, so that a kill loses no more
    than the last write.
    """

    def __init__(self, below: Sectors, path: Path) -> None:
        self._below = below
        self._path = path
        self.count = below.count
        with _told(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._handle = os.open(path, flags, 0o600)
        weakref.finalize(self, os.close, self._handle)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DiskImageError(f"{path}: another machine uses this overlay") from None
        head = os.pread(self._handle, _OVERLAY.size, 0)
        if not head:
            os.pwrite(self._handle, _OVERLAY.pack(_OVERLAY_MAGIC, self.count), 0)
        elif head != _OVERLAY.pack(_OVERLAY_MAGIC, self.count):
            raise DiskImageError(f"{path}: is not an overlay of this image; name another file")
        bits = os.pread(self._handle, (self.count + 7) // 8, self._map)
        self._changed = bytearray(bits.ljust((self.count + 7) // 8, b"\0"))

    def __str__(self) -> str:
        """The file's name."""
        return str(self._path)

    @property
    def _map(self) -> int:
        return _OVERLAY_HEAD + self.count * SECTOR

    def read(self, first: int, count: int) -> bytes:
        """`count` sectors from `first` on."""
        data = bytearray(self._below.read(first, count))
        for n in range(count):
            sector = first + n
            if self._changed[sector >> 3] >> (sector & 7) & 1:
                place = _OVERLAY_HEAD + sector * SECTOR
                found = os.pread(self._handle, SECTOR, place).ljust(SECTOR, b"\0")
                data[n * SECTOR : (n + 1) * SECTOR] = found
        return bytes(data)

    def write(self, first: int, data: bytes) -> None:
        """Whole sectors from `first` on, into the file beside. Raises DiskImageError."""
        with _told(self._path):
            os.pwrite(self._handle, data, _OVERLAY_HEAD + first * SECTOR)
            last = first + len(data) // SECTOR - 1
            for sector in range(first, last + 1):
                self._changed[sector >> 3] |= 1 << (sector & 7)
            low, high = first >> 3, (last >> 3) + 1
            os.pwrite(self._handle, self._changed[low:high], self._map + low)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what the host's file system says into one line."""
    try:
        yield
    except OSError as error:
        raise DiskImageError(
            f"{path}: cannot be opened ({error.strerror or error}); check the path"
        ) from None


class Part:
    """`count` sectors of others, from `first` on."""

    def __init__(self, whole: Sectors, first: int, count: int) -> None:
        self._whole = whole
        self._first = first
        self.count = count

    def read(self, first: int, count: int) -> bytes:
        """`count` sectors."""
        return self._whole.read(self._first + first, count)

    def write(self, first: int, data: bytes) -> None:
        """Store whole sectors."""
        self._whole.write(self._first + first, data)


def open_image(option: str, *, read_only: bool = False) -> Sectors:
    """The sectors that `FILE[,write][,overlay=FILE]` names. Raises DiskImageError."""
    name, *settings = option.split(",")
    write = False
    overlay: str | None = None
    for setting in settings:
        key, _, value = setting.partition("=")
        if key == "write" and not value:
            write = True
        elif key == "overlay" and value:
            overlay = value
        else:
            raise DiskImageError(
                f"{option}: {setting!r} is not an option of an image; use write, or overlay=FILE"
            )
    if not name:
        raise DiskImageError(f"{option!r} names no image; write FILE[,write][,overlay=FILE]")
    if write and overlay is not None:
        raise DiskImageError(f"{option}: write changes the image, overlay keeps it; choose one")
    if read_only and (write or overlay):
        raise DiskImageError(f"{option}: a CD cannot be written to; leave the options out")
    image = ImageFile(Path(name), writable=write)
    if write or read_only:
        return image
    return Overlay(image) if overlay is None else OverlayFile(image, Path(overlay))
