"""QEMU's firmware configuration device, by its traditional interface at ports 510H and 511H.

Test kernels and firmware ask it for the memory size and the number of processors.
QEMU, "QEMU Firmware Configuration (fw_cfg) Device". There is no DMA, and the feature
word says so.
"""

from collections.abc import Iterable, Mapping
from struct import pack

from trapgate.vmm.devices.bus import UntimedDevice, Wires

_SIGNATURE, _FEATURES, _UUID, _RAM_SIZE, _NO_GRAPHICS, _PROCESSORS = range(6)
_MAX_PROCESSORS, _DIRECTORY, _FIRST_FILE = 0x0F, 0x19, 0x20
_TRADITIONAL = 1


def e820(ranges: Iterable[tuple[int, int, int]]) -> bytes:
    """File `etc/e820`: (start, length, type) of each range of memory."""
    return b"".join(pack("<QQI", *entry) for entry in ranges)


class FirmwareConfiguration(UntimedDevice):
    """A selector at port 510H (16 bits) and the selected item's bytes at port 511H.

    `memory` is RAM in bytes, `processors` their number. After an item's end, and for items
    that are not there, the data are zeros.
    """

    wide = True
    ports = (0x510, 0x511)

    def __init__(self, memory: int, files: Mapping[str, bytes], processors: int = 1) -> None:
        items = {
            _SIGNATURE: b"QEMU",
            _FEATURES: pack("<I", _TRADITIONAL),
            _UUID: bytes(16),
            _RAM_SIZE: pack("<Q", memory),
            _NO_GRAPHICS: pack("<H", 1),
            _PROCESSORS: pack("<H", processors),
            _MAX_PROCESSORS: pack("<H", processors),
        }
        directory = pack(">I", len(files))
        for key, (name, data) in enumerate(sorted(files.items()), _FIRST_FILE):
            directory += pack(">IHH56s", len(data), key, 0, name.encode("ascii"))
            items[key] = data
        items[_DIRECTORY] = directory
        self._items: dict[int, bytes] = Wires(items)
        self._selected = b""
        self._offset = 0

    def read(self, port: int, size: int, now: int) -> int:
        """Read the selected item's next byte; a wider access is none, and floats."""
        if port != 0x511 or size != 1:
            return (1 << 8 * size) - 1 if port != 0x511 else 0
        offset, self._offset = self._offset, self._offset + 1
        return self._selected[offset] if offset < len(self._selected) else 0

    def read_block(self, count: int) -> bytes:
        """The selected item's next `count` bytes at once, for a repeated INS."""
        offset, self._offset = self._offset, self._offset + count
        return self._selected[offset : offset + count].ljust(count, b"\0")

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Select an item, from its start; bit 14 meant "for writing" once, and nothing is."""
        if port == 0x510 and size == 2:
            self._selected = self._items.get(value & 0xBFFF, b"")
            self._offset = 0
