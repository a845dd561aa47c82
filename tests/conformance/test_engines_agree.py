"""The same guests on the native and the portable engine: the same journals and states.

Times are left out: the virtual clock counts a block's instructions when the block is
entered, and the engines stop at different places in blocks.
"""

from struct import pack
from typing import Any

import pytest

from tests.conformance.tiny_guest import ABSENT, AC, CODE, DATA, READ_ONLY, TF, Run, Tiny, begin
from trapgate.sdm import cells
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

EVERYTHING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
OUT_IN = b"\xb0\x41\x40\xe6\x80\x40\xe4\x81\x40"
"""Mov al, 41h; inc eax; out 80h, al; inc eax; in al, 81h; inc eax (32-bit)."""
IO_EXITING = {"PRIMARY_PROCESSOR_BASED_CONTROLS": 1 << 24}

GUESTS = {
    "arithmetic": (b"\x31\xc0\xb9\x64\x00\x00\x00\x01\xc8\xff\xc9\x75\xfa", {}),
    "read of an absent page": (b"\xb8" + pack("<I", ABSENT) + b"\x8b\x18", {}),
    "read-modify-write": (b"\xb8" + pack("<I", ABSENT) + b"\x01\x18", EVERYTHING),
    "write to a read-only page": (b"\xb8" + pack("<I", READ_ONLY) + b"\x89\x18", {}),
    "divide": (b"\x31\xc9\xf7\xf1", EVERYTHING),
    "undefined": (b"\x0f\x0b", EVERYTHING),
    "breakpoint": (b"\xcc", {}),
    "software interrupt": (b"\xcd\x30", {}),
    "cpuid": (b"\x31\xc0\x0f\xa2", {}),
    "ports": (OUT_IN, IO_EXITING),
    "ports that nobody watches": (OUT_IN, {}),
    "input to an absent page": (b"\xbf" + pack("<I", ABSENT) + b"\x6c", IO_EXITING),
    "output from an absent page": (b"\xbe" + pack("<I", ABSENT) + b"\x6e", IO_EXITING),
    "step": (b"\x9c\x80\x4c\x24\x01\x01\x9d\x90\x90", EVERYTHING),
}


def trace(run: Run) -> list[list[int]]:
    """The journal without times."""
    rows: Any = run.processor.rows[: int(run.processor.head[0])]
    return [[int(x) for n, x in enumerate(row) if n != 1] for row in rows]


def state(run: Run) -> dict[str, object]:
    return {
        "exit": run.exit.reason,
        "qualification": run.exit.qualification,
        "interruption": run.exit.interruption,
        "rip": run.vmcs["GUEST_RIP"],
        "rsp": run.vmcs["GUEST_RSP"],
        "rflags": run.vmcs["GUEST_RFLAGS"],
        "registers": run.processor.registers.cells.tolist(),
        "memory": run.processor.memory.read(DATA, 4096),
    }


@pytest.mark.parametrize("mode", ["p32", "pae", "l64"])
@pytest.mark.parametrize("name", GUESTS)
@pytest.mark.native
def test_engines_agree(name: str, mode: str) -> None:
    code, controls = GUESTS[name]
    if mode == "l64":
        code = code.replace(b"\x40", b"\x90")
    runs = [begin(Tiny(mode, code=code), controls, engine=kind) for kind in ("native", "portable")]
    for _ in range(3):
        assert state(runs[0]) == state(runs[1])
        assert trace(runs[0]) == trace(runs[1])
        if runs[0].exit.reason != ExitReason.IO_INSTRUCTION:
            break
        for run in runs:
            run.skip()


def test_the_instructions_after_a_port_wait_for_the_vmm() -> None:
    run = begin(Tiny("p32", code=OUT_IN), IO_EXITING, engine="portable")
    assert run.vmcs["GUEST_RIP"] == CODE + 3
    assert run.processor.registers.rax == 0x42
    run.skip()
    assert run.vmcs["GUEST_RIP"] == CODE + 6
    assert run.processor.registers.rax == 0x43


@pytest.mark.parametrize("flags", [TF, AC])
@pytest.mark.native
def test_flags_that_change_how_the_engine_runs(flags: int) -> None:
    fields = {"GUEST_RFLAGS": 2 | flags, "GUEST_CR0": 0x80050031}
    code = b"\xb8" + pack("<I", DATA + 1) + b"\x8b\x18"
    guest = Tiny("p32", ring=3, code=code, fields=fields)
    runs = [begin(guest, EVERYTHING, engine=kind) for kind in ("native", "portable")]
    assert state(runs[0]) == state(runs[1])
    assert trace(runs[0]) == trace(runs[1])
    assert runs[0].vmcs.cells[cells.GUEST_RIP] == CODE + 5
