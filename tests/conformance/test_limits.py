"""What is known to be wrong, in a few bytes of guest code each; docs/limits.md has the reasons.

Each test says what the SDM wants and fails today. They are strict: one that passes has
to go, and its line in docs/limits.md with it.
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import CODE_32, DATA, STACK, Tiny, begin, handler
from trapgate.sdm.vectors import DB, UD

pytestmark = pytest.mark.conformance

MONITOR_VMCS = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
AT_DATA = pack("<I", DATA)


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


# Debug exceptions.


@limit("data breakpoints are not compared with what event delivery pushes")
def test_a_breakpoint_on_the_frame_of_a_fault() -> None:
    guest = Tiny("p32", code=b"\x0f\x0b", registers={"dr0": STACK - 4})
    guest.fields = {"GUEST_DR7": 0x400 | 2 | 0xD << 16}
    end = begin(guest, {"EXCEPTION_BITMAP": 1 << DB})
    assert end.exit.reason.name == "EXCEPTION_OR_NMI"
    assert end.vmcs["GUEST_RIP"] == handler(UD)


def test_the_judge() -> None:
    """The xfails above must not fail for a reason of their own: here everything is as it should."""
    assert faulted(Tiny("p32", code=b"\x0f\x0b")) == (UD, None)
    assert faulted(Tiny("p32", code=b"\xa1" + AT_DATA)) == "VMCALL"
    assert faulted(Tiny("p32", code=load_segment(3, CODE_32) + b"\xa1" + AT_DATA)) == "VMCALL"
