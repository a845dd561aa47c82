"""When all cached translations are to go, none is left, however few or many there are.

TRAPGATE_AUDIT=1 looks through the engine's whole tables whenever that has happened, and ends the
run if there is one.
"""

import random
from struct import pack

import pytest

from tests.conformance import tiny_guest as tg
from tests.conformance.tiny_guest import Tiny, begin
from trapgate.engine import machine as mc
from trapgate.sdm.reasons import ExitReason

ALIASES = 48
FIRST = 256
"""Large pages from linear 4000_0000H on, which all lead to physical 0."""
LARGE = 1 << 22
FUNCTION, WORD = 0x18000, 0x19010
PSE, PGE = 1 << 4, 1 << 7
INVLPG = b"\x0f\x01\x3d"
CALL = b"\xff\xd0\x90"
"""CALL EAX; NOP."""
FLUSHES = (
    bytes.fromhex("0f20d8 0f22d8"),  # mov eax, cr3; mov cr3, eax
    bytes.fromhex("0f20e0 3480 0f22e0"),  # mov eax, cr4; xor al, 80h; mov cr4, eax
)


@pytest.fixture(autouse=True)
def audit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAPGATE_AUDIT", "1")


def linear(alias: int, physical: int) -> int:
    return (FIRST + alias) * LARGE + physical


def guest(seed: int) -> Tiny:
    """Loads, stores and calls by aliases, some of which share a place in a table, and flushes."""
    chosen = random.Random(seed)
    code = b""
    for count in [*range(1, ALIASES, 3), *(chosen.randrange(1, ALIASES) for _ in range(30))]:
        for alias in chosen.sample(range(ALIASES), count):
            place = pack("<I", linear(alias, WORD + 0x1000 * chosen.randrange(4)))
            target = pack("<I", linear(alias, FUNCTION))
            load, store = b"\x8b\x05" + place, b"\x89\x05" + place  # mov eax, [place] and back
            code += chosen.choice((load, store, b"\xb8" + target + CALL))  # mov eax, target
            if chosen.randrange(16) == 0:
                code += INVLPG + place
        code += chosen.choice(FLUSHES)
    large = b"".join(pack("<I", 0x83) for _ in range(ALIASES))
    return Tiny(
        "p32",
        0,
        code,
        {tg.TABLES + 4 * FIRST: large, FUNCTION: b"\x43\xc3"},  # inc ebx; ret
        {"GUEST_CR4": 1 << 13 | PSE},
        {"rbx": 0},
    )


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_left(seed: int) -> None:
    tiny = guest(seed)
    run = begin(tiny, engine="native")
    assert run.exit.reason == ExitReason.VMCALL
    assert run.vmcs["GUEST_RIP"] == tg.CODE + len(tiny.code)
    assert run.processor.registers.rbx == tiny.code.count(CALL)
    assert run.processor.engine.cells[mc.LEFT_OVER] == 0


def test_the_audit_sees_what_is_left() -> None:
    """As if nothing had been noted of entries that were set."""
    run = begin(Tiny("p32", 0, tg.VMCALL), engine="native")
    engine = run.processor.engine
    assert engine.cells[mc.ENTRIES] > 0
    engine.cells[mc.ENTRIES] = 0
    engine.flush_translations()
    assert engine.cells[mc.LEFT_OVER] == 1
