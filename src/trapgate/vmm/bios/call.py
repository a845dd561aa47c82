"""What a BIOS service sees of its caller: registers, memory by segment and offset, flags."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from trapgate.paging.walk import READ, WRITE
from trapgate.processor.processor import Processor
from trapgate.sdm.cells import GUEST_RFLAGS
from trapgate.sdm.state import RFLAGS_VM
from trapgate.vmcs.vmcs import Vmcs
from trapgate.vmm.devices.guest_memory import GuestMemory

CARRY, ZERO = 1 << 0, 1 << 6


class Machine(Protocol):
    """The machine that a service runs on."""

    processor: Processor
    vmcs: Vmcs
    ram: GuestMemory


class Call:
    """One call of a service. 16-bit registers are attributes' halves: `ax`, `ah`, `al`, ... ."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._registers = machine.processor.registers

    def get(self, register: str) -> int:
        """A 32-bit general register by its 16-bit name: `ax`, `cx`, ..., but `sp`."""
        return int(getattr(self._registers, f"r{register}")) & 0xFFFF_FFFF

    def put(self, register: str, value: int, bits: int = 16) -> None:
        """Write the low `bits` of a register; what is above stays."""
        mask = (1 << bits) - 1
        old = int(getattr(self._registers, f"r{register}"))
        setattr(self._registers, f"r{register}", old & ~mask | value & mask)

    def low(self, register: str) -> int:
        """The low byte of `ax`, `bx`, `cx` or `dx`."""
        return self.get(register) & 0xFF

    def high(self, register: str) -> int:
        """The byte above it."""
        return self.get(register) >> 8 & 0xFF

    def put_low(self, register: str, value: int) -> None:
        """Write the low byte."""
        self.put(register, value, 8)

    def put_high(self, register: str, value: int) -> None:
        """Write the byte above it."""
        self.put(register, self.get(register) & 0xFF | (value & 0xFF) << 8)

    def segment(self, name: str) -> int:
        """The base of a segment register: `ES`, `DS`, ..."""
        return self._machine.vmcs[f"GUEST_{name}_BASE"]

    def put_segment(self, name: str, selector: int) -> None:
        """Load a segment register as real mode does."""
        self._machine.vmcs[f"GUEST_{name}_SELECTOR"] = selector
        self._machine.vmcs[f"GUEST_{name}_BASE"] = selector << 4

    def read(self, address: int, count: int) -> bytes:
        """Memory at a linear address; all ones where there is none."""
        parts = self._pieces(address, count, READ)
        return b"".join(b"\xff" * n if at < 0 else self._machine.ram.read(at, n) for at, n in parts)

    def write(self, address: int, data: bytes) -> None:
        """Store what there is memory for."""
        done = 0
        for at, n in self._pieces(address, len(data), WRITE):
            if at >= 0:
                self._machine.ram.write(at, data[done : done + n])
            done += n

    def _pieces(self, address: int, count: int, access: int) -> Iterator[tuple[int, int]]:
        """Where `count` bytes at a linear address are: physical addresses and lengths; -1: nowhere.

        Of the machine's own guest it is the address itself, which virtual-8086 monitors keep so;
        of an x86 VMM's guest it is what the VMM maps there, lest the guest reach beyond.
        """
        processor = self._machine.processor
        if not processor.x86_vmm.guest_is_in_vmcs0:
            yield address, count
            return
        v = self._machine.vmcs.cells
        flags = int(v[GUEST_RFLAGS])
        user = 1 if flags & RFLAGS_VM else 0
        end = address + count
        while address < end:
            length = min(end, (address | 0xFFF) + 1) - address
            at, code = processor.engine.walk(v, flags, address, access, user)
            yield (at if code < 0 else -1), length
            address += length

    def word(self, address: int, size: int = 2) -> int:
        """A little-endian number in memory."""
        return int.from_bytes(self.read(address, size), "little")

    def put_word(self, address: int, value: int, size: int = 2) -> None:
        """Store a little-endian number."""
        self.write(address, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def flag(self, mask: int, *, on: bool) -> None:
        """Set or clear flags in the image that the stub's IRET will load."""
        vmcs = self._machine.vmcs
        place = vmcs["GUEST_SS_BASE"] + ((vmcs["GUEST_RSP"] + 4) & 0xFFFF)
        image = self.word(place)
        self.put_word(place, image | mask if on else image & ~mask)

    def succeed(self, status: int = 0) -> None:
        """AH = `status`, CF = 0."""
        self.put_high("ax", status)
        self.flag(CARRY, on=False)

    def fail(self, status: int) -> None:
        """AH = `status`, CF = 1."""
        self.put_high("ax", status)
        self.flag(CARRY, on=True)

    def wait(self, *, on: bool) -> None:
        """Make the stub wait for an interrupt and call again: ZF as it is now, not in the image."""
        flags = self._machine.vmcs["GUEST_RFLAGS"]
        self._machine.vmcs["GUEST_RFLAGS"] = flags | ZERO if on else flags & ~ZERO
