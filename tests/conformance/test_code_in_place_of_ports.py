"""Where an instruction of input or output was executed there may be another one later."""

from struct import pack

import pytest

from tests.conformance.tiny_guest import CODE, CODE_32, DATA, STACK, TF, Tiny, begin
from trapgate.sdm.vectors import DB

pytestmark = pytest.mark.conformance

PLACE = CODE + 0x800
RET = b"\xc3"


def twice(second: bytes, then: bytes) -> bytes:
    """Call OUT 80H, AL at PLACE; put other code there, call that, and go on with `then`."""
    assert len(second) <= 4
    call = b"\xb8" + pack("<I", PLACE) + b"\xff\xd0"
    first = b"\xe6\x80" + RET
    put = b"".join(
        b"\xc7\x05" + pack("<II", PLACE, int.from_bytes(code.ljust(4, RET), "little")) + call
        for code in (first, second)
    )
    return put + then


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_an_x87_instruction_tells_of_its_exception(engine: str) -> None:
    # fninit; ...; fiadd dword [ebx]; fnstsw ax
    code = b"\xdb\xe3" + twice(b"\xda\x03", b"\xdf\xe0")
    run = begin(Tiny("p32", code=code, registers={"rbx": DATA}), engine=engine)
    assert run.vmcs["GUEST_RIP"] == CODE + len(code)
    assert run.processor.registers.rax & 0xFFFF == 0x41


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_trap_flag_and_a_breakpoint_on_data_trap_behind_it(engine: str) -> None:
    # push fs, entered by an IRET that sets TF
    code = twice(b"\x0f\xa0", b"")[:-2]
    code += b"\x68" + pack("<I", 2 | TF) + b"\x6a" + bytes([CODE_32]) + b"\x50\xcf"
    guest = Tiny("p32", code=code, registers={"dr0": STACK - 4})
    # Of the pushes before IRET the lowest word is another one.
    guest.fields |= {"GUEST_DR7": 0x400 | 2 | 0xD << 16}
    run = begin(guest, {"EXCEPTION_BITMAP": 1 << DB}, engine=engine)
    places = []
    while run.exit.interruption is not None and run.vmcs["GUEST_RIP"] != PLACE + 2:
        places.append(run.vmcs["GUEST_RIP"])
        run.resume()
    assert run.vmcs["GUEST_RIP"] == PLACE + 2, (places, run.exit)
    assert run.exit.qualification == 0x4001
    assert run.vmcs["GUEST_RSP"] == STACK - 4
