"""Where images are kept: one file for an installation, and none but ours is ever executed.

A file is used if nobody else could have written it, its digest is right, and it was made from
these very sources. Whatever else is there is left out, compiled anew and written over; a user
is told once. Where nothing can be kept, code is compiled into memory at each start.
"""

import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trapgate.compiler.image import Image, unpacked

_PACKAGE = Path(__file__).resolve().parent.parent
_LARGEST = 64 << 20
_DAY = 86400
_LEFT = re.compile(r"[0-9a-f]{16}|[a-z-]+-[0-9a-f]{16}\.image.*")
"""Names that this and earlier versions give."""


class ForeignError(Exception):
    """A file or folder that somebody else could write."""


def folder() -> Path:
    """`$XDG_CACHE_HOME/trapgate`, or ~/.cache/trapgate."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path is none, says the XDG Base Directory Specification.
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "trapgate"  # noqa: PTH117


def file(kind: str) -> Path:
    """Where this installation's image of a kind is kept: "core", "core-checked", and others."""
    installation = hashlib.sha256(f"{_PACKAGE}\0{sys.prefix}".encode()).hexdigest()[:16]
    return folder() / f"{kind}-{installation}.image"


def shipped_file(kind: str) -> Path:
    """Where a wheel has an image: beside these sources, and trusted as they are."""
    return Path(__file__).with_name(f"{kind}.image")


def shipped(kind: str, key: str) -> Image | None:
    """The image that came with the sources, if it was made from them as they are."""
    return _image(shipped_file(kind), Path.read_bytes, key)


def load(kind: str, key: str) -> Image | None:
    """The image that is kept, if it can be trusted and was made from what `key` says."""
    return _image(file(kind), _read, key)


def _image(place: Path, read: Callable[[Path], bytes], key: str) -> Image | None:
    try:
        return unpacked(read(place), key)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ForeignError) as error:
        tell(f"{place} is not used, and the core is compiled again: {_why(error)}")
        return None


def save(kind: str, key: str, image: Image) -> None:
    """Keep an image, as a whole or not at all."""
    place = file(kind)
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _demand_ours(place.parent.stat(), "its folder")
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=place.name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(image.packed(key))
            Path(name).replace(place)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _remove_old(place)
    except (OSError, ForeignError) as error:
        tell(
            f"compiled code cannot be kept as {place}: {_why(error)}; each start compiles for "
            "some seconds, unless XDG_CACHE_HOME names another folder"
        )


def tell(words: str) -> None:
    """One line for the user, by way of `logging`: on standard error, if nobody asks otherwise."""
    import logging

    logging.getLogger("trapgate").warning("trapgate: %s", words)


def _why(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _read(place: Path) -> bytes:
    """What is in a file that nobody else could have written."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(place, flags | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as stream:
        _demand_ours(place.parent.stat(), "its folder")
        status = os.fstat(handle)
        _demand_ours(status, "it")
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise ValueError("it holds something else")
        if time.time() - status.st_mtime > _DAY:
            with suppress(OSError):
                os.utime(place)  # so that `_remove_old` sees that it is used
        return stream.read()


def _demand_ours(status: os.stat_result, what: str) -> None:
    if hasattr(os, "geteuid"):
        if status.st_uid != os.geteuid():
            raise ForeignError(f"{what} belongs to somebody else")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ForeignError(f"{what} can be written by others (chmod go-w)")


def _remove_old(used: Path) -> None:
    """Remove what earlier versions left, and images that nothing has used for a month."""
    for old in used.parent.iterdir():
        if old == used or not _LEFT.fullmatch(old.name):
            continue
        with suppress(OSError):
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            elif time.time() - old.lstat().st_mtime > 30 * _DAY:
                old.unlink()
