"""Every VMX instruction and its ways to fail, executed by machine code in both modes.

SDM, "VMX Instruction Reference" and "VM Instruction Error Numbers". A row is a piece of
code, the state it is executed in, and the answer: VMsucceed, VMfailInvalid, VMfailValid
with its number, or an exception with its vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from struct import pack

import pytest

from tests.conformance.tiny_guest import Tiny
from tests.conformance.vmx import harness as h
from tests.conformance.vmx.harness import Script

pytestmark = pytest.mark.conformance

UD, GP, PF = 6, 13, 14
WIDE = 1 << 40
HOLE = 1 << 47
Code = Callable[[Script], bytes]


@dataclass(frozen=True)
class Row:
    """`state` is off (no VMX operation), none (no current VMCS), clear or launched.

    `answer` is ok, invalid, a VM-instruction error, or "fault n".
    """

    name: str
    code: Code
    state: str
    answer: str | int
    bits: tuple[int, ...] = (32, 64)


def plain(data: bytes) -> Code:
    return lambda script: data


def region(name: str, pointer: int) -> Code:
    return lambda script: script.on_pointer(name, pointer)


def at_address(opcode: bytes, digit: int, address: int) -> Code:
    return lambda script: script.on_memory(opcode, digit, address)


def not_canonical(opcode: bytes, digit: int) -> Code:
    """With [RAX] as operand, which is not canonical (64-bit mode)."""
    return plain(b"\x48\xb8" + pack("<Q", HOLE) + opcode + bytes((digit << 3,)))


def revised(pointer: int, revision: Callable[[int], int], code: Code) -> Code:
    """With another revision identifier in the region at `pointer`."""

    def build(script: Script) -> bytes:
        script.poke(pointer, pack("<I", revision(script.revision)))
        return code(script)

    return build


def vmread(encoding: int) -> Code:
    """VMREAD ECX, EDX of that encoding."""
    return plain(b"\xba" + pack("<I", encoding) + b"\x0f\x78\xd1")


def vmwrite(encoding: int) -> Code:
    return plain(b"\xba" + pack("<I", encoding) + b"\x31\xc9\x0f\x79\xd1")


def invvpid(kind: int, vpid: int, address: int = 0) -> Code:
    def build(script: Script) -> bytes:
        descriptor = script.place(pack("<QQ", vpid, address))
        return b"\xb9" + pack("<I", kind) + script.on_memory(b"\x66\x0f\x38\x81", 1, descriptor)

    return build


def invept(kind: int, pointer: int, reserved: int = 0) -> Code:
    def build(script: Script) -> bytes:
        descriptor = script.place(pack("<QQ", pointer, reserved))
        return b"\xb9" + pack("<I", kind) + script.on_memory(INVEPT, 1, descriptor)

    return build


VMXON, VMCLEAR, VMPTRLD, VMPTRST = b"\xf3\x0f\xc7", b"\x66\x0f\xc7", b"\x0f\xc7", b"\x0f\xc7"
VMCALL, VMLAUNCH, VMRESUME, VMXOFF = (b"\x0f\x01" + bytes((n,)) for n in (0xC1, 0xC2, 0xC3, 0xC4))
MOV_SS = b"\x8c\xd0\x8e\xd0"
"""MOV EAX, SS; MOV SS, EAX."""
INVEPT = b"\x66\x0f\x38\x80"
SPARE = 0x303000
NOWHERE = 0x7000_0000
"""A linear address that the VMM does not map."""
UNSUPPORTED = (0x6FFE, 0x4001, 0x681F, 0x8000, 0x1_4000, 0x1000, 0x5000, 0x3FE, 0xFFFF_FFFF)
ON_VMXON = h.VMXON_REGION


def operand_faults(name: str, opcode: bytes, digit: int, state: str) -> list[Row]:
    return [
        Row(f"{name}, operand not mapped", at_address(opcode, digit, NOWHERE), state, "fault 14"),
        Row(
            f"{name}, operand not canonical", not_canonical(opcode, digit), state, "fault 13", (64,)
        ),
        Row(f"{name}, LOCK", plain(b"\xf0" + opcode + bytes((digit << 3,))), state, "fault 6"),
        *(
            Row(f"{name}, register", plain(opcode + bytes((0xC0 | digit << 3,))), state, "fault 6")
            # Those of VMCLEAR and VMPTRLD are RDRAND.
            for _ in range(name not in ("VMCLEAR", "VMPTRLD"))
        ),
    ]


ROWS = [
    # Outside VMX operation all but VMXON are undefined.
    *(
        Row(f"{name} outside VMX operation", code, "off", "fault 6")
        for name, code in (
            ("VMCALL", plain(VMCALL)),
            ("VMLAUNCH", plain(VMLAUNCH)),
            ("VMRESUME", plain(VMRESUME)),
            ("VMXOFF", plain(VMXOFF)),
            ("VMCLEAR", region("vmclear", h.VMCS)),
            ("VMPTRLD", region("vmptrld", h.VMCS)),
            ("VMPTRST", at_address(VMPTRST, 7, SPARE)),
            ("VMREAD", vmread(0x4400)),
            ("VMWRITE", vmwrite(0x4000)),
            ("INVVPID", invvpid(2, 0)),
        )
    ),
    Row("VMXON", region("vmxon", h.VMXON_REGION), "off", "ok"),
    Row("VMXON, not a page", region("vmxon", h.VMXON_REGION + 8), "off", "invalid"),
    Row("VMXON, beyond the physical width", region("vmxon", WIDE), "off", "invalid"),
    Row(
        "VMXON, wrong revision",
        revised(SPARE, lambda n: n ^ 1, region("vmxon", SPARE)), "off", "invalid",
    ),
    Row(
        "VMXON, bit 31 of the revision",
        revised(SPARE, lambda n: n | 1 << 31, region("vmxon", SPARE)), "off", "invalid",
    ),
    *operand_faults("VMXON", VMXON, 6, "off"),
    Row("VMXON in root operation", region("vmxon", h.VMXON_REGION), "clear", 15),
    Row("VMXON in root operation, no VMCS", region("vmxon", h.VMXON_REGION), "none", "invalid"),
    Row("VMXOFF", plain(VMXOFF), "clear", "ok"),
    Row("VMXOFF, LOCK", plain(b"\xf0" + VMXOFF), "clear", "fault 6"),
    Row("VMCALL in root operation", plain(VMCALL), "clear", 1),
    Row("VMCALL in root operation, no VMCS", plain(VMCALL), "none", "invalid"),
    Row("VMCLEAR", region("vmclear", h.OTHER_VMCS), "clear", "ok"),
    Row("VMCLEAR of the current VMCS", region("vmclear", h.VMCS), "clear", "ok"),
    Row("VMCLEAR, not a page", region("vmclear", h.VMCS + 0x800), "clear", 2),
    Row("VMCLEAR, beyond the physical width", region("vmclear", WIDE | h.VMCS), "clear", 2),
    Row("VMCLEAR of the VMXON region", region("vmclear", ON_VMXON), "clear", 3),
    Row("VMCLEAR, not a page, no VMCS", region("vmclear", h.VMCS + 0x800), "none", "invalid"),
    Row("VMCLEAR of the VMXON region, no VMCS", region("vmclear", ON_VMXON), "none", "invalid"),
    *operand_faults("VMCLEAR", VMCLEAR, 6, "clear"),
    Row("VMPTRLD", region("vmptrld", h.OTHER_VMCS), "clear", "ok"),
    Row("VMPTRLD of the current VMCS", region("vmptrld", h.VMCS), "clear", "ok"),
    Row("VMPTRLD, not a page", region("vmptrld", h.VMCS + 4), "clear", 9),
    Row("VMPTRLD, beyond the physical width", region("vmptrld", 1 << 63 | h.VMCS), "clear", 9),
    Row("VMPTRLD of the VMXON region", region("vmptrld", h.VMXON_REGION), "clear", 10),
    Row(
        "VMPTRLD, wrong revision",
        revised(SPARE, lambda n: n + 1, region("vmptrld", SPARE)), "clear", 11,
    ),
    Row(
        "VMPTRLD of a shadow VMCS",
        revised(SPARE, lambda n: n | 1 << 31, region("vmptrld", SPARE)), "clear", "ok",
    ),
    Row("VMPTRLD, not a page, no VMCS", region("vmptrld", h.VMCS + 4), "none", "invalid"),
    Row(
        "VMPTRLD, wrong revision, no VMCS",
        revised(SPARE, lambda n: n + 1, region("vmptrld", SPARE)), "none", "invalid",
    ),
    *operand_faults("VMPTRLD", VMPTRLD, 6, "clear"),
    Row("VMPTRST", at_address(VMPTRST, 7, SPARE + 0x100), "clear", "ok"),
    Row("VMPTRST, no VMCS", at_address(VMPTRST, 7, SPARE + 0x108), "none", "ok"),
    *operand_faults("VMPTRST", VMPTRST, 7, "clear")[:3],
    Row("VMREAD", vmread(0x681E), "clear", "ok"),
    Row("VMREAD, high half", vmread(0x2801), "clear", "ok"),
    Row("VMREAD of VM-exit information", vmread(0x4402), "clear", "ok"),
    Row("VMREAD, no VMCS", vmread(0x681E), "none", "invalid"),
    *(
        Row(f"VMREAD of {encoding:#x}", vmread(encoding), "clear", 12)
        for encoding in UNSUPPORTED
    ),
    Row("VMREAD, not mapped", at_address(b"\xba\x1e\x68\x00\x00\x0f\x78", 2, NOWHERE), "clear",
        "fault 14"),
    Row("VMWRITE", vmwrite(0x681E), "clear", "ok"),
    Row("VMWRITE, no VMCS", vmwrite(0x681E), "none", "invalid"),
    *(
        Row(f"VMWRITE of {encoding:#x}", vmwrite(encoding), "clear", 12)
        for encoding in UNSUPPORTED
    ),
    *(
        Row(f"VMWRITE of {encoding:#x}, exit information", vmwrite(encoding), "clear", "ok")
        for encoding in (0x4400, 0x4402, 0x440E, 0x6400, 0x640A, 0x2400)
    ),
    Row("VMWRITE, not mapped", at_address(b"\xba\x1e\x68\x00\x00\x0f\x79", 2, NOWHERE), "clear",
        "fault 14"),
    Row("VMREAD with upper bits in the encoding",
        plain(b"\x48\xba" + pack("<Q", 1 << 32 | 0x681E) + b"\x0f\x78\xd1"), "clear", 12, (64,)),
    Row("VMLAUNCH, no VMCS", plain(VMLAUNCH), "none", "invalid"),
    Row("VMRESUME, no VMCS", plain(VMRESUME), "none", "invalid"),
    Row("VMLAUNCH of a launched VMCS", plain(VMLAUNCH), "launched", 4),
    Row("VMRESUME of a clear VMCS", plain(VMRESUME), "clear", 5),
    Row("VMLAUNCH after MOV SS", plain(MOV_SS + VMLAUNCH), "clear", 26),
    Row("VMRESUME after MOV SS", plain(MOV_SS + VMRESUME), "launched", 26),
    Row("VMLAUNCH after MOV SS, launched", plain(MOV_SS + VMLAUNCH), "launched", 26),
    Row("VMLAUNCH after MOV SS, no VMCS", plain(MOV_SS + VMLAUNCH), "none", "invalid"),
    Row("VMLAUNCH", plain(VMLAUNCH), "clear", "exit"),
    Row("VMRESUME", plain(VMRESUME), "launched", "exit"),
    Row("VMLAUNCH, LOCK", plain(b"\xf0" + VMLAUNCH), "clear", "fault 6"),
    *(Row(f"INVVPID, type {kind}", invvpid(kind, 1), "clear", "ok") for kind in range(4)),
    Row("INVVPID of all, VPID 0", invvpid(2, 0), "clear", "ok"),
    *(Row(f"INVVPID, type {kind}", invvpid(kind, 1), "clear", 28) for kind in (4, 0x7FFF_FFFF)),
    *(Row(f"INVVPID, type {kind}, VPID 0", invvpid(kind, 0), "clear", 28) for kind in (0, 1, 3)),
    Row("INVVPID, reserved bits", invvpid(1, 1 | 1 << 16), "clear", 28),
    Row("INVVPID, address not canonical", invvpid(0, 1, HOLE), "clear", 28),
    Row("INVVPID, not mapped", at_address(b"\xb9\x02\0\0\0\x66\x0f\x38\x81", 1, NOWHERE), "clear",
        "fault 14"),
    Row("INVEPT outside VMX operation", invept(2, 0), "off", "fault 6"),
    Row("INVEPT, single", invept(1, 0x101E), "clear", "ok"),
    Row("INVEPT, single, uncacheable, flags", invept(1, 0x1058), "clear", "ok"),
    Row("INVEPT, all", invept(2, 0x101E), "clear", "ok"),
    Row("INVEPT, all, no such pointer", invept(2, 0x1001), "clear", "ok"),
    Row("INVEPT, no VMCS", invept(2, 0), "none", "ok"),
    *(Row(f"INVEPT, type {kind}", invept(kind, 0x101E), "clear", 28)
      for kind in (0, 3, 0x7FFF_FFFF)),
    Row("INVEPT, type 0, no VMCS", invept(0, 0x101E), "none", "invalid"),
    *(Row(f"INVEPT of {pointer:#x}", invept(1, pointer), "clear", 28)
      for pointer in (0x1019, 0x1006, 0x109E, WIDE | 0x1E)),
    # Must be 0, says the SDM's figure; its operation section looks at none of them.
    Row("INVEPT, reserved bits", invept(1, 0x101E, 1), "clear", "ok"),
    Row("INVEPT, not mapped", at_address(b"\xb9\x02\0\0\0\x66\x0f\x38\x80", 1, NOWHERE), "clear",
        "fault 14"),
    Row("INVEPT, register", plain(INVEPT + b"\xc1"), "clear", "fault 6"),
]  # fmt: skip


@dataclass(frozen=True)
class Answer:
    verdict: str
    error: int
    vector: int
    cr2: int


def build(
    bits: int, rows: Sequence[Row] = ROWS, revision: int = 0x54524701
) -> tuple[Script, list[tuple[Row, int, int | None]]]:
    """The script of the rows of a mode; by row the places of its end and of the error field."""
    script = Script(bits, revision)
    script.begin()
    guest = Tiny("l64" if bits == 64 else "p32")
    h.put_guest(script, guest)
    every = h.all_fields(h.guest_fields(bits, guest))
    places = []
    for row in rows:
        if bits not in row.bits:
            continue
        script.clear()
        script.write_all(every)
        if row.state == "launched":
            script.launch()
        code = row.code(script)
        if row.state == "off":
            script.call(VMXOFF)
        elif row.state == "none":
            script.call(script.on_pointer("vmclear", h.VMCS))
        ran = script.call(code)
        error = script.read("VM_INSTRUCTION_ERROR") if isinstance(row.answer, int) else None
        places.append((row, ran, error))
        script.call(script.on_pointer("vmxon", h.VMXON_REGION))
    return script, places


@cache
def answers(bits: int) -> dict[str, Answer]:
    """By name of the row."""
    script, places = build(bits)
    results = h.run(script)
    found = {}
    for row, place, error in places:
        ran = results.ran(place)
        number = results[error] if error is not None else 0
        found[f"{row.name} ({row.state})"] = Answer(ran.verdict, number, ran.vector, ran.rax)
    return found


@pytest.mark.native
@pytest.mark.parametrize(
    ("bits", "row"),
    [
        pytest.param(bits, row, id=f"{bits}-{row.name}-{row.state}")
        for row in ROWS
        for bits in row.bits
    ],
)
def test_instruction(bits: int, row: Row) -> None:
    found = answers(bits)[f"{row.name} ({row.state})"]
    if isinstance(row.answer, int):
        assert (found.verdict, found.error) == ("fail", row.answer)
    else:
        assert found.verdict == row.answer
    if row.answer == "fault 14":
        assert found.cr2 == NOWHERE


def test_no_row_has_the_name_of_another() -> None:
    for bits in (32, 64):
        names = [(row.name, row.state) for row in ROWS if bits in row.bits]
        assert len(set(names)) == len(names)
