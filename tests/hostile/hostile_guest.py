"""Guests that mean harm, made from a seed: run as a program, `python -m`, in a process of its own.

Each seed starts from a tiny guest that works, in any mode and ring, and then has its
code, tables, limits, registers and controls spoiled. The program prints a seed before it
runs it and its outcome after, so that whoever reads knows which guest killed it.
"""

import random
import sys
import time
from collections.abc import Callable
from struct import pack

from tests.conformance import tiny_guest as tg
from tests.conformance.tiny_guest import Tiny
from trapgate.errors import TrapgateError
from trapgate.processor.processor import Processor
from trapgate.processor.vm_exit import VmExit, VmFail
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason
from trapgate.vmcs.vmcs import Vmcs
from trapgate.vmm.loaders.image import GuestImage, GuestKind, Segment
from trapgate.vmm.machine import VirtualMachine

INSTRUCTIONS = 3_000
"""What a guest may execute."""
SLACK = 4096
"""How far a guest may run past its limit: to the end of a block."""
SECONDS = 10.0
"""What a guest may take: hundreds of times what it needs."""
EXITS = 60

_PLACES = (
    0, tg.GDT, tg.IDT, tg.TSS, tg.TABLES, tg.HANDLERS, tg.STACK, tg.CODE, tg.CODE + 0x40,
    tg.DATA, tg.ABSENT, tg.READ_ONLY, tg.SUPERVISOR, tg.NO_EXECUTE, tg.RESERVED,
    tg.MEMORY - 1, tg.MEMORY, tg.MEMORY + 0x1000, tg.ABSENT - 1, tg.READ_ONLY - 3, 0x7FFF_FFFF,
    0xFFFF_FFFF, 0xFFFF_F000, 0xFEE0_0000, 1 << 39, 1 << 40, 0x7FFF_FFFF_FFFF, 1 << 47,
    0xFFFF_8000_0000_0000, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFF8, 1 << 63, 0x0F_FFFF_0000_0,
)  # fmt: skip
_SELECTORS = (
    0, 3, 4, 7, 0x08, 0x0B, 0x10, 0x13, 0x18, 0x1B, 0x20, 0x23, 0x28, 0x2B, 0x30, 0x38, 0x3B,
    0x40, 0x43, 0x48, 0x50, 0x58, 0x5B, 0x60, 0x63, 0x68, 0x6B, 0x70, 0x78, 0x7B, 0x80, 0xFFFF,
)  # fmt: skip
_RIGHTS = (
    0x0000, 0x00E4, 0x00EC, 0x00E5, 0x00EE, 0x00EF, 0x008C, 0x0089, 0x008B, 0x0081, 0x0083, 0x0082,
    0x00E2, 0xC09B, 0xC09F, 0xC0FB, 0xC0FF, 0xC093, 0xC097, 0xC0F3, 0xA09B, 0xA0FB, 0xE09B, 0x409A,
    0x0093, 0x009B, 0xC013, 0xC01B, 0x00E7, 0x00E6, 0x00C5, 0x0084,
)  # fmt: skip


