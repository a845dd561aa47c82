"""ARPL (SDM, "ARPL"): it writes only what it changes, as host processors were seen to do, too."""

from struct import pack

import pytest

from tests.conformance.tiny_guest import ABSENT, DATA, MODES, READ_ONLY, Run, Tiny, begin
from trapgate.sdm.vectors import GP, PF, UD

pytestmark = pytest.mark.conformance

EVERYTHING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
ZF = 1 << 6
ARPL = b"\x63\x03"
"""Arpl [ebx], ax."""


@pytest.fixture(params=["native", "portable"], name="engine")
def each_engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def adjust(engine: str, place: int, selector: int, source: int, **fields: int) -> Run:
    memory = {place: pack("<H", selector)}
    registers = {"rax": source, "rbx": place}
    guest = Tiny("p32", 0, ARPL, memory, {"GUEST_RFLAGS": 0x8D7} | fields, registers)
    return begin(guest, EVERYTHING, engine=engine)


def fault(run: Run) -> tuple[int, int | None]:
    assert run.exit.interruption is not None, run.exit
    return run.exit.interruption.vector, run.exit.interruption.error_code


@pytest.mark.parametrize("rpl", range(4))
@pytest.mark.parametrize("source", range(4))
def test_what_it_answers(rpl: int, source: int, engine: str) -> None:
    run = adjust(engine, DATA, 0xABC8 | rpl, 0x1110 | source)
    assert run.exit.reason.name == "VMCALL"
    assert run.processor.memory.read(DATA, 2) == pack("<H", 0xABC8 | max(rpl, source))
    assert run.vmcs["GUEST_RFLAGS"] == 0x8D7 & ~ZF | (ZF if rpl < source else 0)


def test_a_page_that_is_not_writable(engine: str) -> None:
    assert adjust(engine, READ_ONLY, 3, 1).exit.reason.name == "VMCALL"
    run = adjust(engine, READ_ONLY, 0, 1)
    assert fault(run) == (PF, 3)
    assert run.vmcs["GUEST_RFLAGS"] & 0xFFFF == 0x8D7
    assert fault(adjust(engine, ABSENT, 0, 1)) == (PF, 0)


def test_a_segment_that_is_not_writable(engine: str) -> None:
    run = adjust(engine, DATA, 3, 0, GUEST_DS_ACCESS_RIGHTS=0xC091)
    assert fault(run) == (GP, 0)


@pytest.mark.parametrize("mode", MODES)
def test_other_modes(mode: str, engine: str) -> None:
    code, registers = (b"\x63\x07", {"rdi": DATA if mode != "r16" else 0, "rax": 1})
    run = begin(Tiny(mode, code=code, registers=registers), EVERYTHING, engine=engine)
    if mode == "r16":
        assert run.exit.interruption is not None
        assert run.exit.interruption.vector == UD
    else:
        assert run.exit.reason.name == "VMCALL"
    if mode == "l64":
        assert run.processor.registers.rax == 0, "MOVSXD"


@pytest.mark.parametrize("count", range(4))
def test_a_displacement_behind_prefixes(count: int, engine: str) -> None:
    """Arpl [DATA], ax with a SIB byte, behind 66H and redundant prefixes."""
    code = b"\x66" + b"\x3e" * (count + 1) + b"\x63\x04\x25" + pack("<I", DATA + 0x20)
    guest = Tiny("p32", 0, code, {DATA + 0x20: b"\0"}, {}, {"rax": 2})
    run = begin(guest, EVERYTHING, engine=engine)
    assert run.exit.reason.name == "VMCALL"
    assert run.processor.memory.read(DATA + 0x20, 1) == b"\2"
