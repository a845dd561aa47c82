"""Real firmware: an image that starts at the reset vector, and boots what the machine has."""

import os
from pathlib import Path

from trapgate.vmm.loaders.image import (
    MEGABYTE,
    GuestImage,
    GuestImageError,
    GuestKind,
    Segment,
    guest_image,
)
from trapgate.vmm.loaders.state import real_mode

_SIZES = (64 << 10, 128 << 10, 256 << 10)
_RESET = 0xFFF0
_PROCESSOR_SIGNATURE = 0x106A5


def load_bios(path: str | os.PathLike[str]) -> GuestImage:
    """Make a guest of a firmware image of 64, 128 or 256 KiB. Raises GuestImageError.

    It is put where it would copy itself, right below 1 MiB, and begins at its reset vector there.
    """
    file = os.fspath(path)
    try:
        image = Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise GuestImageError(file, "file", f"{reason}; check the path") from error
    if len(image) not in _SIZES:
        raise GuestImageError(
            file,
            "size",
            f"{len(image)} bytes, but PC firmware has 64, 128 or 256 KiB; give SeaBIOS's bios.bin",
        )
    fields = real_mode(_RESET, 0)
    fields.update(GUEST_CS_SELECTOR=0xF000, GUEST_CS_BASE=0xF_0000)
    return guest_image(
        GuestKind.FIRMWARE,
        16,
        [Segment(MEGABYTE - len(image), image)],
        fields,
        {"RDX": _PROCESSOR_SIGNATURE},
        f"firmware of {len(image) >> 10} KiB at its reset vector",
    )
