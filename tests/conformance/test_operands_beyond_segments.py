"""Operands of LMSW, SMSW, INS and OUTS that their segment does not have.

SDM, the exceptions on the instructions' pages: #GP(0), with SS #SS(0), beyond the limit, of an
unusable segment, or at a non-canonical address. "Relative Priority of Faults and VM Exits": the
exit of INS or OUTS comes before these.
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import ABSENT, CODE, DATA, STACK, TABLES, TASK, Run, Tiny, begin
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import AC, GP, PF, SS

pytestmark = pytest.mark.conformance

LIMIT = 0x11FFF
NOT_CANONICAL = 1 << 47
AT_EAX = {"lmsw": "0f0130", "smsw": "0f0120"}
STRINGS = {"outsb": "6e", "outsd": "6f", "insb": "6c", "insd": "6d"}
SEGMENTS = {"ES": "26", "CS": "2e", "SS": "36", "DS": "3e", "FS": "64", "GS": "65"}


@pytest.fixture(params=["native", "portable"], name="engine")
def each_engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def fault(run: Run) -> tuple[int, int | None] | str:
    """Vector and error code of the exception, which leaves the guest at its first instruction."""
    event = run.exit.interruption
    assert run.vmcs["GUEST_RIP"] == (0 if run.guest.mode == "r16" else CODE) or event is None
    return run.exit.reason.name if event is None else (event.vector, event.error_code)


def run(mode: str, code: str, place: int, engine: str, **fields: int) -> Run:
    registers = {"rax": place, "rsi": place, "rdi": place, "rbp": place, "rdx": 0x80}
    guest = Tiny(mode, code=bytes.fromhex(code), registers=registers, fields=fields)
    return begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)


def short(segment: str) -> dict[str, int]:
    """A data segment that ends behind the page of DATA."""
    return {f"GUEST_{segment}_LIMIT": LIMIT, f"GUEST_{segment}_ACCESS_RIGHTS": 0x4093}


@pytest.mark.parametrize("segment", SEGMENTS)
@pytest.mark.parametrize("name", [*AT_EAX, "outsb", "outsd"])
def test_limits_and_unusable_segments(name: str, segment: str, engine: str) -> None:
    code = SEGMENTS[segment] + (AT_EAX | STRINGS)[name]
    if segment != "CS":
        size = {"outsb": 1, "outsd": 4}.get(name, 2)
        vector = SS if segment == "SS" else GP
        fields = short(segment)
        assert fault(run("p32", code, LIMIT + 1 - size, engine, **fields)) == "VMCALL"
        for place in (LIMIT + 2 - size, LIMIT + 1, 0xFFFF_FF00):
            assert fault(run("p32", code, place, engine, **fields)) == (vector, 0)
        if segment != "SS":
            fields = {f"GUEST_{segment}_ACCESS_RIGHTS": 1 << 16}
            assert fault(run("p32", code, DATA, engine, **fields)) == (GP, 0)
    elif name == "smsw":
        assert fault(run("p32", code, DATA, engine)) == (GP, 0)
    else:
        assert fault(run("p32", code, DATA, engine)) == "VMCALL"


@pytest.mark.parametrize("name", ["insb", "insd"])
def test_ins_goes_to_es_whatever_the_prefix(name: str, engine: str) -> None:
    size = 1 if name == "insb" else 4
    code = SEGMENTS["SS"] + STRINGS[name]
    assert fault(run("p32", code, LIMIT + 1 - size, engine, **short("ES"))) == "VMCALL"
    assert fault(run("p32", code, LIMIT + 2 - size, engine, **short("ES"))) == (GP, 0)
    read_only = {"GUEST_ES_ACCESS_RIGHTS": 0xC091}
    assert fault(run("p32", code, DATA, engine, **read_only)) == (GP, 0)
    unusable = {"GUEST_ES_ACCESS_RIGHTS": 1 << 16}
    assert fault(run("p32", code, DATA, engine, **unusable)) == (GP, 0)


def test_repetitions_stop_at_the_limit(engine: str) -> None:
    guest = Tiny("p32", code=b"\xf3\x6d", fields=short("ES"))
    guest.registers |= {"rdi": LIMIT - 10, "rcx": 9, "rdx": 0x80}
    got = begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)
    assert fault(got) == (GP, 0)
    assert got.processor.registers.rdi == LIMIT - 2
    assert got.processor.registers.rcx == 7
    assert got.processor.memory.read(LIMIT - 10, 12) == b"\xff" * 8 + bytes(4)


@pytest.mark.parametrize("name", [*AT_EAX, *STRINGS])
def test_addresses_that_are_not_canonical(name: str, engine: str) -> None:
    code = (AT_EAX | STRINGS)[name]
    for place in (NOT_CANONICAL, -NOT_CANONICAL - 1 & (1 << 64) - 1):
        assert fault(run("l64", code, place, engine)) == (GP, 0)
        # SS as a prefix means nothing.
        assert fault(run("l64", SEGMENTS["SS"] + code, place, engine)) == (GP, 0)
    base = {"GUEST_FS_BASE": NOT_CANONICAL - 1}
    if "ins" not in name:
        assert fault(run("l64", SEGMENTS["FS"] + code, 1, engine, **base)) == (GP, 0)


@pytest.mark.parametrize("code", ["0f017500", "0f016500"])
def test_addresses_by_rbp_are_in_the_stack_segment(code: str, engine: str) -> None:
    # With DS as a prefix, too, which means nothing.
    for prefix in ("", SEGMENTS["DS"]):
        assert fault(run("l64", prefix + code, NOT_CANONICAL, engine)) == (SS, 0)
    # But not with FS.
    assert fault(run("l64", SEGMENTS["FS"] + code, NOT_CANONICAL, engine)) == (GP, 0)


@pytest.mark.parametrize("code", ["0f0134", "0f0124", "6f", "6d"])
def test_the_end_of_64_kb_in_real_mode(code: str, engine: str) -> None:
    limits = {f"GUEST_{name}_LIMIT": 0xFFFF for name in SEGMENTS}
    assert fault(run("r16", code, 0xFFFE, engine, **limits)) == "VMCALL"
    assert fault(run("r16", code, 0xFFFF, engine, **limits)) == (GP, None)
    if code != "6d":
        expected = (SS, None)
        assert fault(run("r16", SEGMENTS["SS"] + code, 0xFFFF, engine, **limits)) == expected


@pytest.mark.parametrize("name", STRINGS)
def test_the_exit_comes_first(name: str, engine: str) -> None:
    guest = Tiny("p32", code=bytes.fromhex(STRINGS[name]), fields=short("ES") | short("DS"))
    guest.registers |= {"rsi": LIMIT + 1, "rdi": LIMIT + 1, "rdx": 0x80}
    controls = {
        "EXCEPTION_BITMAP": 0xFFFFFFFF,
        "PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_UNCONDITIONAL_IO_EXITING,
    }
    assert begin(guest, controls, engine=engine).exit.reason == ExitReason.IO_INSTRUCTION


def test_io_permission_comes_first(engine: str) -> None:
    # The I/O permission bitmap lies beyond the TSS, so each port is #GP; the operand would be #SS.
    code = bytes.fromhex(SEGMENTS["SS"] + "6e")
    guest = Tiny("p32", ring=3, code=code, fields=short("SS") | {"GUEST_TR_SELECTOR": TASK})
    guest.fields["GUEST_SS_ACCESS_RIGHTS"] = 0x40F3
    guest.registers |= {"rsi": LIMIT + 1, "rdx": 0x80}
    assert fault(begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)) == (GP, 0)


@pytest.mark.parametrize("mode", ["p32", "l64"])
@pytest.mark.parametrize("name", ["outsw", "outsd", "insw", "insd"])
def test_alignment_of_strings_in_ring_3(name: str, mode: str, engine: str) -> None:
    code = {"w": "66", "d": ""}[name[-1]] + STRINGS[name[:-1] + "d"]
    guest = Tiny(mode, ring=3, code=bytes.fromhex("f3" + code))
    guest.fields |= {"GUEST_RFLAGS": 1 << 18 | 0x3002, "GUEST_CR0": 0x80050031}
    # #AC comes after page faults; and only where alignment is checked.
    absent = (PF, 6 if name.startswith("ins") else 4)
    cases = ((DATA + 1, (AC, 0)), (DATA + 4, "VMCALL"), (ABSENT + 1, absent))
    for place, expected in cases:
        guest.registers = {"rsi": place, "rdi": place, "rcx": 3, "rdx": 0x80}
        assert fault(begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)) == expected
    guest.fields["GUEST_CR0"] = 0x80010031
    guest.registers["rsi"] = guest.registers["rdi"] = DATA + 1
    assert fault(begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)) == "VMCALL"


LAST_PAGE = {
    TABLES + 255 * 8: pack("<Q", TABLES + 0x1000 | 7),
    TABLES + 0x1000 + 511 * 8: pack("<Q", TABLES + 0x2000 | 7),
    TABLES + 0x2000 + 511 * 8: pack("<Q", TABLES + 0x3000 | 7),
    TABLES + 0x3000 + 511 * 8: pack("<Q", DATA | 7),
}
"""Tables that map the page below the first non-canonical address to DATA."""
HALF_WAY = {
    "mov [rax-4], rcx": ("488948fc", GP),
    "mov [rbp-4], rcx": ("48894dfc", SS),
    "add [rbp-4], rcx": ("48014dfc", SS),
    "push rcx": ("51", SS),
    "pop rcx": ("59", SS),
    "push [rax-4]": ("ff70fc", GP),
    "call": ("e800000000", SS),
    "call [rax-4]": ("ff50fc", GP),
    "ret": ("c3", SS),
    "leave": ("c9", SS),
    "pushf": ("9c", SS),
    "popf": ("9d", SS),
    "enter": ("c8080000", SS),
    "movsq": ("48a5", GP),
    "fld": ("dd45fc", SS),
    "movups": ("0f1145fc", SS),
    "lmsw": ("0f0175ff", SS),
}


@pytest.mark.parametrize("name", HALF_WAY)
def test_the_end_of_the_lower_half(name: str, engine: str) -> None:
    code, vector = HALF_WAY[name]
    guest = Tiny("l64", code=bytes.fromhex(code), memory=LAST_PAGE)
    pushes = name in ("push rcx", "call", "pushf", "enter")
    end = NOT_CANONICAL
    guest.registers |= {"rax": end, "rcx": 0x1234, "rsi": end - 4, "rdi": DATA}
    guest.registers["rbp"] = end - 4 if name == "leave" else end
    if name not in ("push [rax-4]", "call [rax-4]"):
        guest.fields["GUEST_RSP"] = end + 4 if pushes else end - 4
    got = begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)
    assert fault(got) == (vector, 0)
    assert got.processor.memory.read(DATA + 0xFF0, 16) == bytes(16)
    assert got.vmcs["GUEST_RSP"] == guest.fields.get("GUEST_RSP", STACK)
