"""What our functions in the engine's translator do: exact counts, and code it gets wrong.

Only where the native engine runs.
"""

import subprocess
import sys
from struct import pack

import pytest

from tests.conformance.tiny_guest import (
    CODE,
    CODE_32,
    DATA,
    GDT,
    MODES,
    OTHER_TASK,
    OTHER_TSS,
    STACK,
    TSS,
    Run,
    Tiny,
    begin,
    descriptor,
)
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import GP, NP, TS, UD

pytestmark = [pytest.mark.conformance, pytest.mark.native]

ALL = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
AT_DATA = pack("<I", DATA)


def vector_of(run: Run) -> int | None:
    """The exception that ended a run; None for another end."""
    event = run.exit.interruption
    return None if event is None else event.vector


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_the_clock_counts_instructions_exactly(count: int) -> None:
    """Here a block ends where its last instruction exits, so nothing is counted too early."""
    done = begin(Tiny("p32", code=b"\x90" * count))
    assert done.exit.reason is ExitReason.VMCALL
    assert done.processor.time == count + 1


def test_a_loop_is_counted_in_every_turn() -> None:
    code = b"\xb9" + pack("<I", 1000) + b"\x40\x49\x75\xfc"  # mov ecx; inc eax; dec ecx; jnz
    done = begin(Tiny("p32", code=code))
    assert done.processor.time == 1 + 3 * 1000 + 1


def test_code_that_changes_the_next_instruction_of_its_own_block() -> None:
    code = b"\xc6\x05" + pack("<I", CODE + 7) + b"\xf4" + b"\x90"  # mov byte [next], HLT
    done = begin(Tiny("p32", code=code), {"PRIMARY_PROCESSOR_BASED_CONTROLS": 1 << 7})
    assert done.exit.reason is ExitReason.HLT
    assert done.vmcs["GUEST_RIP"] == CODE + 7


@pytest.mark.parametrize(
    "code",
    [
        "c5f877",
        "c5fc28c1",
        "c4e27918c0",
        "f0ec",
        "f0e480",
        "f06c",
        "f066ef",
        "f00fabc0",
        "f00fbae803",
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_code_that_is_undefined(code: str, mode: str) -> None:
    done = begin(Tiny(mode, code=bytes.fromhex(code)), ALL)
    assert vector_of(done) == UD
    assert done.vmcs["GUEST_CS_BASE"] + done.vmcs["GUEST_RIP"] == CODE


def test_ins_stores_nothing_before_it_exits() -> None:
    code = b"\xbf" + AT_DATA + b"\x6c"  # mov edi; insb
    guest = Tiny("p32", code=code)
    done = begin(guest, {"PRIMARY_PROCESSOR_BASED_CONTROLS": 1 << 24})
    assert done.exit.reason is ExitReason.IO_INSTRUCTION
    before = Tiny("p32", code=b"")
    assert done.processor.memory.read(DATA, 4) == begin(before).processor.memory.read(DATA, 4)


FOREIGN = """
import unicorn, unicorn.x86_const as x
from trapgate import Processor
Processor(1 << 20, engine="native")
uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
uc.mem_map(0, 0x2000)
uc.mem_write(0x1000, bytes.fromhex("b90a000000 40 49 75fc"))
blocks = []
uc.hook_add(unicorn.UC_HOOK_BLOCK, lambda uc, at, size, _: blocks.append(at))
uc.emu_start(0x1000, 0x1009)
print(uc.reg_read(x.UC_X86_REG_EAX), len(blocks))
"""


def test_engines_of_others_in_the_process_do_as_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("10 10\n", 0), done.stderr


# Task switches (SDM, "Treatment of Task Switches").

BUSY, GATE_TO_TASK, ABSENT_TASK, SHORT_TASK = 0x68, 0x70, 0x78, 0x48
MORE_TASKS = {
    GDT + BUSY: pack("<Q", descriptor(OTHER_TSS, 0x67, 0x8B)),
    GDT + GATE_TO_TASK: pack("<Q", OTHER_TASK << 16 | 0xE5 << 40),
    GDT + ABSENT_TASK: pack("<Q", descriptor(OTHER_TSS, 0x67, 0x09)),
    GDT + SHORT_TASK: pack("<Q", descriptor(OTHER_TSS, 0x66, 0x89)),
}
JMP, CALL, IRET = 2, 0, 1
FAR = {"jmp": (b"\xea", JMP), "call": (b"\x9a", CALL)}


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("selector", [OTHER_TASK, GATE_TO_TASK])
@pytest.mark.parametrize("indirect", [False, True])
def test_a_far_transfer_to_a_task_exits(name: str, selector: int, *, indirect: bool) -> None:
    opcode, source = FAR[name]
    code = opcode + pack("<IH", 0, selector)
    if indirect:
        code = bytes((0xFF, 0x2D if name == "jmp" else 0x1D)) + AT_DATA
    memory = MORE_TASKS | {DATA: pack("<IH", 0, selector)}
    done = begin(Tiny("p32", code=code, memory=memory), ALL)
    assert done.exit.reason is ExitReason.TASK_SWITCH
    assert done.exit.qualification == source << 30 | OTHER_TASK
    assert done.exit.instruction_length == len(code)
    assert done.vmcs["GUEST_RIP"] == CODE


@pytest.mark.parametrize(
    ("selector", "ring", "fault"),
    [
        (BUSY, 0, (GP, BUSY)),
        (ABSENT_TASK, 0, (NP, ABSENT_TASK)),
        (SHORT_TASK, 0, (TS, SHORT_TASK)),
        (OTHER_TASK | 3, 0, (GP, OTHER_TASK)),
        (OTHER_TASK, 3, (GP, OTHER_TASK)),
    ],
)
def test_a_far_transfer_to_a_task_that_faults(
    selector: int, ring: int, fault: tuple[int, int]
) -> None:
    code = b"\xea" + pack("<IH", 0, selector)
    done = begin(Tiny("p32", ring, code, MORE_TASKS), ALL)
    event = done.exit.interruption
    assert event is not None
    assert (event.vector, event.error_code) == fault


@pytest.mark.parametrize(("back", "ends"), [(BUSY, None), (OTHER_TASK, (TS, OTHER_TASK))])
def test_a_return_to_a_task(back: int, ends: tuple[int, int] | None) -> None:
    memory = MORE_TASKS | {TSS: pack("<III", back, STACK, 0x10)}
    done = begin(Tiny("p32", 0, b"\xcf", memory, {"GUEST_RFLAGS": 2 | 1 << 14}), ALL)
    event = done.exit.interruption
    if ends is None:
        assert done.exit.reason is ExitReason.TASK_SWITCH
        assert done.exit.qualification == IRET << 30 | back
    else:
        assert event is not None
        assert (event.vector, event.error_code) == ends


@pytest.mark.parametrize("mode", ["p32", "pae"])
def test_a_far_transfer_to_code_goes_on(mode: str) -> None:
    code = b"\xea" + pack("<IH", CODE + 9, CODE_32) + b"\xf4\xf4"
    done = begin(Tiny(mode, code=code), ALL)
    assert done.exit.reason is ExitReason.VMCALL
    assert done.vmcs["GUEST_RIP"] == CODE + 9
