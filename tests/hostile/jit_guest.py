"""Guests that write code and run it, by every alias of its page that a kernel could have.

A guest is made from a seed: it stores functions of its own making, calls them, and compares what
they return with what the test knows they must. Its pages have aliases that are writable,
read-only, execute-disabled or for users, and change in the middle of it.
"""

import random
from struct import pack

from tests.conformance import tiny_guest as tg
from tests.conformance.tiny_guest import Tiny

CODE, POOL, ALIASES = 0x25000, 0x2D000, 0x100000
PAGES, COUNT, SLOTS = 3, 8, 10
"""Physical pages, aliases, and functions of a page."""
TABLE = tg.TABLES + 0x3000
INTERRUPT = 0x80
ALL_WELL = 0xFFFF_FFFF
RETURN = 0xC3
MOV_EAX = 0xB8
P, W, U, NX = 1, 2, 4, 1 << 63


class JitGuest:
    """The guest of a seed, in a mode with paging, with `steps` things that it does.

    Its pages of code are at each of the physical addresses `pools`.
    """

    table = TABLE
    """Its last level of page tables."""
    stack = tg.STACK
    wrong = tg.VMCALL
    """Three bytes to execute where a function does not return what it must."""

    def __init__(self, mode: str, seed: int, steps: int, pools: tuple[int, ...] = (POOL,)) -> None:
        self.random = random.Random(seed)
        self.mode = mode
        self.long = mode == "l64"
        self.pools = pools
        self.rights = [P, P | W, P | W, P | W | U]
        if mode != "p32":
            self.rights += [P | W | NX, P | W | NX, P | W | U | NX]
        self.code = bytearray()
        self.initial: dict[int, bytes] = {}
        self.aliases: dict[int, tuple[int, int]] = {}
        """Linear page to (physical page, rights)."""
        self.known: dict[tuple[int, int], int] = {}
        """What the function at an offset of a physical page returns."""
        for n in range(COUNT):
            self._map(ALIASES + n * 0x1000, n % PAGES, self.random.choice(self.rights))
        for n in range(PAGES):
            self._map(ALIASES + (COUNT + n) * 0x1000, n, P | W)
        for entry, value in self._entries():
            self.initial[entry] = value
        for step in range(steps):
            self.code += b"\xbb" + pack("<I", step)
            self.random.choice(
                (self._write, self._write, self._call, self._call, self._call, self._data,
                 self._remap, self._frame, self._fill, self._patch)
            )()  # fmt: skip
        self.code += b"\xbb" + pack("<I", ALL_WELL) + tg.VMCALL
        self.end = CODE + len(self.code) - len(tg.VMCALL)
        """Where it ends if all is well."""
        assert self.end < POOL

    def tiny(self) -> Tiny:
        """The guest."""
        jump = b"\xe9" + pack("<i", CODE - tg.CODE - 5)
        memory = {
            CODE: bytes(self.code),
            tg.handler(INTERRUPT): b"\x48\xcf" if self.long else b"\xcf",
            **self.initial,
        }
        return Tiny(self.mode, 0, jump, memory)

    # What is where.

    def _map(self, linear: int, page: int, rights: int) -> None:
        self.aliases[linear] = page, rights

    def _entries(self) -> list[tuple[int, bytes]]:
        return [self._entry(linear) for linear in self.aliases]

    def _entry(self, linear: int) -> tuple[int, bytes]:
        page, rights = self.aliases[linear]
        value = self.random.choice(self.pools) + page * 0x1000 | rights
        width = 4 if self.mode == "p32" else 8
        return self.table + (linear >> 12) * width, value.to_bytes(width, "little")

    def _alias(self, needed: int, page: int | None = None, without: int = 0) -> int:
        found = [
            linear
            for linear, (of, rights) in self.aliases.items()
            if rights & needed == needed and not rights & without and page in (None, of)
        ]
        return self.random.choice(found)

    # What it does.

    def _store(self, linear: int, data: bytes) -> None:
        """MOV of 1 or 4 bytes, a locked exchange, or a push."""
        opcode = {1: b"\xc6", 4: b"\xc7"}[len(data)]
        if len(data) == 4 and self.random.random() < 0.3:
            self.code += b"\xb9" + data + b"\xf0\x87" + self._at(1, linear)
            return
        if len(data) == 4 and not self.long and self.random.random() < 0.3:
            self.code += b"\xbc" + pack("<I", linear + 4) + b"\x68" + data
            self._own_stack()
            return
        self.code += opcode + self._at(0, linear) + data

    def _at(self, register: int, linear: int) -> bytes:
        """ModRM and displacement."""
        if self.long:
            return bytes((register << 3 | 4, 0x25)) + pack("<I", linear)
        return bytes((register << 3 | 5,)) + pack("<I", linear)

    def _own_stack(self) -> None:
        self.code += b"\xbc" + pack("<I", self.stack)

    def _destroy(self, page: int, start: int, end: int) -> None:
        for place in list(self.known):
            if place[0] == page and place[1] < end and start < place[1] + 6:
                del self.known[place]

    def _write(self) -> None:
        """A whole new function."""
        linear = self._alias(W)
        page, offset = self.aliases[linear][0], self.random.randrange(SLOTS) * 0x60
        value = self.random.getrandbits(31)
        for start, data in ((0, bytes((MOV_EAX,))), (1, pack("<I", value)), (5, bytes((RETURN,)))):
            self._store(linear + offset + start, data)
        self.known[page, offset] = value

    def _patch(self) -> None:
        """Another value in a function that is there, by another alias than the one before."""
        if not self.known:
            return
        page, offset = self.random.choice(sorted(self.known))
        value = self.random.getrandbits(31)
        self._store(self._alias(W, page) + offset + 1, pack("<I", value))
        self.known[page, offset] = value

    def _call(self) -> None:
        """Call a function a few times, and compare."""
        if not self.known:
            return
        page, offset = self.random.choice(sorted(self.known))
        for _ in range(self.random.randrange(1, 3)):
            linear = self._alias(P, page, without=NX)
            self.code += b"\xbd" + pack("<I", linear + offset) + b"\xff\xd5"
            self.code += b"\x3d" + pack("<I", self.known[page, offset]) + b"\x74\x03" + self.wrong

    def _data(self) -> None:
        """A store beside all functions."""
        self._store(self._alias(W) + 0xF00 + self.random.randrange(60) * 4, bytes(4))

    def _remap(self) -> None:
        """Another page, other rights, and INVLPG."""
        linear = ALIASES + self.random.randrange(COUNT) * 0x1000
        self._map(linear, self.random.randrange(PAGES), self.random.choice(self.rights))
        entry, value = self._entry(linear)
        for n in range(0, len(value), 4):
            self.code += b"\xc7" + self._at(0, entry + n) + value[n : n + 4]
        self.code += b"\x0f\x01" + self._at(7, linear)

    def _frame(self) -> None:
        """The frame of a delivery, over code."""
        linear = self._alias(W)
        top = self.random.randrange(SLOTS) * 0x60 + self.random.choice((0, 3, 4, 6, 16, 64))
        if top < 64:
            return
        self.code += b"\xbc" + pack("<I", linear + top) + bytes((0xCD, INTERRUPT))
        self._own_stack()
        self._destroy(self.aliases[linear][0], top - 64, top)

    def _fill(self) -> None:
        """REP STOSB over some functions: RETs, which return what EAX has."""
        linear = self._alias(W)
        start, count = self.random.randrange(SLOTS) * 0x60 - 2, self.random.randrange(1, 200)
        start = max(start, 0)
        self.code += (
            b"\xbf" + pack("<I", linear + start) + b"\xb9" + pack("<I", count) + b"\xb0\xc3\xf3\xaa"
        )
        self._destroy(self.aliases[linear][0], start, start + count)