class Hostile:
    """One hostile guest's choices, all from its seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.mode = self.random.choice(tg.MODES)
        self.ring = 0 if self.mode == "r16" else self.random.choice((0, 0, 3))

    def number(self, bits: int) -> int:
        """A number of that many bits, more often than not a nasty one."""
        r = self.random
        kind = r.randrange(5)
        if kind == 0:
            value = r.getrandbits(bits)
        elif kind == 1:
            value = r.choice(_PLACES) + r.randrange(-16, 17)
        elif kind == 2:
            value = r.choice(_PLACES)
        elif kind == 3:
            value = r.randrange(-20, 20)
        else:
            value = 1 << r.randrange(bits)
        return value & (1 << bits) - 1

    def imm(self, size: int) -> bytes:
        """An immediate operand of `size` bytes."""
        return self.number(8 * size).to_bytes(size, "little")

    def code(self) -> bytes:
        """Code: noise, or instructions that reach deep into the processor."""
        r = self.random
        noise = r.random() < 0.2
        parts = []
        for _ in range(r.randrange(1, 24)):
            if noise or r.random() < 0.1:
                parts.append(r.randbytes(r.randrange(1, 12)))
            else:
                parts.append(r.choice(_SNIPPETS)(self))
        if r.random() < 0.5:
            parts.append(b"\xeb\xfe")
        return b"".join(parts)

    def guest(self) -> Tiny:
        """The guest, spoiled."""
        r = self.random
        guest = Tiny(self.mode, self.ring, self.code())
        for name in ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r15", "cr2", "dr0"):
            if r.random() < 0.7:
                guest.registers[name] = self.number(64)
        for vector in range(256):
            if r.random() < 0.1:
                guest.memory[tg.handler(vector)] = self.code()[:16]
        step = 16 if guest.long else 8
        for _ in range(r.choice((0, 0, 2, 6, 30))):
            vector = r.randrange(32) if r.random() < 0.8 else r.randrange(256)
            guest.memory[tg.IDT + step * vector] = self._gate(step)
        for _ in range(r.choice((0, 0, 3, 10))):
            entry = tg.descriptor(self.number(32), r.getrandbits(20), r.choice(_RIGHTS))
            if r.random() < 0.4:
                entry = self._call_gate(r.choice(_RIGHTS))
            guest.memory[tg.GDT + 8 * r.randrange(3, 16)] = pack("<Q", entry)
        if r.random() < 0.4:
            guest.memory[tg.TSS + r.randrange(0x6C)] = self.imm(8)
        if r.random() < 0.3:
            offset = r.choice((0, 0x1000, 0x2000, 0x3000)) + 8 * r.randrange(r.choice((4, 512)))
            for n in range(r.randrange(1, 8)):
                entry = self.number(64) if r.random() < 0.5 else r.choice(_PLACES) | 0x87
                entry &= (1 << 64) - 1
                guest.memory[tg.TABLES + (offset + 8 * n) % 0x4000] = pack("<Q", entry)
        self._registers(guest)
        return guest

    def _gate(self, step: int) -> bytes:
        r = self.random
        offset = tg.handler(r.randrange(256)) if r.random() < 0.5 else self.number(64)
        low = pack(
            "<HHBBH",
            offset & 0xFFFF,
            r.choice(_SELECTORS),
            r.randrange(8),
            r.choice((0x8E, 0x8F, 0xEE, 0xEF, 0x85, 0x86, 0x87, 0xE5, 0x0E, r.getrandbits(8))),
            offset >> 16 & 0xFFFF,
        )
        return low + pack("<II", offset >> 32 & 0xFFFF_FFFF, 0) if step == 16 else low

    def _call_gate(self, rights: int) -> int:
        r = self.random
        offset = tg.CODE if r.random() < 0.5 else self.number(32)
        word = offset & 0xFFFF | r.choice(_SELECTORS) << 16 | r.randrange(32) << 32
        return word | (rights & 0xFF) << 40 | (offset >> 16 & 0xFFFF) << 48

    def _registers(self, guest: Tiny) -> None:
        r = self.random
        fields = guest.fields
        if r.random() < 0.3:
            fields["GUEST_RSP"] = r.choice(
                (self.number(64 if guest.long else 32), tg.STACK - 0xFFE, tg.ABSENT + 0x1002, 6, 0)
            )
        if r.random() < 0.2:
            fields["GUEST_GDTR_LIMIT"] = r.choice((0, 7, 0x2F, 0x3F, 0xFFFF, r.getrandbits(16)))
        if r.random() < 0.2:
            fields["GUEST_IDTR_LIMIT"] = r.choice((0, 0x37, 0x6F, 0x7F, 0xFFFF, r.getrandbits(16)))
        if r.random() < 0.15:
            name = r.choice(("GUEST_GDTR_BASE", "GUEST_IDTR_BASE"))
            fields[name] = self.number(32)
        if r.random() < 0.15:
            fields["GUEST_TR_BASE"] = self.number(32)
        if r.random() < 0.15 and self.mode != "r16":
            fields["GUEST_TR_LIMIT"] = r.choice((0, 3, 0x2B, 0x66, 0x67, 0xFFF))
        if r.random() < 0.1 and self.mode != "r16":
            fields["GUEST_CR3"] = r.choice((0, tg.CODE & ~0xFFF, tg.MEMORY, 0xFFFFFF000, tg.DATA))
        if r.random() < 0.3:
            flags = r.getrandbits(22) & 0x257FD5 | 2
            if self.mode not in ("p32", "pae") or r.random() < 0.8:
                flags &= ~(1 << 17)
            fields["GUEST_RFLAGS"] = flags
            if flags >> 17 & 1:
                self._virtual_8086(guest)
        if r.random() < 0.2:
            fields["GUEST_DR7"] = 0x400 | r.getrandbits(8) | r.getrandbits(16) << 16
            guest.registers["dr0"] = tg.CODE + r.randrange(8)
            guest.registers["dr1"] = tg.handler(r.randrange(16))
        if r.random() < 0.2:
            fields["GUEST_CR4"] = 0x2000 | r.getrandbits(22) & 0x310FFF
            if guest.long or self.mode == "pae":
                fields["GUEST_CR4"] |= 0x20

    def _virtual_8086(self, guest: Tiny) -> None:
        for name in ("ES", "CS", "SS", "DS", "FS", "GS"):
            guest.fields[f"GUEST_{name}_SELECTOR"] = 0x1000
            guest.fields[f"GUEST_{name}_BASE"] = 0x10000
            guest.fields[f"GUEST_{name}_LIMIT"] = 0xFFFF
            guest.fields[f"GUEST_{name}_ACCESS_RIGHTS"] = 0xF3
        guest.fields["GUEST_RIP"] = 0
        guest.fields["GUEST_RSP"] = self.random.choice((0, 1, 2, 0xFFFE, 0x2000))

    def controls(self, vmcs: Vmcs) -> None:
        """Random VM-execution controls, all of them legal."""
        r = self.random
        vmcs["PIN_BASED_CONTROLS"] |= r.getrandbits(32) & ct.PIN_ALLOWED_1 & ~0x20
        vmcs["PIN_BASED_CONTROLS"] |= ct.PIN_PREEMPTION_TIMER
        if r.random() < 0.5:
            chosen = r.getrandbits(32) & r.getrandbits(32) & ct.PRIMARY_ALLOWED_1
            vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= chosen & ~ct.PRIMARY_NMI_WINDOW_EXITING
        if r.random() < 0.5:
            vmcs["SECONDARY_PROCESSOR_BASED_CONTROLS"] |= r.getrandbits(32) & ct.SECONDARY_ALLOWED_1
        if r.random() < 0.4:
            vmcs["EXCEPTION_BITMAP"] = r.getrandbits(32) & r.getrandbits(32)
            vmcs["PAGE_FAULT_ERROR_CODE_MASK"] = r.getrandbits(5)
            vmcs["PAGE_FAULT_ERROR_CODE_MATCH"] = r.getrandbits(5)


def _bytes(*choices: bytes) -> Callable[[Hostile], bytes]:
    return lambda h: h.random.choice(choices)


def _mov(h: Hostile) -> bytes:
    """A number into a register."""
    register = h.random.randrange(8)
    if register == 4 and h.random.random() < 0.7:
        register = 0
    if h.mode == "l64" and h.random.random() < 0.7:
        return bytes((0x48, 0xB8 | register)) + h.imm(8)
    return bytes((0xB8 | register,)) + h.imm(2 if h.mode == "r16" else 4)


def _memory(h: Hostile) -> bytes:
    """Loads, stores and read-modify-writes through registers."""
    prefix = h.random.choice((b"", b"", b"\xf0", b"\x66", b"\x67", b"\x64", b"\x36", b"\x48"))
    opcode = h.random.choice(
        (b"\x8b", b"\x89", b"\x8a", b"\x88", b"\x87", b"\x01", b"\x31", b"\xff", b"\x0f\xc1",
         b"\x0f\xb1", b"\x0f\xc7", b"\x8f", b"\x83", b"\xc7", b"\x0f\xab", b"\x0f\xae", b"\xdd",
         b"\xd9", b"\x0f\x28", b"\x0f\x6f", b"\x62", b"\xc4", b"\xc5")
    )  # fmt: skip
    return prefix + opcode + bytes((h.random.randrange(256),)) + h.imm(4)


def _string(h: Hostile) -> bytes:
    """String instructions, most with a huge count."""
    prefix = h.random.choice(
        (b"\xf3", b"\xf3", b"\xf2", b"", b"\xf3\x48", b"\xf3\x67", b"\xf3\x66")
    )
    opcode = h.random.choice(b"\xa4\xa5\xa6\xa7\xaa\xab\xac\xad\xae\xaf\x6c\x6d\x6e\x6f")
    return h.random.choice((b"", b"\xfd", b"\xfc")) + prefix + bytes((opcode,))


def _far(h: Hostile) -> bytes:
    """Far jumps, calls and returns; IRET to nonsense; segment loads."""
    r = h.random
    selector = pack("<H", r.choice(_SELECTORS))
    target = pack("<I", r.choice((tg.CODE, tg.HANDLERS, h.number(32))))
    size = 2 if h.mode == "r16" else 4
    if r.random() < 0.4 and h.mode != "l64":
        return bytes((r.choice((0xEA, 0x9A)),)) + target[:size] + selector
    kind = r.randrange(4)
    if kind == 0:
        # Through a far pointer that is pushed first.
        push = b"\x68" + pack("<I", r.choice(_SELECTORS))[:size] + b"\x68" + target[:size]
        return push + r.choice((b"\xcb", b"\xca\x08\x00", b"\xff\x1c\x24", b"\xff\x2c\x24"))
    if kind == 1:
        push = b"".join(b"\x68" + h.imm(size) for _ in range(r.randrange(6)))
        iret = r.choice((b"\xcf", b"\x48\xcf", b"\x66\xcf"))
        flags = b"\x68" + pack("<I", r.getrandbits(22))[:size]
        return (
            push
            + flags
            + b"\x68"
            + selector.ljust(size, b"\0")[:size]
            + b"\x68"
            + target[:size]
            + iret
        )
    if kind == 2:
        load = pack("<H", r.choice(_SELECTORS)) + b"\0\0"
        return b"\xb8" + load[:size] + bytes((0x8E, 0xC0 | r.randrange(6) << 3))
    load = pack("<H", r.choice(_SELECTORS)) + b"\0\0"
    lldt_or_ltr = bytes((0x0F, 0x00, r.choice((0xD0, 0xD8, 0xE0, 0xE8))))
    return b"\xb8" + load[:size] + lldt_or_ltr


def _system(h: Hostile) -> bytes:
    """Control, debug and model-specific registers; descriptor tables; what intercepts."""
    r = h.random
    kind = r.randrange(8)
    if kind == 0:
        return _mov(h) + bytes((0x0F, r.choice((0x20, 0x22)), 0xC0 | r.randrange(64)))
    if kind == 1:
        return _mov(h) + bytes((0x0F, r.choice((0x21, 0x23)), 0xC0 | r.randrange(64)))
    if kind == 2:
        msr = r.choice(
            (0x10, 0x1B, 0x174, 0x175, 0x176, 0x1D9, 0x277, 0xC0000080, 0xC0000081, 0xC0000082,
             0xC0000084, 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103, h.number(32))
        )  # fmt: skip
        if h.mode == "r16":
            return b"\x66\xb9" + pack("<I", msr) + r.choice((b"\x0f\x30", b"\x0f\x32"))
        return b"\xb9" + pack("<I", msr) + r.choice((b"\x0f\x30", b"\x0f\x32"))
    if kind == 3:
        return bytes((0x0F, r.choice((0, 1)), r.randrange(256))) + h.imm(4)
    if kind == 4:
        # Toggle bits of CR0 and CR4: paging, protection, everything.
        number = r.choice((0, 0, 4))
        bit = 1 << r.choice((0, 3, 4, 5, 16, 18, 31, 29, 30, 20, 21))
        return (
            bytes((0x0F, 0x20, 0xC0 | number << 3))
            + (b"\x66" if h.mode == "r16" else b"")
            + b"\x35"
            + pack("<I", bit)
            + bytes((0x0F, 0x22, 0xC0 | number << 3))
        )
    if kind == 5:
        return r.choice((b"\xe4", b"\xe5", b"\xe6", b"\xe7", b"\xcd")) + h.imm(1)
    if kind == 6:
        return r.choice(
            (b"\xf4", b"\xfb", b"\xfa", b"\x9d", b"\x9c", b"\xcc", b"\xce", b"\xf1", b"\x0f\x05",
             b"\x0f\x07", b"\x48\x0f\x07", b"\x0f\x34", b"\x0f\x35", b"\x48\x0f\x35", b"\x0f\xa2",
             b"\x0f\x06", b"\x0f\x08", b"\x0f\x09", b"\x0f\x31", b"\x0f\x33", b"\xf3\x90",
             b"\x0f\x01\xc8", b"\x0f\x01\xc9", b"\x0f\x01\xd0", b"\x0f\x01\xd1", b"\x0f\x01\xf8",
             b"\x0f\x01\xf9", b"\x0f\xaa", b"\x0f\x37", b"\x0f\x77", b"\x0f\x01\xd9", b"\x0f\x0b",
             b"\xec", b"\xed", b"\xee", b"\xef", b"\x0f\x78\xc0", b"\x0f\x79\xc0", b"\x0f\xc7\xf0")
        )  # fmt: skip
    return b"\x9c\x81\x0c\x24" + pack("<I", 1 << r.choice((8, 8, 9, 14, 16, 17, 18))) + b"\x9d"


def _modify(h: Hostile) -> bytes:
    """Stores into the code that runs, tables that are in use, and the stack's own page."""
    r = h.random
    place = r.choice(
        (tg.CODE + r.randrange(256), tg.TABLES + r.randrange(0x4000), tg.GDT + r.randrange(128),
         tg.IDT + r.randrange(512), tg.TSS + r.randrange(0x68), tg.HANDLERS + r.randrange(512))
    )  # fmt: skip
    if h.mode == "r16":
        return b"\x67\x66\xc7\x05" + pack("<I", place) + h.imm(4)
    if h.mode == "l64":
        return b"\xc7\x04\x25" + pack("<I", place) + h.imm(4)
    return b"\xc7\x05" + pack("<I", place) + h.imm(4)


