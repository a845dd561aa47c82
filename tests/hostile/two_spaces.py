"""A VMM of x86 code and its guest, which write code for each other and change what leads to it.

Both are made from a seed. They use the same linear addresses for different pages, and both have
aliases of a few pages of code; each stores functions, calls them, and compares what they return.
In between the VMM changes the guest's page tables and its EPT entries, and invalidates what the
SDM asks it to ("Operations that Invalidate Cached Mappings"), but no more.
"""

import random
from collections.abc import Callable
from struct import pack

from tests.conformance import tiny_guest as tg
from tests.conformance import x86_vmm as xv
from tests.conformance.vmx import ept_guests as eg
from tests.hostile.jit_guest import ALIASES, COUNT, INTERRUPT, PAGES, POOL, JitGuest, P, W
from trapgate.sdm import controls as ct
from trapgate.sdm.fields import Field

GUESTS_TABLES = 0x70000
GUESTS_CODE, VMMS_CODE = 0x110000, 0x180000
FAR = 0x1F0000
"""Guest-physical pages that EPT leads to pages of code."""
NEXT, DESCRIPTOR = 0x63000, 0x63010
"""Where the VMM keeps what it executes at its next VM exit, and the operand of INVVPID."""
WRONG = 0x19
ACTIVATE, EPT, VPID = 1 << 31, 1 << 1, 1 << 5
INVEPT, INVVPID = b"\x66\x0f\x38\x80", b"\x66\x0f\x38\x81"


class World(JitGuest):
    """One of the two: it makes its code piece by piece. `known` is common to both."""

    wrong = xv.out(WRONG) + b"\x90"

    def __init__(self, mode: str, chosen: random.Random, known: dict[tuple[int, int], int]) -> None:
        self.random = chosen
        self.mode = mode
        self.long = mode == "l64"
        self.pools = (POOL,)
        self.rights = [P, P | W, P | W]
        self.known = known
        self.code = bytearray()
        self.aliases = {}
        self.through: dict[int, int] = {}
        """Linear page to the number of the page of FAR that leads on, or -1."""
        for n in range(COUNT):
            self._map(ALIASES + n * 0x1000, n % PAGES, self.random.choice(self.rights))
        for n in range(PAGES):
            self._map(ALIASES + (COUNT + n) * 0x1000, n, P | W)
        self.initial = dict(self._entry(linear) for linear in self.aliases)

    def piece(self) -> bytes:
        """Code for some steps."""
        self.code = bytearray()
        for _ in range(self.random.randrange(1, 5)):
            self.random.choice(
                (self._write, self._call, self._call, self._call, self._data, self._remap,
                 self._frame, self._patch, self._reload)
            )()  # fmt: skip
        return bytes(self.code)

    def _reload(self) -> None:
        """MOV to CR3 of what it holds."""
        self.code += bytes.fromhex("0f20d8 0f22d8")


class Guest(World):
    """The guest: some of its entries have addresses that EPT changes."""

    table = GUESTS_TABLES + 0x3000

    def __init__(
        self, mode: str, chosen: random.Random, known: dict[tuple[int, int], int], *, ept: bool
    ) -> None:
        self.far = list(range(PAGES)) if ept else []
        """Which page of code each page of FAR leads to."""
        super().__init__(mode, chosen, known)

    def _entry(self, linear: int) -> tuple[int, bytes]:
        page, rights = self.aliases[linear]
        ways = [-1]
        if linear < ALIASES + COUNT * 0x1000:
            ways += [n for n, to in enumerate(self.far) if to == page]
        way = self.through[linear] = self.random.choice(ways)
        physical = POOL + page * 0x1000 if way < 0 else FAR + way * 0x1000
        width = 4 if self.mode == "p32" else 8
        return self.table + (linear >> 12) * width, (physical | rights).to_bytes(width, "little")


