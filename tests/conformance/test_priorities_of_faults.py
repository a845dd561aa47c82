"""Of several things that an instruction meets, the one that comes first.

SDM, "Priority Among Concurrent Events", and volume 1 for x87 and SSE exceptions. Each case is code
whose last instruction meets them.
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import ABSENT, CODE, DATA, TF, Tiny, begin

pytestmark = pytest.mark.conformance

DB, UD, NM, GP, PF, MF, XM = 1, 6, 7, 13, 14, 16, 19
TS, EM = 1 << 3, 1 << 2
PVI, VIP = 2, 1 << 20

UNMASKED = DATA + 0x40
"""MXCSR with denormal operands unmasked, then an x87 control word with division by 0 unmasked."""
START = b"\x0f\xae\x15" + pack("<I", UNMASKED) + b"\x0f\x10\x05" + pack("<I", DATA)
"""Ldmxcsr; movups xmm0, denormals."""
PENDING = b"\xdb\xe3\xd9\x2d" + pack("<I", UNMASKED + 4) + b"\xd9\xe8\xd9\xee\xde\xf9"
"""Fninit; fldcw; 1 / 0."""


def at(code: str, address: int) -> bytes:
    """An instruction whose operand is at an address."""
    return bytes.fromhex(code) + pack("<I", address)


CASES: tuple[tuple[str, bytes, bytes, dict[str, int], int], ...] = (
    ("denormals", START, at("0f5805", DATA), {}, XM),
    ("and nothing there", START, at("0f5805", ABSENT), {}, PF),
    ("and not aligned", START, at("0f5805", DATA + 4), {}, GP),
    ("neither", START, at("0f5805", ABSENT + 4), {}, GP),
    ("and TS", b"", at("0f5805", ABSENT + 4), {"GUEST_CR0": 0x80010031 | TS}, NM),
    ("and EM", b"", at("0f5805", ABSENT + 4), {"GUEST_CR0": 0x80010031 | TS | EM}, UD),
    ("and a trap", START, b"\x0f\x58\xc0", {"GUEST_RFLAGS": 2}, XM),
    ("masked, and a trap", b"", b"\x0f\x58\xc0", {"GUEST_RFLAGS": 2 | TF}, DB),
    ("pending x87 exception", PENDING, at("d805", DATA), {}, MF),
    ("and nothing there", PENDING, at("d805", ABSENT), {}, MF),
    ("MMX", PENDING, at("0f6f05", ABSENT), {}, MF),
    ("fnstenv, which does not wait", PENDING, at("d935", ABSENT), {}, PF),
    ("ret, which cannot be fetched whole", b"", b"\xf0\xc2\x00\x90", {}, UD),
    ("sti with VIP", b"", b"\xfb", {"GUEST_RFLAGS": 2 | VIP, "GUEST_CR4": 0x610 | PVI}, GP),
    ("lock sti", b"", b"\xf0\xfb", {"GUEST_RFLAGS": 2 | VIP, "GUEST_CR4": 0x610 | PVI}, UD),
)


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_what_comes_first(engine: str) -> None:
    memory = {
        DATA: pack("<4I", 1, 1, 1, 1),
        UNMASKED: pack("<IH", 0x1F80 & ~0x100, 0x37B),
    }
    for name, before, last, fields, expected in CASES:
        ring = 3 if b"\xfb" in last else 0
        for breakpoint_on in (False, True):
            guest = Tiny("p32", ring=ring, code=before + last + b"\x90", memory=memory)
            guest.fields |= fields
            if breakpoint_on:
                # A breakpoint on the instruction comes before all that it meets.
                guest.fields["GUEST_DR7"] = 0x402
                guest.registers["dr0"] = CODE + len(before)
            run = begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)
            event = run.exit.interruption
            assert event is not None, name
            found = event.vector, run.vmcs["GUEST_RIP"] - CODE
            traps = expected == DB and not breakpoint_on
            place = len(before) + (len(last) if traps else 0)
            wanted = DB if breakpoint_on else expected
            assert (name, breakpoint_on, found) == (name, breakpoint_on, (wanted, place))
            if breakpoint_on:
                assert run.exit.qualification & 0xF == 1
