"""What is known of a place in translated code goes with the code."""

import pytest

from tests.conformance.tiny_guest import ABSENT, CODE, RF, STACK, VMCALL, Tiny, begin, handler
from trapgate.sdm.reasons import ExitReason

PF, W = 14, 2
CF, PARITY, AF, ZF, SF = 1, 4, 0x10, 0x40, 0x80
LOAD = b"\x8b\x03"  # mov eax, [ebx]
ADD = b"\x83\x03\x01"  # add dword [ebx], 1


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_other_code_where_translated_code_was(engine: str) -> None:
    """The engine fills its buffer anew: other instructions fault at the same places in it."""
    run = begin(Tiny("p32", code=LOAD, registers={"rbx": ABSENT}), engine=engine)
    for start, code, error in (
        (CODE + 0x10, LOAD, 0),
        (CODE + 0x20, ADD, W),
        (CODE, LOAD, 0),
        (CODE + 0x30, ADD, W),
        (CODE + 0x20, LOAD, 0),
    ):
        run.processor.memory.write(start, code + VMCALL)
        run.processor.engine.uc.ctl_flush_tb()
        run.vmcs["GUEST_RIP"], run.vmcs["GUEST_RSP"] = start, STACK
        assert run.resume().reason is ExitReason.VMCALL
        assert run.vmcs["GUEST_RIP"] == handler(PF)
        assert run.pushed(2) == [error, start]


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_place_that_faults_again(engine: str) -> None:
    """RIP and the arithmetic flags, which the block has not written yet, are those of the place."""
    code = b"\x83\xf9\x02" + ADD  # cmp ecx, 2
    run = begin(Tiny("p32", code=code, registers={"rbx": ABSENT}), engine=engine)
    for count, status in ((2, ZF | PARITY), (2, ZF | PARITY), (3, 0), (1, CF | PARITY | AF | SF)):
        run.processor.registers.rcx = count
        run.vmcs["GUEST_RIP"], run.vmcs["GUEST_RSP"] = CODE, STACK
        run.vmcs["GUEST_RFLAGS"] = 2
        run.resume()
        error, rip, _, rflags = run.pushed(4)
        assert (error, rip, rflags) == (W, CODE + 3, RF | status | 2)
