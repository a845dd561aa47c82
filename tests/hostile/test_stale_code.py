"""No translated code outlives the bytes that it was made from, whoever changes them."""

import os
import subprocess
import sys
from pathlib import Path
from struct import pack

import pytest

from tests.conformance import tiny_guest as tg
from tests.conformance.tiny_guest import Tiny, begin
from tests.conformance.vmx import ept_guests as eg
from tests.conformance.vmx.ept_guests import Entries
from tests.conformance.vmx.guests import Case
from tests.conformance.vmx.guests import run as run_cases
from tests.conformance.vmx.harness import guest_fields
from tests.hostile.jit_guest import ALL_WELL, PAGES, POOL, JitGuest, P, U, W
from trapgate.errors import EngineError
from trapgate.sdm.reasons import ExitReason

ROOT = Path(__file__).parents[2]
ENGINES = ("native", "portable")
PAGED = ("p32", "pae", "l64")
PRIMARY, SECONDARY = "PRIMARY_PROCESSOR_BASED_CONTROLS", "SECONDARY_PROCESSOR_BASED_CONTROLS"
ENABLE_EPT = 1 << 1


@pytest.fixture(autouse=True)
def audit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAPGATE_AUDIT", "1")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("mode", PAGED)
@pytest.mark.parametrize("engine", ENGINES)
def test_guests_that_write_code(engine: str, mode: str, seed: int) -> None:
    run = begin(JitGuest(mode, seed, 600).tiny(), engine=engine)
    assert run.exit.reason == ExitReason.VMCALL
    assert run.processor.registers.rbx == ALL_WELL


@pytest.mark.parametrize("mode", PAGED)
def test_guests_that_write_code_under_ept(mode: str) -> None:
    """Guest-physical pages that lead to the same page, under a VMM of x86 code."""
    far = 0x14_0000
    entries = {far + n * 0x1000: POOL + n * 0x1000 | eg.PAGE for n in range(PAGES)}
    pointers = {"GUEST_PDPTE0": tg.TABLES + 0x2000 | 1} if mode == "pae" else {}
    for seed in range(100, 106):
        guest = JitGuest(mode, seed, 400, (POOL, far))
        tiny = guest.tiny()
        tiny.memory.update(Entries(entries).memory())
        controls = guest_fields(64, tiny)
        controls = {PRIMARY: controls[PRIMARY] | 1 << 31, SECONDARY: ENABLE_EPT, **pointers}
        case = Case(tiny, {**controls, "EPT_POINTER": eg.POINTER})
        (done,) = run_cases(64, mode, [case])
        assert (done.verdict, done.reason, done.rip) == ("exit", ExitReason.VMCALL, guest.end)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_accessed_flag_in_code(engine: str) -> None:
    """05H is ADD EAX, and a present entry; with its accessed flag it is 25H, AND EAX."""
    table, linear = 0x50000, 0x80_0000
    entry = pack("<II", tg.DATA & ~0xFFF | 5, 0xC300)  # add eax, 110H; ret
    call = b"\xb8\x01\0\0\0\xbd" + pack("<I", table) + b"\xff\xd5"
    code = (
        call + b"\x89\xc3"  # mov ebx, eax
        + b"\xa1" + pack("<I", linear)
        + call + b"\x89\xc1"  # mov ecx, eax
    )  # fmt: skip
    memory = {table: entry, tg.TABLES + (linear >> 22) * 4: pack("<I", table | P | W | U)}
    run = begin(Tiny("p32", 0, code, memory), engine=engine)
    assert run.exit.reason == ExitReason.VMCALL
    assert (run.processor.registers.rbx, run.processor.registers.rcx) == (0x111, 0)


@pytest.mark.parametrize("mode", PAGED)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_store_from_outside(engine: str, mode: str) -> None:
    """A VMM patches the function that a loop calls, at each exit."""
    function = 0x50000
    code = b"\xbd" + pack("<I", function) + b"\xff\xd5\x0f\x01\xc1\xeb\xf4"
    run = begin(Tiny(mode, 0, code, {function: b"\xb8\0\0\0\0\xc3"}), engine=engine)
    for value in range(1, 20):
        run.processor.memory.write(function + 1, bytes((value,)))
        assert run.skip().reason == ExitReason.VMCALL
        assert run.processor.registers.rax == value


ROUNDS = 3000
"""More than the stores after which a page's code is dropped."""


@pytest.mark.parametrize("where", range(8))
@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("engine", ENGINES)
def test_read_modify_write_beside_its_own_code(engine: str, size: int, where: int) -> None:
    """ADD [data], EAX where data is on the code's page, aligned or not: each round counts once."""
    data = 0x50000 + 0x800 + where
    prefix = {2: b"\x66", 4: b"", 8: b"\x48"}[size]
    # A few stores of bytes first, so that the code is dropped at another byte of the store.
    function = (
        b"\xb9" + pack("<I", ROUNDS) + b"\xbb" + pack("<I", data) + b"\xb8\x03\x01\0\0"
        + b"\xfe\x43\x40" * where
        + prefix + b"\x01\x03\x83\xe9\x01\x75" + bytes((0xFB - 2 - len(prefix),)) + b"\xc3"
    )  # fmt: skip
    code = b"\xbd\0\0\x05\0\xff\xd5"
    run = begin(Tiny("l64", 0, code, {0x50000: function}), engine=engine)
    assert run.exit.reason == ExitReason.VMCALL
    expected = 0x103 * ROUNDS & (1 << 8 * size) - 1
    assert int.from_bytes(run.processor.memory.read(data, size), "little") == expected


@pytest.mark.parametrize("engine", ENGINES)
def test_read_modify_write_into_its_own_block(engine: str) -> None:
    """An unaligned dword whose first half lies before the block, and whose second begins it."""
    block = 0x50000 + 0x403
    rounds = 100
    loop = b"\xb0\0\x81\x03" + pack("<I", 0x0100_0001) + b"\x83\xe9\x01\x75\xf3\xc3"
    code = (
        b"\xbb" + pack("<I", block - 2) + b"\xb9" + pack("<I", rounds)
        + b"\xbd" + pack("<I", block) + b"\xff\xd5"
    )  # fmt: skip
    run = begin(Tiny("p32", 0, code, {block: loop}), engine=engine)
    assert run.exit.reason == ExitReason.VMCALL
    stored = int.from_bytes(run.processor.memory.read(block - 2, 4), "little")
    assert stored == 0x00B0_0000 + rounds * 0x0100_0001 & 0xFFFF_FFFF
    assert run.processor.registers.rax & 0xFF == rounds - 1


WITHOUT = """
import ctypes
from unicorn.unicorn_py3.unicorn import uclib
from tests.conformance.tiny_guest import begin
from tests.hostile.jit_guest import JitGuest
from trapgate.engine.library.linkage import slots
from trapgate.engine.translator.translation import translator

name = "tlb_set_dirty_x86_64"
place = slots(uclib, (name,))[name]
translator()
ctypes.c_uint64.from_address(place).value = ctypes.cast(getattr(uclib, name), ctypes.c_void_p).value
for seed in range(10):
    begin(JitGuest("pae", seed, 600).tiny(), engine="{engine}")
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_the_audit_finds_what_an_alias_leaves(engine: str) -> None:
    """With the engine's own idea of when a store need not be told."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(engine=engine)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert f"{EngineError.__name__}: translated code at" in done.stderr
