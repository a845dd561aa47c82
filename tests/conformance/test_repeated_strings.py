"""REP MOVS and REP STOS: a page at a time on the native engine, element by element elsewhere.

Both have to leave the memory, the registers and the clock that a model here leaves, which makes
one iteration after the other, wherever the guest is stopped or faults.
"""

import random
from dataclasses import dataclass
from typing import Self

import pytest

from tests.conformance.tiny_guest import (
    ABSENT,
    CODE,
    MEMORY,
    READ_ONLY,
    VMCALL,
    Run,
    Tiny,
    begin,
    handler,
)
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

AREA = 0x40000
"""RAM whose bytes all differ from their neighbours'."""
AREA_SIZE = 0x8000
ENGINES = ("native", "portable")
PATTERN = random.Random(1).randbytes(AREA_SIZE)
ABOVE = 0x1122_3344_0000_0000
"""What the upper halves of registers hold."""


@dataclass
class Repeated:
    """A repeated string instruction, its registers, and after how many of them the timer ends."""

    mode: str
    moves: bool
    size: int
    width: int
    """Of its addresses, in bytes."""
    rsi: int
    rdi: int
    rcx: int
    down: bool = False
    time: int = 1_000_000

    @classmethod
    def at_random(cls, choice: random.Random) -> Self:
        mode = choice.choice(["r16", "p32", "pae", "l64", "l64"])
        long = mode == "l64"
        width = choice.choice([8, 8, 8, 4] if long else [2, 4] if mode == "r16" else [4])
        size = choice.choice([1, 2, 4, 8] if long else [1, 2, 4])
        # In real mode offsets lie in a segment whose base is AREA.
        low = 0 if mode == "r16" else AREA
        rsi = low + 0x2000 + choice.randrange(0x2000)
        near = choice.choice([-9, -8, -4, -1, 0, 1, 2, 3, 4, 7, 8, 9, 16, 0x1000, 0x2001])
        rcx = choice.choice(
            [0, 1, 2, 9, 10, choice.randrange(40), choice.randrange(0x3000 // size)]
        )
        down = choice.random() < 0.1
        time = choice.choice([1_000_000, 1 + choice.randrange(rcx + 4)])
        rdi = rsi + near - (0x1000 if choice.random() < 0.2 else 0)
        if choice.random() < 0.2 and not down:
            rdi = choice.choice(
                [0xF000 if mode == "r16" else page - 0x800 for page in (ABSENT, READ_ONLY)]
            )
            rdi += choice.randrange(0x800)
        moves = choice.random() < 0.6
        return cls(mode, moves, size, width, rsi, rdi, rcx, down, time)

    @property
    def code(self) -> bytes:
        natural = {"r16": 2, "l64": 8}.get(self.mode, 4)
        operand = 2 if self.mode == "r16" else 4
        prefixes = b"\x67" if self.width != natural else b""
        if self.size in (2, 4) and self.size != operand:
            prefixes += b"\x66"
        rex = b"\x48" if self.size == 8 else b""
        opcode = (0xA4 if self.moves else 0xAA) + (self.size != 1)
        return b"\xf3" + prefixes + rex + bytes([opcode])

    def guest(self) -> Tiny:
        registers = {"rsi": self.rsi, "rdi": self.rdi, "rcx": self.rcx}
        if self.mode == "l64" and self.width == 4:
            registers = {name: ABOVE | value for name, value in registers.items()}
        fields = {
            "GUEST_RFLAGS": 0x402 if self.down else 2,
            "VMX_PREEMPTION_TIMER_VALUE": self.time,
        }
        if self.mode == "r16":
            for name in ("DS", "ES"):
                fields |= {f"GUEST_{name}_SELECTOR": AREA >> 4, f"GUEST_{name}_BASE": AREA}
        return Tiny(
            self.mode,
            code=self.code,
            memory={AREA: PATTERN},
            registers=registers | {"rax": 0x8877_6655_4433_2211},
            fields=fields,
        )

    def expected(self) -> tuple[bytes, int, int, int, int]:
        """Memory, RSI, RDI and RCX as one iteration after the other leaves them; the fault."""
        memory = bytearray(MEMORY)
        memory[AREA : AREA + AREA_SIZE] = PATTERN
        base = AREA if self.mode == "r16" else 0
        rsi, rdi, left, fault = self.rsi, self.rdi, self.rcx, 0
        step = -self.size if self.down else self.size
        for _ in range(min(self.rcx, self.time)):
            if self.mode == "r16":
                # Nothing is at an offset above 64 KB.
                beyond = max(rdi, rsi if self.moves else 0) + self.size > 0x10000
                fault = 13 if beyond else 0
            else:
                pages = {(rdi + n) & ~0xFFF for n in (0, self.size - 1)}
                fault = 14 if pages & {ABSENT, READ_ONLY} else 0
            if fault:
                break
            data = (0x8877_6655_4433_2211).to_bytes(8, "little")[: self.size]
            if self.moves:
                data = bytes(memory[base + rsi : base + rsi + self.size])
                rsi += step
            memory[base + rdi : base + rdi + self.size] = data
            rdi, left = rdi + step, left - 1
        return bytes(memory[AREA : AREA + AREA_SIZE]), rsi, rdi, left, fault


def left(run: Run) -> tuple[object, ...]:
    """What there is to see of a guest that was stopped."""
    return (
        run.exit.reason,
        run.vmcs["GUEST_RIP"],
        run.processor.registers.cells.tolist(),
        run.processor.time,
        run.processor.memory.read(AREA, AREA_SIZE),
        run.processor.memory.read(ABSENT - 0x1000, 0x3000),
    )


@pytest.mark.native
@pytest.mark.parametrize("seed", range(80))
def test_engines_and_model_agree(seed: int) -> None:
    repeated = Repeated.at_random(random.Random(seed))
    runs = [begin(repeated.guest(), engine=engine) for engine in ENGINES]
    memory, rsi, rdi, rcx, fault = repeated.expected()
    registers = runs[0].processor.registers
    mask = (1 << 8 * repeated.width) - 1
    assert (registers.rsi & mask, registers.rdi & mask, registers.rcx & mask) == (rsi, rdi, rcx)
    assert runs[0].processor.memory.read(AREA, AREA_SIZE) == memory
    if fault:
        assert runs[0].vmcs["GUEST_RIP"] in (handler(fault), handler(fault) + len(VMCALL))
    assert left(runs[0]) == left(runs[1])


@pytest.mark.native
def test_upper_halves_of_registers_become_0() -> None:
    guest = Repeated("l64", True, 1, 4, AREA, AREA + 0x3000, 0x2000).guest()
    registers = begin(guest).processor.registers
    assert (registers.rsi, registers.rdi, registers.rcx) == (AREA + 0x2000, AREA + 0x5000, 0)


@pytest.mark.native
def test_code_in_the_way_is_not_executed_any_more() -> None:
    # The guest clears up to and over the instruction itself, and what follows it.
    stores = Repeated("p32", False, 1, 4, 0, CODE - 0x800, 0x900)
    guest = stores.guest()
    guest.registers["rax"] = 0xF4
    for engine in ENGINES:
        run = begin(guest, {"PRIMARY_PROCESSOR_BASED_CONTROLS": 1 << 7}, engine=engine)
        # Once REP STOSB is HLT itself, it goes no further.
        assert run.exit.reason is ExitReason.HLT
        assert run.vmcs["GUEST_RIP"] == CODE
        assert run.processor.registers.rcx == 0x900 - 0x801
