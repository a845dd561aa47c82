"""Guests at random and by design: none may kill the host, stop it, or raise in it."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from struct import pack

import pytest

from tests.conformance import tiny_guest as tg
from tests.conformance.tiny_guest import Tiny, begin, launch, prepare
from tests.hostile import hostile_guest
from trapgate.sdm.reasons import ExitReason

ROOT = Path(__file__).parents[2]
WORKERS = 2
SEEDS = 120
"""Seeds of each worker: about ten seconds."""
MANY = 3000


def program(*arguments: object, timeout: float) -> subprocess.CompletedProcess[str]:
    """`hostile_guest` as a program, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", hostile_guest.__name__, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def fuzz(first: int, count: int, engine: str) -> str:
    """Run the seeds; what is wrong, or nothing."""
    try:
        done = program(first, count, engine, timeout=120 + count * 0.5)
    except subprocess.TimeoutExpired as hung:
        output = (hung.stdout or b"").decode()
        return f"seed {output.splitlines()[-1]} hangs"
    lines = done.stdout.splitlines()
    if done.returncode < 0:
        return f"seed {lines[-1]} dies of {signal.Signals(-done.returncode).name}\n{done.stderr}"
    if done.returncode or len(lines) != count:
        return f"seed {lines[-1] if lines else first} fails:\n{done.stderr}"
    slow = [line for line in lines if float(line.split()[1]) > hostile_guest.SECONDS]
    return f"too slow: {slow}" if slow else ""


def fuzz_all(first: int, count: int, engine: str) -> None:
    with ThreadPoolExecutor(WORKERS) as pool:
        starts = range(first, first + WORKERS * count, count)
        wrong = list(pool.map(lambda start: fuzz(start, count, engine), starts))
    assert wrong == [""] * WORKERS


def test_guests_at_random() -> None:
    fuzz_all(0, SEEDS, "auto")


def test_guests_at_random_on_the_portable_engine() -> None:
    fuzz_all(100_000, SEEDS // 3, "portable")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "portable"])
def test_many_guests_at_random(engine: str) -> None:
    fuzz_all(int(os.environ.get("TRAPGATE_FUZZ_SEED", "200000")), MANY, engine)


# What the fuzz has found, or might have.


@pytest.mark.parametrize("mode", tg.MODES)
def test_code_that_the_engine_must_not_translate(mode: str) -> None:
    """LOCK BT, BTS, BTR and BTC of a register are #UD; the engine's translator aborts on them."""
    codes = [
        bytes((*prefixes, 0x0F, opcode, modrm, 0)).hex()
        for prefixes in ((0xF0,), (0x66, 0xF0), (0xF0, 0x2E))
        for opcode, modrm in (
            (0xA3, 0xC0), (0xAB, 0xFC), (0xB3, 0xC8), (0xBB, 0xDB), (0xBA, 0xE0), (0xBA, 0xF9)
        )
    ]  # fmt: skip
    done = program(mode, *codes, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{code} EXCEPTION_OR_NMI" for code in codes]


def in_time(guest: Tiny, instructions: int = 10_000) -> ExitReason:
    """The exit of a guest that must come to an end."""
    processor, vmcs = prepare(guest)
    vmcs["VMX_PREEMPTION_TIMER_VALUE"] = instructions
    run = launch(guest, processor, vmcs)
    assert processor.time < instructions + 1000
    return run.exit.reason


def test_a_breakpoint_where_code_has_a_base() -> None:
    """Execution breakpoints are linear addresses; the engine compares them with offsets."""
    dr0 = {"dr0": tg.CODE + 2}
    guest = Tiny("r16", 0, b"\x90\x90\x90", {}, {"GUEST_DR7": 0x401}, dr0)
    run = begin(guest)
    assert run.exit.reason == ExitReason.VMCALL
    assert run.vmcs["GUEST_RIP"] == tg.handler(1)
    assert run.pushed(1) == [2]
    based = {"GUEST_CS_BASE": tg.CODE, "GUEST_RIP": 0, "GUEST_DR7": 0x401}
    run = begin(Tiny("p32", 0, b"\x90\x90\x90", {}, based, dr0))
    assert run.vmcs["GUEST_RIP"] == tg.handler(1)
    assert run.pushed(1) == [2]


def test_a_handler_that_is_not_there_for_ever() -> None:
    """#PF's handler cannot be fetched, and its stack is new each time: it goes on without end."""
    gate = tg.gate("l64", 14, ist=1)
    absent = pack("<H", tg.ABSENT & 0xFFFF) + gate[2:6] + pack("<H", tg.ABSENT >> 16) + gate[8:]
    guest = Tiny("l64", 0, b"\x8b\x04\x25" + pack("<I", tg.ABSENT), {tg.IDT + 16 * 14: absent})
    assert in_time(guest) == ExitReason.PREEMPTION_TIMER


def test_a_string_that_never_ends() -> None:
    registers = {"rcx": (1 << 64) - 1, "rsi": tg.DATA, "rdi": tg.DATA}
    for mode in ("p32", "l64"):
        # The destination stays: with DF toggled by nothing it walks on, into what is absent.
        reason = in_time(Tiny(mode, 0, b"\xf3\xae\xeb\xfc", registers=registers))
        assert reason in (ExitReason.PREEMPTION_TIMER, ExitReason.VMCALL)
        reason = in_time(Tiny(mode, 0, b"\xf3\xaa", registers=registers))
        assert reason in (ExitReason.PREEMPTION_TIMER, ExitReason.VMCALL)


def test_code_that_overwrites_itself_and_its_tables() -> None:
    for place in (tg.CODE, tg.CODE + 5, tg.TABLES, tg.IDT, tg.GDT, tg.STACK - 8):
        code = b"\xc7\x05" + pack("<II", place, 0xFFFFFFFF) + b"\xeb\xf4"
        reason = in_time(Tiny("p32", 0, code))
        assert reason in (
            ExitReason.PREEMPTION_TIMER,
            ExitReason.TRIPLE_FAULT,
            ExitReason.VMCALL,
        ), hex(place)


def test_a_jump_out_of_memory() -> None:
    for target in (tg.MEMORY, 0x7000_0000, 0xFEE0_0000, 0xFFFF_FFF0):
        code = b"\xb8" + pack("<I", target) + b"\xff\xe0"
        guest = Tiny("p32", 0, code, {}, {"GUEST_CR0": 0x31})
        reason = in_time(guest)
        # What is not there reads as ones, and FF FF is no instruction.
        assert reason == ExitReason.VMCALL, hex(target)


@pytest.mark.parametrize("engine", ["auto", "portable"])
def test_memory_of_the_host_is_out_of_reach(engine: str) -> None:
    """Stores above memory, and at its end, go nowhere; loads give ones."""
    code = (
        b"\xbb" + pack("<I", tg.MEMORY - 2) + b"\xc7\x03\x11\x22\x33\x44"  # across the end
        b"\xbb" + pack("<I", tg.MEMORY) + b"\xc7\x03\x55\x55\x55\x55\x8b\x03"
    )
    guest = Tiny("p32", 0, code, {}, {"GUEST_CR0": 0x31})
    run = begin(guest, engine=engine)
    assert run.exit.reason == ExitReason.VMCALL
    assert run.processor.registers.rax == 0xFFFF_FFFF
    assert run.processor.memory.read(tg.MEMORY - 2, 2) == b"\x11\x22"
