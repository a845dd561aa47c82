"""What is known to be wrong, in a few bytes of guest code each; docs/limits.md has the reasons.

Each test says what the SDM wants and fails today. They are strict: one that passes has
to go, and its line in docs/limits.md with it.
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import CODE, CODE_32, DATA, DATA_0, Tiny, begin
from trapgate.sdm.vectors import GP, UD

pytestmark = pytest.mark.conformance

MONITOR_VMCS = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
AT_DATA = pack("<I", DATA)
LASTBRANCH_TOS = 0x1C9


def limit(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)


def faulted(guest: Tiny, engine: str = "auto") -> tuple[int, int | None] | str:
    """The vector and error code of the guest's first exception, or its other exit."""
    end = begin(guest, MONITOR_VMCS, engine=engine).exit
    event = end.interruption
    return end.reason.name if event is None else (event.vector, event.error_code)


def load_segment(register: int, selector: int) -> bytes:
    """Mov eax, selector; mov segment, ax (0 ES, 3 DS, 4 FS, 5 GS)."""
    return b"\xb8" + pack("<I", selector) + b"\x8e" + bytes([0xC0 | register << 3])


# What the engine cannot show.


@limit("in real-address mode a far JMP or RET beyond the limit of CS faults at its target")
@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("code", [b"\x66\xea" + pack("<IH", 0x10000, CODE >> 4), b"\x66\xcb"])
def test_a_far_branch_beyond_the_limit_in_real_mode(code: bytes, engine: str) -> None:
    """SDM, "JMP" and "RET": #GP at the instruction."""
    guest = Tiny("r16", code=code, fields={"GUEST_RSP": 0x800})
    guest.memory = {0x800: pack("<II", 0x10000, CODE >> 4)}
    run = begin(guest, MONITOR_VMCS, engine=engine)
    assert run.exit.interruption is not None
    assert (run.exit.interruption.vector, run.vmcs["GUEST_RIP"]) == (GP, 0)


@limit("descriptor tables are read at addresses that are not canonical")
@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_descriptor_at_a_non_canonical_address(engine: str) -> None:
    """SDM, "MOV", 64-bit mode exceptions: #GP(selector)."""
    guest = Tiny("l64", code=b"\x8e\xd8", fields={"GUEST_GDTR_BASE": (1 << 47) - 8})
    guest.registers = {"rax": DATA_0}
    assert faulted(guest, engine) == (GP, DATA_0)


# Absent altogether.


@limit("branches are not recorded")
def test_a_branch_is_recorded() -> None:
    code = b"\xeb\x00\x0f\x32"  # jmp to the next instruction; rdmsr
    guest = Tiny("p32", code=code, registers={"rcx": LASTBRANCH_TOS})
    guest.fields = {"GUEST_IA32_DEBUGCTL": 1}
    end = begin(guest, MONITOR_VMCS)
    assert end.exit.reason.name == "VMCALL"
    assert end.processor.registers.rax == 1


def test_the_judge() -> None:
    """The xfails above must not fail for a reason of their own: here everything is as it should."""
    assert faulted(Tiny("p32", code=b"\x0f\x0b")) == (UD, None)
    assert faulted(Tiny("p32", code=b"\xa1" + AT_DATA)) == "VMCALL"
    assert faulted(Tiny("p32", code=load_segment(3, CODE_32) + b"\xa1" + AT_DATA)) == "VMCALL"