def _jump(h: Hostile) -> bytes:
    """Near jumps, also to where nothing is, and loops."""
    r = h.random
    if r.random() < 0.5:
        return bytes((r.choice((0xEB, 0x74, 0x75, 0xE2, 0xE8)), r.randrange(256)))
    return _mov(h)[:-1] + h.imm(1) + bytes((0xFF, 0xE0 | r.randrange(8)))


_SNIPPETS: tuple[Callable[[Hostile], bytes], ...] = (
    _mov, _mov, _memory, _memory, _memory, _string, _far, _far, _system, _system, _system,
    _modify, _jump,
    _bytes(b"\x60", b"\x61", b"\x50", b"\x58", b"\xc8\xff\xff\x1f", b"\xc9", b"\xc3", b"\x8e\xd0",
           b"\xf7\xf0", b"\xf6\xf1", b"\xd4\x00", b"\x0f\xc7\x0c\x24", b"\x0f\x00\xd8", b"\xdb\xe3",
           b"\xd8\xf0", b"\xdd\x34\x24", b"\x9b", b"\x0f\x58\xc0", b"\x0f\xae\x14\x24"),
)  # fmt: skip


def on_processor(hostile: Hostile, engine: str) -> str:
    """Run a guest under a VMM that skips, reflects and injects at random."""
    r = hostile.random
    processor = Processor(tg.MEMORY, engine=engine, journal=64)
    vmcs = Vmcs()
    hostile.guest().put(processor, vmcs)
    hostile.controls(vmcs)
    end = INSTRUCTIONS
    exits = 0
    last = "nothing"
    while exits < EXITS and processor.time < end:
        vmcs["VMX_PREEMPTION_TIMER_VALUE"] = max(end - processor.time, 0)
        if r.random() < 0.1:
            r.choice((processor.nmi, processor.init, processor.smi))()
        if r.random() < 0.1:
            processor.interrupt(r.choice((None, 0x20, r.randrange(256))))
        enter = processor.vmresume if vmcs.launched else processor.vmlaunch
        outcome = enter(vmcs)
        if isinstance(outcome, VmFail):
            return f"fail {outcome.error}"
        last = outcome.reason.name
        if outcome.entry_failed or outcome.reason == ExitReason.TRIPLE_FAULT:
            break
        _judge(outcome)
        exits += 1
        if r.random() < 0.7:
            vmcs["GUEST_RIP"] = _wrapped(vmcs["GUEST_RIP"] + outcome.instruction_length, vmcs)
        elif outcome.interruption is not None and r.random() < 0.7:
            information, code = outcome.interruption.encode()
            vmcs["VM_ENTRY_INTERRUPTION_INFORMATION"] = information
            vmcs["VM_ENTRY_EXCEPTION_ERROR_CODE"] = code
            vmcs["VM_ENTRY_INSTRUCTION_LENGTH"] = outcome.instruction_length or 1
        vmcs["GUEST_ACTIVITY_STATE"] = 0
    assert processor.time <= end + SLACK, f"ran to {processor.time}"
    return f"{exits} exits, {last}"