class TwoSpaces:
    """VMM and guest of a seed, which go to and fro `rounds` times. `vpid` 0: without one."""

    def __init__(self, mode: str, seed: int, rounds: int, *, ept: bool, vpid: int) -> None:
        self.random = chosen = random.Random(seed)
        known: dict[tuple[int, int], int] = {}
        self.vpid, self.ept = vpid, ept
        self.assembler = xv.Assembler(mode == "l64")
        self.guest = Guest(mode, chosen, known, ept=ept)
        self.vmm = World(mode, chosen, known)
        self.vmm.stack = xv.HOST_STACK
        initial = self.vmm.initial | self.guest.initial
        self.guests, self.vmms = bytearray(), bytearray()
        a = self.assembler
        for _ in range(rounds):
            self.guests += self.guest.piece() + tg.VMCALL
            self.vmms += b"\xc7" + self.vmm._at(0, NEXT)
            place = len(self.vmms)
            self.vmms += bytes(4) + self.vmm.piece() + self.change()
            resume = GUESTS_CODE + len(self.guests)
            self.vmms += a.vmwrite(int(Field.GUEST_RIP), resume) + a.vmresume
            # A VM entry that fails goes on here.
            self.vmms += xv.out(xv.FELL_THROUGH)
            self.vmms[place : place + 4] = pack("<I", VMMS_CODE + len(self.vmms))
        self.guests += tg.VMCALL
        self.vmms += xv.out(xv.EXITED)
        assert GUESTS_CODE + len(self.guests) < VMMS_CODE
        assert VMMS_CODE + len(self.vmms) < FAR
        self.machine = xv.X86Vmm(
            mode,
            engine="native",
            fields=self.fields(),
            program=None,
            handler=b"\xff" + a.absolute(4, NEXT),  # jmp [NEXT]
            memory=self.tables() | initial | {
                GUESTS_CODE: bytes(self.guests),
                VMMS_CODE: bytes(self.vmms),
                NEXT: pack("<Q", VMMS_CODE),
                tg.handler(INTERRUPT): b"\x48\xcf" if mode == "l64" else b"\xcf",
            },
        )  # fmt: skip

    def fields(self) -> dict[str, int]:
        """What the VMCS has that others have not."""
        fields = {"GUEST_CR3": GUESTS_TABLES, "GUEST_RIP": GUESTS_CODE}
        secondary = (EPT if self.ept else 0) | (VPID if self.vpid else 0)
        if secondary:
            fields |= {"SECONDARY_PROCESSOR_BASED_CONTROLS": secondary}
            fields |= {"PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_ALLOWED_0 | ACTIVATE}
        if self.vpid:
            fields |= {"VIRTUAL_PROCESSOR_IDENTIFIER": self.vpid}
        if self.ept:
            fields |= {"EPT_POINTER": eg.POINTER}
        return fields

    def tables(self) -> dict[int, bytes]:
        """The guest's tables, which are the VMM's but for those entries that are its own; EPT."""
        mode = self.guest.mode
        size = 4 if mode == "p32" else 8
        form = "<I" if size == 4 else "<Q"
        memory = {
            GUESTS_TABLES + 0x3000 + (page >> 12) * size: pack(form, page | 7)
            for page in range(0, tg.MEMORY, 0x1000)
        }
        table = pack(form, GUESTS_TABLES + 0x3000 | 7)
        if mode == "p32":
            memory[GUESTS_TABLES] = table
        else:
            memory[GUESTS_TABLES + 0x2000] = table
            next_level = GUESTS_TABLES + 0x1000 | 7 if mode == "l64" else GUESTS_TABLES + 0x2000 | 1
            memory[GUESTS_TABLES] = pack("<Q", next_level)
            if mode == "l64":
                memory[GUESTS_TABLES + 0x1000] = pack("<Q", GUESTS_TABLES + 0x2000 | 7)
        if self.ept:
            pages = {FAR + n * 0x1000: POOL + n * 0x1000 | eg.PAGE for n in range(PAGES)}
            memory |= eg.Entries(pages).memory()
        return memory

    # What the VMM changes.

    def change(self) -> bytes:
        """Code that changes what the guest finds, and invalidates."""
        kinds: list[Callable[[], bytes]] = [bytes, bytes, self.change_entry]
        if self.ept:
            kinds += [self.change_ept]
        return self.random.choice(kinds)()

    def store(self, address: int, data: bytes) -> bytes:
        """MOV of constants, 4 bytes each."""
        return b"".join(
            b"\xc7" + self.vmm._at(0, address + n) + data[n : n + 4] for n in range(0, len(data), 4)
        )

    def change_entry(self) -> bytes:
        """Another page at a linear address of the guest's."""
        linear = ALIASES + self.random.randrange(COUNT) * 0x1000
        guest = self.guest
        guest._map(linear, self.random.randrange(PAGES), self.random.choice(guest.rights))
        code = self.store(*guest._entry(linear))
        return code + self.invalidate_linear(linear)

    def invalidate_linear(self, linear: int) -> bytes:
        """INVVPID of any type, or a VPID that was never used; nothing without VPIDs."""
        a = self.assembler
        if self.vpid == 0:
            return b""
        kind = self.random.randrange(5)
        if kind == 4:
            self.vpid += 1
            return a.vmwrite(int(Field.VIRTUAL_PROCESSOR_IDENTIFIER), self.vpid)
        code = self.store(DESCRIPTOR, pack("<QQ", self.vpid if kind != 2 else 0, linear))
        return code + a.load(1, kind) + INVVPID + a.absolute(1, DESCRIPTOR)

    def change_ept(self) -> bytes:
        """Another page at a guest-physical address."""
        a = self.assembler
        guest = self.guest
        number, page = self.random.randrange(PAGES), self.random.randrange(PAGES)
        guest.far[number] = page
        for linear, way in guest.through.items():
            if way == number:
                guest.aliases[linear] = page, guest.aliases[linear][1]
        entry = pack("<Q", POOL + page * 0x1000 | eg.PAGE)
        code = self.store(eg.PT + ((FAR >> 12) + number) * 8, entry)
        kind = self.random.choice((1, 2))
        code += self.store(DESCRIPTOR, pack("<QQ", eg.POINTER if kind == 1 else 0, 0))
        return code + a.load(1, kind) + INVEPT + a.absolute(1, DESCRIPTOR)
