"""Far JMP and RET in real-address and virtual-8086 mode (SDM, "JMP", "RET": their pseudocode).

An offset beyond the limit of CS is #GP at the instruction, with CS as it was.
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import CODE, TF, VMCALL, Run, Tiny, begin
from trapgate.sdm.vectors import DB, GP, SS

pytestmark = pytest.mark.conformance

SELECTOR = CODE >> 4
OTHER = SELECTOR + 0x10
TARGET, SP, OPERAND, VM = 0x800, 0x4000, 0xB00, 1 << 17
SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS")
MODES = ("real", "virtual-8086")
CODES = {
    "JMP": b"\x66\xea{}",
    "JMP, many prefixes": b"\x26\x2e\x36\x3e\x26\x66\xea{}",
    "JMP through memory": b"\x66\xff\x2e" + pack("<H", OPERAND),
    "RET": b"\x66\xcb",
    "RET and release": b"\x66\xca\x06\x00",
}
EXCEPTIONS = {"EXCEPTION_BITMAP": 0xFFFFFFFF}


@pytest.fixture(params=["native", "portable"], name="engine")
def each_engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def guest_of(mode: str, code: bytes, offset: int, **fields: int) -> Tiny:
    """8086 code whose pointers, on the stack, at OPERAND and in place of {}, are OTHER:offset."""
    pointer = pack("<IH", offset, OTHER)
    code = code.replace(b"{}", pointer)
    state = {"GUEST_RIP": 0, "GUEST_RSP": SP} | {f"GUEST_{name}_BASE": CODE for name in SEGMENTS}
    state |= {f"GUEST_{name}_SELECTOR": SELECTOR for name in SEGMENTS}
    if mode != "real":
        state |= {f"GUEST_{name}_LIMIT": 0xFFFF for name in SEGMENTS}
        state |= {f"GUEST_{name}_ACCESS_RIGHTS": 0xF3 for name in SEGMENTS}
        state["GUEST_RFLAGS"] = 2 | VM
    memory = {
        CODE + SP: pack("<II", offset, 0xABCD0000 | OTHER),
        CODE + OPERAND: pointer,
        16 * OTHER + TARGET: VMCALL,
    }
    return Tiny("r16" if mode == "real" else "p32", 0, code, memory, state | fields)


def place(run: Run) -> tuple[int, ...]:
    names = ("RIP", "CS_SELECTOR", "CS_BASE", "RSP")
    return tuple(run.vmcs[f"GUEST_{name}"] for name in names)


def vector(run: Run) -> int:
    assert run.exit.interruption is not None, run.exit
    return run.exit.interruption.vector


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CODES)
def test_beyond_the_limit(name: str, mode: str, engine: str) -> None:
    run = begin(guest_of(mode, CODES[name], 0x10000), EXCEPTIONS, engine=engine)
    assert vector(run) == GP
    assert place(run) == (0, SELECTOR, CODE, SP)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CODES)
def test_within_the_limit(name: str, mode: str, engine: str) -> None:
    run = begin(guest_of(mode, CODES[name], TARGET), EXCEPTIONS, engine=engine)
    released = {"RET": 8, "RET and release": 14}.get(name, 0)
    assert run.exit.reason.name == "VMCALL"
    assert place(run) == (TARGET, OTHER, 16 * OTHER, SP + released)


@pytest.mark.parametrize(
    "code", [b"\xea\x00\x08" + pack("<H", OTHER), b"\xff\x2e\x00\x0a", b"\xcb"]
)
def test_16_bit_operands_and_a_lower_limit(code: bytes, engine: str) -> None:
    for limit, expected in ((TARGET - 1, SELECTOR), (TARGET, OTHER)):
        guest = guest_of("real", code, TARGET, GUEST_CS_LIMIT=limit)
        guest.memory |= {CODE + SP: pack("<HH", TARGET, OTHER)}
        guest.memory |= {CODE + 0xA00: pack("<HH", TARGET, OTHER)}
        run = begin(guest, EXCEPTIONS, engine=engine)
        assert vector(run) == GP
        rip = 0 if expected == SELECTOR else TARGET
        assert place(run)[:2] == (rip, expected), "VMCALL's last bytes are beyond the limit, too"


def test_operands_beyond_their_segments(engine: str) -> None:
    run = begin(guest_of("real", b"\x66\xcb", 0, GUEST_RSP=0xFFFA), EXCEPTIONS, engine=engine)
    assert (vector(run), place(run)) == (SS, (0, SELECTOR, CODE, 0xFFFA))
    code = b"\x66\xff\x2e\xfb\xff"
    run = begin(guest_of("real", code, 0), EXCEPTIONS, engine=engine)
    assert (vector(run), place(run)[0]) == (GP, 0)
    code = b"\x36" + code
    run = begin(guest_of("real", code, 0), EXCEPTIONS, engine=engine)
    assert (vector(run), place(run)[0]) == (SS, 0)


@pytest.mark.parametrize("name", CODES)
def test_a_single_step(name: str, engine: str) -> None:
    guest = guest_of("real", CODES[name], TARGET, GUEST_RFLAGS=2 | TF)
    run = begin(guest, EXCEPTIONS, engine=engine)
    assert (vector(run), place(run)[:2]) == (DB, (TARGET, OTHER))