def _wrapped(rip: int, vmcs: Vmcs) -> int:
    if vmcs["GUEST_CS_ACCESS_RIGHTS"] & 1 << 13:
        return rip & (1 << 64) - 1
    return rip & 0xFFFF_FFFF


def _judge(outcome: VmExit) -> None:
    """What holds of every VM exit."""
    assert 0 <= outcome.instruction_length <= 15, outcome
    assert outcome.vmcs["VM_ENTRY_INTERRUPTION_INFORMATION"] >> 31 == 0
    if outcome.reason == ExitReason.EXCEPTION_OR_NMI:
        assert outcome.interruption is not None, outcome


def on_machine(hostile: Hostile, engine: str) -> str:
    """Run a guest on a whole PC with the usual handlers."""
    guest = hostile.guest()
    segments = tuple(Segment(address, data) for address, data in guest.tables().items())
    machine = VirtualMachine(tg.MEMORY, engine=engine)
    if guest.mode != "r16":
        machine.vmcs.set_flat_segments(64 if guest.long else 32, user=guest.ring == 3)
    fields = {n: x for n, x in guest.state().items() if n not in ("GUEST_CR0", "GUEST_CR4")}
    fields["GUEST_CR0"] = guest.state()["GUEST_CR0"] & ~0x20
    fields["GUEST_CR4"] = guest.state()["GUEST_CR4"] & ~0x2000
    image = GuestImage(
        GuestKind.FLAT, 64 if guest.long else 32, segments, fields, guest.registers, ""
    )
    machine.load(image)
    stop = machine.run(max_instructions=INSTRUCTIONS, timeout=SECONDS)
    # A halted machine skips to its next interrupt; only what ran counts.
    machine.summary()
    return stop.end.value


def run(seed: int, engine: str) -> str:
    """Run the guest of `seed`; what became of it."""
    hostile = Hostile(seed)
    try:
        return (on_machine if seed % 3 == 0 else on_processor)(hostile, engine)
    except TrapgateError as refused:
        return f"{type(refused).__name__}: {refused}"


def main(first: str, count: str, engine: str) -> None:
    """Run `count` seeds from `first` on; report each on standard output."""
    for seed in range(int(first), int(first) + int(count)):
        print(seed, end=" ", flush=True)
        started = time.process_time()
        outcome = run(seed, engine)
        print(f"{time.process_time() - started:.3f} {outcome}", flush=True)


def run_code(mode: str, *codes: str) -> None:
    """Run each piece of code, in hexadecimal digits, as the first block of a guest in ring 3."""
    for code in codes:
        print(code, end=" ", flush=True)
        guest = Tiny(mode, 0 if mode == "r16" else 3, bytes.fromhex(code))
        run = tg.begin(guest, {"EXCEPTION_BITMAP": 1 << 6})
        print(run.exit.reason.name, flush=True)


if __name__ == "__main__":
    (run_code if sys.argv[1] in tg.MODES else main)(*sys.argv[1:])
