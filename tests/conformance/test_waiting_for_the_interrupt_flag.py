"""What waits for RFLAGS.IF is taken at the very instruction that sets it, and costs nothing before.

SDM, "Interrupt-Window Exiting". STI, POPF, IRET and SYSRET set the flag.
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import (
    CODE,
    CODE_32,
    CODE_64,
    DATA_0,
    IF,
    MODES,
    STACK,
    Run,
    Tiny,
    launch,
    prepare,
)
from trapgate.engine import machine as mc
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
WINDOW = {"PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_INTERRUPT_WINDOW_EXITING}
TURNS = 2000
NOPS = b"\x90" * 4


def turns(mode: str) -> bytes:
    """MOV (E)CX, 2000 and a LOOP to itself, which takes that many blocks."""
    return b"\xb9" + pack("<H" if mode == "r16" else "<I", TURNS) + b"\xe2\xfe"


def sets_flag(way: str, mode: str) -> Tiny:
    """A long loop with interrupts disabled, then an instruction that enables them, and NOPs."""
    code, frame = turns(mode), b""
    if way == "sti":
        code += b"\xfb"
    elif way == "popf":
        code += b"\x68" + pack("<H" if mode == "r16" else "<I", IF | 2) + b"\x9d"
    elif way == "iret":
        code += b"\x48\xcf" if mode == "l64" else b"\xcf"
        size = {"r16": 2, "l64": 8}.get(mode, 4)
        offset = len(code) + (0 if mode == "r16" else CODE)
        selector = {"r16": CODE >> 4, "l64": CODE_64}.get(mode, CODE_32)
        words = (offset, selector, IF | 2, STACK, DATA_0)
        frame = b"".join(word.to_bytes(size, "little") for word in words)
    else:
        code += b"\x48\xb9" + pack("<Q", CODE + len(code) + 13) + b"\x48\x0f\x07"
    fields = {"GUEST_RSP": STACK - 0x80}
    star = (CODE_64 - 0x10 | 3) << 48
    return Tiny(mode, 0, code + NOPS, {STACK - 0x80: frame}, fields, {"r11": IF | 2, "star": star})


def run_of(way: str, mode: str, engine: str, timer: int = 1_000_000) -> Run:
    guest = sets_flag(way, mode)
    processor, vmcs = prepare(guest, WINDOW, engine=engine)
    vmcs["VMX_PREEMPTION_TIMER_VALUE"] = timer
    return launch(guest, processor, vmcs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("way", "mode"),
    [(way, mode) for way in ("sti", "popf", "iret") for mode in MODES] + [("sysret", "l64")],
)
def test_the_window_opens_behind_the_instruction(way: str, mode: str, engine: str) -> None:
    run = run_of(way, mode, engine)
    assert run.exit.reason is ExitReason.INTERRUPT_WINDOW
    # STI blocks interrupts for the time of one more instruction.
    behind = len(run.guest.code) - len(NOPS) + (way == "sti") + (0 if mode == "r16" else CODE)
    assert run.vmcs["GUEST_RIP"] == behind


@pytest.mark.parametrize("mode", MODES)
def test_nobody_looks_while_interrupts_are_disabled(mode: str) -> None:
    """A look at each block would make loops without interrupts half as fast."""
    run = run_of("sti", mode, "native", timer=TURNS // 2)
    assert run.exit.reason is ExitReason.PREEMPTION_TIMER
    assert run.processor.engine.cells[mc.DEADLINE] == TURNS // 2 - mc.LONGEST_BLOCK
