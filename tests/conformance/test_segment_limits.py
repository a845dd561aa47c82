"""Limits and types of segments, at every access that they forbid (SDM, "Limit Checking", "Type
Checking", "Segment Limits and 8086 wraparound"): real mode, virtual-8086, 16- and 32-bit code.

Each case is a few bytes of code and the fault that it must meet: its vector and where, from the
code's start. No fault means that the guest reaches the VMCALL behind its code.
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import (
    ABSENT,
    CODE,
    CODE_32,
    DATA,
    GDT,
    READABLE,
    STACK,
    Tiny,
    begin,
    descriptor,
)
from trapgate.sdm.vectors import GP, SS

pytestmark = pytest.mark.conformance

ALL_EXCEPTIONS = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS")
BYTES = 0x58
"""Selector of a segment of our own."""
AT_DATA = pack("<I", DATA)
FINE = None


@pytest.fixture(params=["native", "portable"], name="engine")
def each_engine(request: pytest.FixtureRequest) -> str:
    """Both engines; the portable one on this library has the same checks."""
    return str(request.param)


def outcome(guest: Tiny, engine: str) -> tuple[int, int] | None:
    """Vector of the guest's first exception and its distance from the code's start, if any."""
    run = begin(guest, ALL_EXCEPTIONS, engine=engine)
    event = run.exit.interruption
    if event is None:
        assert run.exit.reason.name == "VMCALL"
        return None
    assert event.error_code in (None, 0)
    base = 0 if guest.long else run.vmcs["GUEST_CS_BASE"]
    return event.vector, base + run.vmcs["GUEST_RIP"] - CODE


def real(code: str) -> Tiny:
    limits = {f"GUEST_{name}_LIMIT": 0xFFFF for name in SEGMENTS}
    return Tiny("r16", code=bytes.fromhex(code), fields=limits)


def vm86(code: str) -> Tiny:
    fields = {"GUEST_RFLAGS": 0x23002, "GUEST_RIP": 0, "GUEST_RSP": 0x8000}
    for name in SEGMENTS:
        fields |= {
            f"GUEST_{name}_LIMIT": 0xFFFF,
            f"GUEST_{name}_ACCESS_RIGHTS": 0xF3,
            f"GUEST_{name}_BASE": CODE,
            f"GUEST_{name}_SELECTOR": CODE >> 4,
        }
    return Tiny("p32", code=bytes.fromhex(code), fields=fields)


def code_16(code: str, **fields: int) -> Tiny:
    small = {
        "GUEST_CS_ACCESS_RIGHTS": 0x9B,
        "GUEST_CS_LIMIT": 0xFFFF,
        "GUEST_CS_BASE": CODE,
        "GUEST_RIP": 0,
    }
    return Tiny("p32", code=bytes.fromhex(code), fields=small | fields)


def code_32(code: str, **fields: int) -> Tiny:
    return Tiny("p32", code=bytes.fromhex(code), fields=fields)


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        ("a1feff", FINE),  # mov ax, [FFFEH]
        ("a1ffff", (GP, 0)),
        ("a0ffff", FINE),
        ("a3ffff", (GP, 0)),
        ("0106ffff", (GP, 0)),  # add [FFFFH], ax
        ("beffffad", (GP, 3)),  # lodsw
        ("bc010050", (SS, 3)),  # mov sp, 1; push ax
        ("bcffff58", (SS, 3)),  # mov sp, FFFFH; pop ax
        ("bc000050", FINE),  # a push wraps to FFFEH
        ("bdffff8b4600", (SS, 3)),  # mov ax, [bp]
        ("66bb45230100678a03", (GP, 6)),  # mov al, [ebx]
        ("648b06ffff", (GP, 0)),  # fs:
        ("c406feff", (GP, 0)),  # les ax, [FFFEH]: its second half
        ("c406fcff", FINE),
        ("0f6f06f9ff", (GP, 0)),  # movq mm0
        ("0f1006f4ff", (GP, 0)),  # movups xmm0: its second half
        ("0f1006f0ff", FINE),
        ("db2ef7ff", (GP, 0)),  # fld tbyte
        ("db2ef6ff", FINE),
        ("dbe3d9eedb3ef7ff", (GP, 4)),  # fstp tbyte
        ("0fae0608fe", (GP, 0)),  # fxsave
        ("0fae0600fe", FINE),
        ("66dd3695ff", (GP, 0)),  # fnsave, 108 bytes
        ("66dd3694ff", FINE),
        ("dd36a3ff", (GP, 0)),  # fnsave, 94 bytes
        ("dd36a2ff", FINE),
        ("d936f3ff", (GP, 0)),  # fnstenv, 14 bytes
        ("d936f2ff", FINE),
        ("0fc70ef9ff", (GP, 0)),  # cmpxchg8b
        ("0fc70ef8ff", FINE),
        ("f00fb106ffff", (GP, 0)),  # lock cmpxchg
        ("8706ffff", (GP, 0)),  # xchg
        ("0f0116fbff", (GP, 0)),  # lgdt
        ("0f0106fbff", (GP, 0)),  # sgdt
        ("beffffbf0010a5", (GP, 6)),  # movsw, its source
        ("be0010bfffffa5", (GP, 6)),  # ... and its destination
    ],
)
@pytest.mark.parametrize("mode", [real, vm86])
def test_offsets_at_the_end_of_64_kb(
    engine: str, mode: object, code: str, ends: tuple[int, int] | None
) -> None:
    assert callable(mode)
    assert outcome(mode(code), engine) == ends


def test_a_string_wraps_at_64_kb(engine: str) -> None:
    assert outcome(real("bff0ffb92000f3aa"), engine) is FINE  # rep stosb


SHORT = {"GUEST_DS_LIMIT": DATA + 2, "GUEST_DS_ACCESS_RIGHTS": 0x4093}
DOWN = {"GUEST_DS_LIMIT": 0x11FFF, "GUEST_DS_ACCESS_RIGHTS": 0xC097}
DOWN_16 = {"GUEST_DS_LIMIT": 0x1FFF, "GUEST_DS_ACCESS_RIGHTS": 0x97}
READ_ONLY = {"GUEST_DS_ACCESS_RIGHTS": 0xC091}
UNUSABLE = {"GUEST_DS_ACCESS_RIGHTS": 0x10000}
LOW_STACK = {"GUEST_SS_LIMIT": STACK - 5, "GUEST_SS_ACCESS_RIGHTS": 0x4093}


@pytest.mark.parametrize(
    ("code", "fields", "ends"),
    [
        ("a100100100", {}, FINE),
        ("a100100100", SHORT, (GP, 0)),
        ("66a100100100", SHORT, FINE),
        ("66a101100100", SHORT, FINE),
        ("66a102100100", SHORT, (GP, 0)),
        ("26a100100100", SHORT, FINE),  # es:
        ("a1fc1f0100", DOWN, (GP, 0)),
        ("a1fe1f0100", DOWN, (GP, 0)),
        ("a100200100", DOWN, FINE),
        ("a3ff1f0100", DOWN, (GP, 0)),
        ("a1fdff0000", DOWN_16, (GP, 0)),  # beyond FFFFH
        ("a1fcff0000", DOWN_16, FINE),
        ("a100100100", READ_ONLY, FINE),
        ("a300100100", READ_ONLY, (GP, 0)),
        ("ff0500100100", READ_ONLY, (GP, 0)),  # inc: its store
        ("a100100100", UNUSABLE, (GP, 0)),
        ("2ea300100100", {}, (GP, 0)),  # a store by way of CS
        ("2ea100100100", {}, FINE),
        ("2ea100100100", {"GUEST_CS_ACCESS_RIGHTS": 0xC099}, (GP, 0)),  # execute-only
        ("50", LOW_STACK, (SS, 0)),
        ("5858", LOW_STACK | {"GUEST_RSP": STACK - 8}, (SS, 1)),
        ("c8100000", LOW_STACK | {"GUEST_RSP": STACK}, (SS, 0)),  # enter
        ("36a100100100", LOW_STACK, (SS, 0)),  # ss:
        ("31c08ee865a100100100", {}, (GP, 4)),  # mov gs, null; gs:
        ("31c08ed8a100100100", {}, (GP, 4)),
        ("b8600000008ed8a100100100", {}, FINE),  # ds: read-only
        ("b8600000008ed8a300100100", {}, (GP, 7)),
        ("b8600000008ed8b8100000008ed8a300100100", {}, FINE),
    ],
)
def test_limits_types_and_directions(
    engine: str, code: str, fields: dict[str, int], ends: tuple[int, int] | None
) -> None:
    assert outcome(code_32(code, **fields), engine) == ends


@pytest.mark.parametrize(
    ("fields", "ends"),
    [({}, FINE), ({"GUEST_DS_LIMIT": 0xFFFF, "GUEST_DS_ACCESS_RIGHTS": 0x93}, (GP, 0))],
)
def test_16_bit_code_with_flat_and_with_small_data(
    engine: str, fields: dict[str, int], ends: tuple[int, int] | None
) -> None:
    assert outcome(code_16("a1ffff", **fields), engine) == ends


def test_64_bit_code_has_no_limits(engine: str) -> None:
    fields = {"GUEST_DS_LIMIT": 0, "GUEST_DS_ACCESS_RIGHTS": 0x10000}
    assert outcome(Tiny("l64", code=b"\x8b\x04\x25" + AT_DATA, fields=fields), engine) is FINE


def load_segment(register: int, selector: int) -> bytes:
    """Mov eax, selector; mov segment, ax (0 ES, 2 SS, 3 DS, 4 FS, 5 GS)."""
    return b"\xb8" + pack("<I", selector) + b"\x8e" + bytes([0xC0 | register << 3])


@pytest.mark.parametrize(("name", "prefix"), [("FS", b"\x64"), ("GS", b"\x65")])
def test_limit_of_fs_and_gs(engine: str, name: str, prefix: bytes) -> None:
    fields = {f"GUEST_{name}_LIMIT": 0xFFF, f"GUEST_{name}_ACCESS_RIGHTS": 0x4093}
    assert outcome(Tiny("p32", code=prefix + b"\xa1" + AT_DATA, fields=fields), engine) == (GP, 0)


@pytest.mark.parametrize(("register", "prefix"), [(3, b""), (0, b"\x26"), (2, b"\x36")])
def test_limit_of_a_segment_that_the_guest_has_just_loaded(
    engine: str, register: int, prefix: bytes
) -> None:
    small = {GDT + BYTES: pack("<Q", descriptor(0, 0xFFF, 0x4093))}
    code = load_segment(register, BYTES) + prefix + b"\xa1" + AT_DATA
    vector = SS if register == 2 else GP
    assert outcome(Tiny("p32", code=code, memory=small), engine) == (vector, 7)


@pytest.mark.parametrize(("register", "prefix"), [(3, b""), (0, b"\x26"), (4, b"\x64")])
def test_read_through_a_null_selector(engine: str, register: int, prefix: bytes) -> None:
    code = load_segment(register, 0) + prefix + b"\xa1" + AT_DATA
    assert outcome(Tiny("p32", code=code), engine) == (GP, 7)


@pytest.mark.parametrize(("register", "prefix"), [(3, b""), (5, b"\x65")])
def test_write_to_a_read_only_data_segment(engine: str, register: int, prefix: bytes) -> None:
    code = load_segment(register, READABLE) + prefix + b"\xa3" + AT_DATA
    assert outcome(Tiny("p32", code=code), engine) == (GP, 7)


def test_a_readable_code_segment_as_data(engine: str) -> None:
    assert outcome(Tiny("p32", code=load_segment(3, CODE_32) + b"\xa1" + AT_DATA), engine) is FINE
    assert outcome(Tiny("p32", code=load_segment(3, CODE_32) + b"\xa3" + AT_DATA), engine) == (
        GP,
        7,
    )


# Code beyond the limit of CS.

CS_SHORT = {"GUEST_CS_LIMIT": CODE + 5, "GUEST_CS_ACCESS_RIGHTS": 0x409B}
CS_LONGER = {"GUEST_CS_LIMIT": CODE + 0x20, "GUEST_CS_ACCESS_RIGHTS": 0x409B}


@pytest.mark.parametrize(
    ("guest", "ends"),
    [
        (code_32("b800020100ffe0", **CS_LONGER), 5),  # jmp eax
        (code_32("b800020100ffd0", **CS_LONGER), 5),  # call eax
        (code_32("6800020100c3", **CS_LONGER), 5),  # ret
        (code_32("e9fb010000", **CS_LONGER), 0),
        (code_32("90e8fb010000", **CS_LONGER), 1),
        (code_32("31c00f84fb010000", **CS_LONGER), 2),  # jz
        (code_32("31c00f85fb010000" + "90" * 4, **CS_LONGER), FINE),  # jnz
        (code_32("b902000000e27f", **CS_LONGER), 5),  # loop
        (real("66b84523010066ffe0"), 6),
        (real("66b8452301006650" + "66c3"), 8),
        (real("66b84523010066ffd0"), 6),
        (real("66e900000100"), 0),
        (real("66e800000100"), 0),
    ],
)
def test_branches_beyond_the_limit_fault_at_the_branch(
    engine: str, guest: Tiny, ends: int | None
) -> None:
    stack = {"p32": STACK, "r16": STACK}[guest.mode]
    run = begin(guest, ALL_EXCEPTIONS, engine=engine)
    if ends is FINE:
        assert run.exit.reason.name == "VMCALL"
        return
    assert run.exit.interruption is not None
    assert run.exit.interruption.vector == GP
    place = run.vmcs["GUEST_RIP"] + (run.vmcs["GUEST_CS_BASE"] or 0) - CODE
    pushed = {"6800020100c3": 4, "66b8452301006650" + "66c3": 4}.get(guest.code.hex(), 0)
    assert (place, run.vmcs["GUEST_RSP"]) == (ends, stack - pushed)


def test_loop_beyond_the_limit_leaves_ecx(engine: str) -> None:
    run = begin(code_32("b902000000e27f", **CS_LONGER), ALL_EXCEPTIONS, engine=engine)
    assert run.processor.registers.rcx == 2


@pytest.mark.parametrize(
    ("code", "place"),
    [("90" * 10, 6), ("909090b811111111", 3)],
    ids=["begins beyond it", "straddles it"],
)
def test_code_that_runs_into_the_limit(code: str, place: int, engine: str) -> None:
    assert outcome(code_32(code, **CS_SHORT), engine) == (GP, place)


@pytest.mark.parametrize(
    ("code", "start", "place"),
    [("b83412", 0xFFFE, 0xFFFE), ("909090909090", 0xFFFC, 0x10000), ("90b83412", 0xFFFD, 0xFFFE)],
)
def test_real_mode_code_at_the_end_of_64_kb(code: str, start: int, place: int, engine: str) -> None:
    guest = real("e9" + (start - 3).to_bytes(2, "little").hex())
    guest.memory[CODE + start] = bytes.fromhex(code)
    assert outcome(guest, engine) == (GP, place)


NOT_CANONICAL = "48b80000000000800000"


@pytest.mark.parametrize(
    ("code", "place", "pushed"),
    [
        (NOT_CANONICAL + "ffe0", 10, 0),
        (NOT_CANONICAL + "ffd0", 10, 0),
        (NOT_CANONICAL + "50c3", 11, 8),
        (NOT_CANONICAL + "50c21000", 11, 8),
        (NOT_CANONICAL + "50f3c3", 11, 8),
        (NOT_CANONICAL + "4889042500100100ff242500100100", 18, 0),
        ("48b8ffffffffff7fffffffe0", 10, 0),
    ],
)
@pytest.mark.parametrize("ring", [0, 3])
def test_branches_to_a_non_canonical_address(
    engine: str, code: str, place: int, pushed: int, ring: int
) -> None:
    guest = Tiny("l64", ring=ring, code=bytes.fromhex(code))
    stack = guest.state()["GUEST_RSP"]
    run = begin(guest, ALL_EXCEPTIONS, engine=engine)
    assert run.exit.interruption is not None
    assert (run.exit.interruption.vector, run.exit.interruption.error_code) == (GP, 0)
    assert (run.vmcs["GUEST_RIP"] - CODE, stack - run.vmcs["GUEST_RSP"]) == (place, pushed)


@pytest.mark.parametrize("last", [b"\x90" * 4, b"\x90" * 3 + b"\xb8"])
def test_the_limit_of_code_comes_before_the_page_behind_it(last: bytes, engine: str) -> None:
    """A segment that ends with a page, and then one that is not present."""
    at = ABSENT - len(last)
    entry = pack("<Q", descriptor(0, ABSENT - 1, 0x409B))
    guest = Tiny("p32", 0, b"\xea" + pack("<IH", at, BYTES), {at: last, GDT + BYTES: entry})
    where = ABSENT if last[-1] == 0x90 else ABSENT - 1
    assert outcome(guest, engine) == (GP, where - CODE)
