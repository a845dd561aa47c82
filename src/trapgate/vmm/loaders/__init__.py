"""Guest loaders: from a file to bytes in memory and a processor state."""

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
