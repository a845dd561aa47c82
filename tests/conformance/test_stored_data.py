"""The data that an instruction is about to write, against what it does write on the engine."""

import pytest

from tests.conformance.tiny_guest import (
    ABSENT,
    CODE,
    DATA,
    READ_ONLY,
    STACK,
    VMCALL,
    Tiny,
    prepare,
)
from trapgate.decision.condition_rules import rules_for
from trapgate.decision.conditions import parse
from trapgate.decision.criteria_rules import Action
from trapgate.operands.stores import stored
from trapgate.processor.processor import Processor
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm.reasons import ExitReason
from trapgate.vmcs.vmcs import Vmcs

pytestmark = pytest.mark.conformance

TARGET = DATA + 0x40
"""Where EBX, EDI and, 16 bytes above, ESP point."""
SOURCE = DATA + 0x205
WORD = (1 << 64) - 1
ODD = 0x8AC5_13F7_9B62_E485
HELD = 0x0123_4567_89AB_CDEF_1122_3344_5566_7788.to_bytes(16, "little") * 40

KNOWN = """
8803 8823 8903 668903 c603a5 c7035aa5c381 66c7035aa5 aa ab 66ab a4 a5 66a5 64a5
0003 2023 0103 660103 0903 1103 1903 2103 2903 3103 8003a5 8023a5 80330f 81035aa5c381 830bf0 8313f0
8603 8703 f613 f713 f61b f71b fe03 fe0b ff03 ff0b f0ff03
c00303 c10b05 c02303 c12b07 c13b04 d003 d123 d13b d223 d32b d33b 66d323 66d30b d20b
0fb313 0fbb13 0fba2b05 0fba330b 0fba3b1f f00fbb13
0fb003 0fb103 f00fb103 0fc003 0fc103 f00fc103 0fc70b f00fc70b
0f9003 0f9203 0f9303 0f9403 0f9703 0f9a03 0f9c03 0f9f03 8c03 8c1b 0fc303
50 53 6650 6a85 686655aa91 66685a91 9c 669c ff33 66ff33
e800000000 8f03
8943f0 898330000000 89442310 89043d10000000 89047546ecfeff 892d40100100
0f0003 0f000b
"""
LONG = """
488903 4c8903 448803 448823 408823 48c7035aa5c381 48ab 48a5 480103 48f713 48ff0b
48c12303 48d32b 48d33b 48c10b05 480fba2b3f 480fb313 4c0fbb03 0fbb13 480fb103 480fc103 480fc303
48ff33 4150 50 6650 6aff 9c e800000000 8903 890425c0100100 891d3a100000 48c705351000005aa5c381
83053910000011 8f03
8803 0fc70b a4 67a5
"""
REAL = """
8907 668907 678903 8847f0 50 6650 68a591 66685aa5c381 aa
66ab a5 8f07 9c e80000 0107 f717 c747108591
"""
SIZES = """
d913 d91b d93b d933 db13 db1b db3b dd13 dd1b dd33 dd3b df13
df1b df33 df3b 0f1103 660f1103 f30f1103 f20f1103 0f1303 0f1703 0f2903 0f2b03 660f7f03
0f7f03 660f7e03 660fd603 660fe703 0fae1b 0f0103 0f010b 0f0123 c01305 d31b 0fa40305 0fad03
0fae03
"""


def machine(mode: str) -> tuple[Processor, Vmcs]:
    return prepare(Tiny(mode))


def begin(made: tuple[Processor, Vmcs], code: bytes) -> None:
    """Everything as each instruction finds it."""
    processor, vmcs = made
    processor.memory.write(DATA, HELD)
    processor.memory.write(DATA + 0x100, HELD)
    processor.memory.write(CODE, code + VMCALL)
    low = WORD
    if vmcs["GUEST_CR0"] & 1 == 0:
        low = 0xFFFF
        for name in ("DS", "ES", "SS"):
            vmcs[f"GUEST_{name}_SELECTOR"], vmcs[f"GUEST_{name}_BASE"] = 0x1000, 0x10000
    vmcs["GUEST_RIP"], vmcs["GUEST_RFLAGS"] = CODE - vmcs["GUEST_CS_BASE"], 0x8D7
    vmcs["GUEST_RSP"] = TARGET + 16 & low
    registers = processor.registers
    registers.rax, registers.rcx, registers.rdx = ODD, ODD >> 3 | 1, 0x155
    registers.rbx, registers.rbp = TARGET & low, DATA + 0x4F0
    registers.rsi, registers.rdi = SOURCE & low, TARGET & low
    registers.r8 = -70 & WORD


def go(made: tuple[Processor, Vmcs], launched: list[bool]) -> VmExit:
    processor, vmcs = made
    outcome = processor.vmresume(vmcs) if launched else processor.vmlaunch(vmcs)
    launched.append(True)
    assert isinstance(outcome, VmExit), outcome
    return outcome


