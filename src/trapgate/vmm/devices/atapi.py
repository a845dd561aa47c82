"""A CD drive: packet commands on an image of blocks of 2,048 bytes (MMC-3, SFF-8020i)."""

from __future__ import annotations

from struct import pack, unpack

from trapgate.vmm.devices.storage import BLOCK, SECTOR, Sectors

_NOT_READY, _ILLEGAL_REQUEST = 2, 5
_NO_MEDIUM, _INVALID_COMMAND, _OUT_OF_RANGE, _INVALID_FIELD = 0x3A, 0x20, 0x21, 0x24
_MOST_BLOCKS = 4096
"""Blocks that one command moves at most; nobody asks for more at once."""


class CdDrive:
    """A drive with a disc, or without one."""

    def __init__(self, disc: Sectors | None) -> None:
        self._disc = disc
        self.sense_key = 0
        self._additional = 0

    @property
    def blocks(self) -> int:
        """How many whole blocks the disc has."""
        return 0 if self._disc is None else self._disc.count * SECTOR // BLOCK

    def identify(self) -> bytes:
        """IDENTIFY PACKET DEVICE: 512 bytes."""
        words = [0] * 256
        words[0] = 0x8580  # a CD drive, removable, packets of 12 bytes
        for start, count, text in ((10, 10, "TG0002"), (23, 4, "1.0"), (27, 20, "Trapgate CD")):
            words[start : start + count] = unpack(f">{count}H", text.ljust(2 * count).encode())
        words[49] = 0x0300
        words[53] = 6
        words[63] = 0x0407
        words[64] = 3
        words[65:69] = [120] * 4
        words[80] = 0x001E
        words[82], words[83], words[84] = 0x0210, 0x4000, 0x4000
        words[85], words[87] = 0x0210, 0x4000
        return pack("<256H", *words)

    def execute(self, packet: bytes) -> bytes | None:
        """Carry out a command packet (12 bytes); the data for the host, or None: it failed."""
        code = packet[0]
        if code == 0x03:  # REQUEST SENSE tells what failed, and forgets it
            sense = pack(">BBBIBIBBBBBB", 0x70, 0, self.sense_key, 0, 10, 0, self._additional,
                         0, 0, 0, 0, 0)  # fmt: skip
            self.sense_key = self._additional = 0
            return sense[: packet[4]]
        if code == 0x12:  # INQUIRY
            answer = b"\x05\x80\x00\x21\x1f\0\0\0" + b"TRAPGATETrapgate CD     1.0 "
            return answer[: packet[4]]
        if code in (0x1B, 0x1E, 0x35, 0x51, 0xBB):  # start, prevent, flush, speed
            return self._succeed(b"")
        if code == 0x4A:  # GET EVENT STATUS NOTIFICATION: none
            return self._succeed(b"\0\2\x80\0"[: _length(packet)])
        if self._disc is None:
            return self._refuse(_NOT_READY, _NO_MEDIUM)
        return self._with_disc(self._disc, code, packet)

    def _with_disc(self, disc: Sectors, code: int, packet: bytes) -> bytes | None:
        if code == 0x00:  # TEST UNIT READY
            return self._succeed(b"")
        if code == 0x25:  # READ CAPACITY
            return self._succeed(pack(">II", self.blocks - 1, BLOCK))
        if code in (0x28, 0xA8):  # READ (10), READ (12)
            (first,) = unpack(">I", packet[2:6])
            count = int.from_bytes(packet[7:9] if code == 0x28 else packet[6:10], "big")
            if first + count > self.blocks:
                return self._refuse(_ILLEGAL_REQUEST, _OUT_OF_RANGE)
            if count > _MOST_BLOCKS:
                return self._refuse(_ILLEGAL_REQUEST, _INVALID_FIELD)
            factor = BLOCK // SECTOR
            return self._succeed(disc.read(first * factor, count * factor))
        if code == 0x43:  # READ TOC
            return self._succeed(self._contents(packet)[: _length(packet)])
        if code == 0x46:  # GET CONFIGURATION: a CD-ROM
            return self._succeed(pack(">IHH", 4, 0, 8)[: _length(packet)])
        if code in (0x5A, 0x1A):  # MODE SENSE
            page = bytes.fromhex("2a12 0300 0000 0000 0000 0002 0000 0000 0000 0000")
            answer = pack(">HB5x", len(page) + 6, 1) + page
            return self._succeed(answer[: _length(packet) if code == 0x5A else packet[4]])
        return self._refuse(_ILLEGAL_REQUEST, _INVALID_COMMAND)

    def _contents(self, packet: bytes) -> bytes:
        """One data track, and the lead-out."""

        def address(block: int) -> bytes:
            if not packet[1] & 2:
                return pack(">I", block)
            minute, rest = divmod(block + 150, 75 * 60)
            return bytes((0, min(minute, 255), rest // 75, rest % 75))

        if packet[2] & 0xF == 1 or packet[9] >> 6 == 1:  # sessions
            return b"\0\x0a\1\1\0\x14\1\0" + address(0)
        tracks = b"\0\x14\1\0" + address(0) if packet[6] <= 1 else b""
        tracks += b"\0\x16\xaa\0" + address(self.blocks)
        return pack(">HBB", len(tracks) + 2, 1, 1) + tracks

    def _succeed(self, data: bytes) -> bytes:
        self.sense_key = self._additional = 0
        return data

    def _refuse(self, key: int, additional: int) -> bytes | None:
        self.sense_key, self._additional = key, additional
        return None


def _length(packet: bytes) -> int:
    """The allocation length of a packet that has it in bytes 7 and 8."""
    return packet[7] << 8 | packet[8]
