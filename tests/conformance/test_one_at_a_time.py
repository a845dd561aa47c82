"""Instructions that are executed alone: what they leave blocked, on both engines."""

import pytest

from tests.conformance.tiny_guest import CODE, Tiny, begin
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

STEPPED = {
    "PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_MONITOR_TRAP_FLAG,
    "EXCEPTION_BITMAP": 0xFFFFFFFF,
}
BLOCKING_BY_STI, BLOCKING_BY_MOV_SS = 1, 2


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_only_sti_and_loads_of_ss_leave_something_blocked(engine: str) -> None:
    """Nop; sti; nop; sti again (IF is set); mov ax, ss; mov ss, ax; nop; push ss; pop ss; nop."""
    code = bytes.fromhex("90 fb 90 fb 8cd0 8ed0 90 16 17 90")
    run = begin(Tiny("p32", code=code), STEPPED, engine=engine)
    seen = []
    while run.vmcs["GUEST_RIP"] < CODE + len(code):
        assert run.exit.reason is ExitReason.MONITOR_TRAP_FLAG
        seen.append((run.vmcs["GUEST_RIP"] - CODE, run.vmcs["GUEST_INTERRUPTIBILITY_STATE"]))
        run.resume()
    assert seen == [
        (1, 0),
        (2, BLOCKING_BY_STI),
        (3, 0),
        (4, 0),
        (6, 0),
        (8, BLOCKING_BY_MOV_SS),
        (9, 0),
        (10, 0),
        (11, BLOCKING_BY_MOV_SS),
    ]


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_fault_of_an_instruction_alone_leaves_nothing_blocked(engine: str) -> None:
    run = begin(Tiny("p32", code=b"\x90\x0f\x0b"), STEPPED, engine=engine)
    run.resume()
    assert run.exit.reason is ExitReason.EXCEPTION_OR_NMI
    assert run.vmcs["GUEST_RIP"] == CODE + 1
    assert run.vmcs["GUEST_INTERRUPTIBILITY_STATE"] == 0