def changed(before: bytes, after: bytes) -> tuple[int, int]:
    """The first and last byte that differ."""
    places = [n for n in range(len(before)) if before[n] != after[n]]
    return (places[0], places[-1]) if places else (-1, -1)


@pytest.mark.parametrize("mode", ["r16", "p32", "l64"])
def test_what_is_told_is_what_is_stored(mode: str) -> None:
    made = machine(mode)
    processor, vmcs = made
    launched: list[bool] = []
    for code in {"r16": REAL, "p32": KNOWN, "l64": LONG}[mode].split():
        begin(made, bytes.fromhex(code))
        before = processor.memory.read(DATA, 0x800)
        size, known, data = stored(vmcs.cells, processor.registers.cells, processor.memory.cells)
        reason = go(made, launched).reason
        assert reason is ExitReason.VMCALL, code
        after = processor.memory.read(DATA, 0x800)
        first, last = changed(before, after)
        assert known, code
        # The value is there at one of the places that it can have, and nothing else changed.
        value = (int(data) & (1 << 8 * size) - 1).to_bytes(size, "little")
        places = range(max(0, last - size + 1), first + 1) if first >= 0 else [TARGET - DATA]
        assert any(after[n : n + size] == value for n in places), (code, size, value.hex())


def test_sizes() -> None:
    made = machine("p32")
    processor, vmcs = made
    vmcs["GUEST_CR0"] &= ~0xE
    launched: list[bool] = []
    for code in SIZES.split():
        begin(made, bytes.fromhex(code))
        before = processor.memory.read(DATA, 0x800)
        size, known, _ = stored(vmcs.cells, processor.registers.cells, processor.memory.cells)
        reason = go(made, launched).reason
        assert reason is ExitReason.VMCALL, code
        first, last = changed(before, processor.memory.read(DATA, 0x800))
        assert not known
        assert 0x40 <= first <= last < 0x40 + size, (code, size, first, last)


FAULTS = {
    "a push of a register": ("50", "data == {odd} and data_size == {word}", "pushes"),
    "a byte": ("8803", "data == 0x85 and data_size == 1", "absent"),
    "a constant": ("c7035aa50000", "data >> 8 == 0xA5 and write", "absent"),
    "a string": ("ab", "data == 0x9B62E485", "absent"),
    "what is added to": ("f00003", "data == 0x86", "read only"),
    "what is exchanged": ("0fb10b", "data_size == 4 and data == 1", "read only"),
    "a real number": ("dd1b", "data_size == 8 and data_size >= 0", "absent"),
}


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("mode", ["p32", "l64"])
def test_rules_over_data(mode: str, engine: str) -> None:
    made = prepare(Tiny(mode), {"GUEST_CR0": 2}, engine=engine)
    processor, vmcs = made
    launched: list[bool] = []
    for name, (code, text, where) in FAULTS.items():
        place = READ_ONLY if where == "read only" else ABSENT
        odd, word = (ODD, 8) if mode == "l64" else (ODD & 0xFFFF_FFFF, 4)
        condition = text.format(odd=odd, word=word)
        for wanted, exits in ((condition, True), (f"not ({condition}) and write", False)):
            vmcs.criteria_table = rules_for(parse(wanted), Action.EXIT)
            begin(made, bytes.fromhex(code))
            processor.memory.write(READ_ONLY, b"\x01" + bytes(7))
            registers = processor.registers
            registers.rbx = registers.rdi = place
            vmcs["GUEST_RSP"] = ABSENT + 64 if where == "pushes" else STACK
            reason = go(made, launched).reason
            found = reason is ExitReason.EXCEPTION_OR_NMI
            assert found is exits, (name, wanted, reason)
            # A fault on the stack of ring 0 cannot be delivered.
            assert found or reason in (ExitReason.VMCALL, ExitReason.TRIPLE_FAULT)


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_fault_without_data_matches_no_rule_about_them(engine: str) -> None:
    made = prepare(Tiny("p32"), engine=engine)
    vmcs = made[1]
    vmcs.criteria_table = rules_for(parse("data >= 0 or not data >= 0"), Action.EXIT)
    launched: list[bool] = []
    # A load, a fetch, PUSHA, a store of 16 bytes, an addition to what is not there.
    for code in ("8b03", "ffe3", "60", "0f2903", "0103"):
        begin(made, bytes.fromhex(code))
        made[0].registers.rbx = ABSENT
        vmcs["GUEST_RSP"] = ABSENT + 64 if code == "60" else STACK
        assert go(made, launched).reason is not ExitReason.EXCEPTION_OR_NMI, code
        vmcs["GUEST_RSP"] = STACK
