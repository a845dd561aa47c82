"""Guest loaders: from a file to bytes in memory and a processor state.

`files` finds out what a file is and hands it to a loader, `image.GuestImage` is what each gives,
`layout` says where things lie in a PC's memory. It imports `firmware`. Begin with `files`.
"""

from trapgate.vmm.loaders.files import load_guest, parse_guest
from trapgate.vmm.loaders.image import GuestImage, GuestImageError, GuestKind, Segment

__all__ = [
    "GuestImage",
    "GuestImageError",
    "GuestKind",
    "Segment",
    "load_guest",
    "parse_guest",
]
