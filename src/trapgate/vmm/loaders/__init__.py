"""Guest loaders: from a file to bytes in memory and a processor state.

`files` recognises the kind of file and calls its loader (`linux`, `multiboot`, `elf`, `flat`);
`image` is what a loader returns, `layout` where things go in memory. It may import `firmware`,
`devices` and below. Begin with `files`.
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
