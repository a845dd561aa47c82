"""What is known to be wrong, in a few bytes of guest code each; docs/limits.md has the reasons.

Each test says what the SDM wants and fails today. They are strict: one that passes has
to go, and its line in docs/limits.md with it.
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import CODE_32, DATA, Tiny, begin
from trapgate.sdm.vectors import UD

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
