"""Many small guests under one x86 VMM in one boot: each a VM entry up to its first VM exit."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from struct import pack

import numpy as np

from tests.conformance.tiny_guest import Tiny
from tests.conformance.vmx import harness as h

MOV_CR2_TO_AX = b"\x0f\x20\xd0"
INITIAL_FPU = b"\xdb\xe3\x68\x80\x1f\x00\x00\x0f\xae\x14\x24\x58"
"""FNINIT; LDMXCSR of 1F80H: no exception of a guest stays pending or unmasked in the VMM."""


@dataclass(frozen=True)
class Case:
    """A guest, its controls, and the VM-entry fields for it."""

    guest: Tiny
    controls: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """An interruption-information field and its error code."""

    vector: int
    kind: int
    error: int | None


@dataclass(frozen=True)
class Exit:
    """What became of a case; `error` is that of a VMfailValid."""

    verdict: str
    error: int
    reason: int
    qualification: int
    rip: int
    length: int
    interruption: Event | None
    idt_vectoring: Event | None
    cr2: int
    physical: int = 0
    linear: int = 0
    """GUEST_PHYSICAL_ADDRESS and GUEST_LINEAR_ADDRESS."""


_FIELDS = (
    "VM_INSTRUCTION_ERROR",
    "EXIT_REASON",
    "EXIT_QUALIFICATION",
    "GUEST_RIP",
    "VM_EXIT_INSTRUCTION_LENGTH",
    "VM_EXIT_INTERRUPTION_INFORMATION",
    "VM_EXIT_INTERRUPTION_ERROR_CODE",
    "IDT_VECTORING_INFORMATION",
    "IDT_VECTORING_ERROR_CODE",
    "GUEST_PHYSICAL_ADDRESS",
    "GUEST_LINEAR_ADDRESS",
)


def _event(information: int, code: int) -> Event | None:
    if not information & 1 << 31:
        return None
    return Event(information & 0xFF, information >> 8 & 7, code if information & 1 << 11 else None)


def words(guest: Tiny) -> dict[int, int]:
    """Its memory in 32-bit words, without what is 0."""
    memory = bytearray(0x40000)
    for address, data in guest.tables().items():
        memory[address : address + len(data)] = data
    every = np.frombuffer(memory, np.uint32)
    return {4 * int(n): int(every[n]) for n in np.flatnonzero(every)}


def move_to_debug_register(number: int, value: int, bits: int) -> bytes:
    """MOV (R)AX, value; MOV DRn, (R)AX."""
    load = b"\x48\xb8" + pack("<Q", value) if bits == 64 else b"\xb8" + pack("<I", value)
    return load + bytes((0x0F, 0x23, 0xC0 | number << 3))


class Batch:
    """Cases of guests in one mode, for one boot of a VMM in `bits`.

    `plain` is the guest whose memory most of them have in common.
    """

    def __init__(
        self, bits: int, mode: str, revision: int = 0x54524701, plain: Tiny | None = None
    ) -> None:
        self.script = h.Script(bits, revision)
        self.script.begin()
        self._plain = words(plain or Tiny(mode, 0))
        for address, word in self._plain.items():
            self.script.poke(address, pack("<I", word))
        self._bases = {
            ring: h.all_fields(h.guest_fields(bits, Tiny(mode, ring))) for ring in (0, 3)
        }
        self._places: list[tuple[int, list[int], int]] = []
        self._bits = bits

    def add(self, case: Case) -> None:
        """Set the guest up, enter it, note what becomes of it, and put memory right again."""
        script, guest = self.script, case.guest
        mine = words(guest)
        changed = {
            address: mine.get(address, 0)
            for address in mine.keys() | self._plain.keys()
            if mine.get(address, 0) != self._plain.get(address, 0)
        }
        for address, word in changed.items():
            script.poke(address, pack("<I", word))
        for name, value in guest.registers.items():
            assert name.startswith("dr")
            script.call(move_to_debug_register(int(name[2]), value, self._bits))
        base = self._bases[guest.ring]
        script.clear()
        script.write_all(base)
        wanted = {**h.guest_fields(self._bits, guest), **case.controls}
        for name, value in wanted.items():
            if name in base and value != base[name]:
                script.write(name, value)
        launched = script.launch()
        read = [script.read(name) for name in _FIELDS]
        self._places.append((launched, read, script.call(MOV_CR2_TO_AX)))
        script.call(INITIAL_FPU)
        for address in changed:
            script.poke(address, pack("<I", self._plain.get(address, 0)))

    def exits(self, results: h.Results) -> list[Exit]:
        """What became of the cases, in their order."""
        found = []
        for launched, read, cr2 in self._places:
            error, reason, qualification, rip, length, *events = (results[n] for n in read)
            *events, physical, linear = events
            found.append(
                Exit(
                    results.ran(launched).verdict,
                    error,
                    reason,
                    qualification,
                    rip,
                    length,
                    _event(*events[:2]),
                    _event(*events[2:]),
                    results.ran(cr2).rax,
                    physical,
                    linear,
                )
            )
        return found


def run(bits: int, mode: str, cases: Iterable[Case], plain: Tiny | None = None) -> list[Exit]:
    """Run cases of one mode on our processor; `plain` as for `Batch`."""
    batch = Batch(bits, mode, plain=plain)
    for case in cases:
        batch.add(case)
    return batch.exits(h.run(batch.script))
