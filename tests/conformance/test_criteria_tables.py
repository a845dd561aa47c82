"""Criteria tables at work: on both engines, and for a VMM that is x86 code."""

import pytest

from tests.conformance import tiny_guest as tg
from tests.conformance.tiny_guest import ABSENT, CODE, READ_ONLY, Run, Tiny, handler, prepare
from tests.conformance.x86_vmm import X86Vmm
from trapgate.decision.criteria_rules import Action, Clause, Operator, Rule, encode
from trapgate.decision.decide import Reason
from trapgate.decision.fault_values import BY_NAME
from trapgate.processor.vm_exit import VmFail
from trapgate.sdm.cells import ENCODINGS
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

PF = 1 << 14
ENGINES = ("native", "portable")
MODES = ("p32", "pae", "l64")


def clause(name: str, operator: Operator, operand: int, limit: int = 0, **more: int) -> Clause:
    return Clause(BY_NAME[name], operator, operand, limit, **more)  # type: ignore[arg-type]


PAGE_FAULT = clause("vector", Operator.EQUAL, 14)


def load(address: int) -> bytes:
    """MOV EAX, [address], the same bytes in 32- and 64-bit mode but for the SIB."""
    return b"\x8b\x04\x25" + address.to_bytes(4, "little")


def run(
    code: bytes, rules: tuple[Rule, ...], mode: str, engine: str, *, ring: int = 0, **fields: int
) -> Run:
    guest = Tiny(mode, ring, code)
    processor, vmcs = prepare(guest, fields, engine=engine)
    vmcs.criteria_table = rules
    return tg.launch(guest, processor, vmcs)


def vector_of(run: Run) -> int | None:
    """The vector of the fault that exited, or None if its handler in the guest was reached."""
    if run.exit.reason is ExitReason.EXCEPTION_OR_NMI:
        assert run.exit.interruption is not None
        return run.exit.interruption.vector
    assert run.exit.reason is ExitReason.VMCALL
    return None


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bitmap", [0, PF])
def test_an_address_decides(mode: str, engine: str, bitmap: int) -> None:
    table = (
        Rule(Action.EXIT, (PAGE_FAULT, clause("address", Operator.IN_RANGE, ABSENT, ABSENT + 15))),
        Rule(Action.DELIVER, (PAGE_FAULT, clause("page", Operator.EQUAL, ABSENT >> 12))),
    )
    for offset, exits in ((0, True), (12, True), (16, False), (0xFF0, False)):
        got = run(load(ABSENT + offset), table, mode, engine, EXCEPTION_BITMAP=bitmap)
        assert vector_of(got) == (14 if exits else None)
        row = next(got.processor.last_events())
        assert row[13] == Reason.CRITERIA_TABLE
        if not exits:
            assert got.vmcs["GUEST_RIP"] == handler(14)
            assert got.processor.registers.cr2 == ABSENT + offset


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_what_no_rule_matches_is_for_the_other_fields(mode: str, engine: str) -> None:
    table = (
        Rule(Action.NEXT, (clause("cpl", Operator.EQUAL, 3),)),
        Rule(Action.EXIT, (PAGE_FAULT,)),
    )
    assert vector_of(run(load(ABSENT), table, mode, engine)) == 14
    assert vector_of(run(load(ABSENT), table, mode, engine, ring=3)) is None
    assert vector_of(run(load(ABSENT), table, mode, engine, ring=3, EXCEPTION_BITMAP=PF)) == 14


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_growing_stacks_and_other_faults(mode: str, engine: str) -> None:
    grows = (
        PAGE_FAULT,
        clause("cpl", Operator.EQUAL, 3),
        clause("below_stack", Operator.BELOW_OR_EQUAL, 64),
    )
    table = (Rule(Action.DELIVER, grows), Rule(Action.EXIT, (PAGE_FAULT,)))
    push = b"\x6a\x00"
    guest = Tiny(mode, 3, push, fields={"GUEST_RSP": ABSENT + 4})
    processor, vmcs = prepare(guest, engine=engine)
    vmcs.criteria_table = table
    assert vector_of(tg.launch(guest, processor, vmcs)) is None
    assert vector_of(run(load(ABSENT), table, mode, engine, ring=3)) == 14


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_where_the_walk_ends_and_what_stands_there(mode: str, engine: str) -> None:
    size = 4 if mode == "p32" else 8
    entry_at = tg.TABLES + 0x3000 + (READ_ONLY >> 12) * size
    store = b"\xc6\x04\x25" + READ_ONLY.to_bytes(4, "little") + b"\x01"
    for name, operand in (
        ("walk_level", 1),
        ("entry_address", entry_at),
        ("page_address", READ_ONLY),
        ("frame", READ_ONLY >> 12),
    ):
        for operator, exits in ((Operator.EQUAL, True), (Operator.BELOW, False)):
            table = (Rule(Action.EXIT, (PAGE_FAULT, clause(name, operator, operand))),)
            got = vector_of(run(store, table, mode, engine))
            assert got == (14 if exits else None), (name, operator)
    writable = (PAGE_FAULT, clause("entry", Operator.ANY_BIT, 2))
    assert vector_of(run(store, (Rule(Action.EXIT, writable),), mode, engine)) is None
    present = (PAGE_FAULT, clause("entry", Operator.ALL_BITS, 5))
    assert vector_of(run(store, (Rule(Action.EXIT, present),), mode, engine)) == 14


@pytest.mark.parametrize("engine", ENGINES)
def test_vectors_and_types_in_one_table(engine: str) -> None:
    undefined, int_80, int3 = b"\x0f\x0b", b"\xcd\x80", b"\xcc"
    table = (
        Rule(Action.EXIT, (clause("type", Operator.EQUAL, 4),)),
        Rule(Action.DELIVER, (clause("vector", Operator.EQUAL, 3),)),
    )
    got = run(int_80, table, "p32", engine)
    assert vector_of(got) == 0x80
    assert (got.exit.instruction_length, got.vmcs["GUEST_RIP"]) == (2, CODE)
    assert vector_of(run(int3, table, "p32", engine, EXCEPTION_BITMAP=0xFFFF_FFFF)) is None
    assert vector_of(run(undefined, table, "p32", engine, EXCEPTION_BITMAP=1 << 6)) == 6


def test_a_table_that_cannot_be_fails_the_entry_in_words() -> None:
    guest = Tiny("p32")
    processor, vmcs = prepare(guest)
    vmcs.criteria_table = (Rule(Action.EXIT), Rule(Action.COMPLETE, (PAGE_FAULT,)))
    outcome = processor.vmlaunch(vmcs)
    assert isinstance(outcome, VmFail)
    assert outcome.error == 7
    assert "rule 1" in outcome.explanation
    assert "table_entry" in outcome.explanation


@pytest.mark.parametrize("mode", ["p32", "l64"])
def test_an_x86_vmm_has_its_table_in_memory(mode: str) -> None:
    at = 0x1F_0000
    table = (Rule(Action.EXIT, (clause("vector", Operator.EQUAL, 6),)),)
    fields = {
        "CRITERIA_TABLE_ADDRESS": at,
        "CRITERIA_TABLE_LENGTH": len(encode(table)),
        "CRITERIA_TABLE_RULES": 1,
    }
    assert fields.keys() <= ENCODINGS.keys()
    vmm = X86Vmm(mode, guest=b"\x0f\x0b", fields=fields, memory={at: encode(table)})
    vmm.run()
    assert vmm["EXIT_REASON"] == ExitReason.EXCEPTION_OR_NMI
    assert vmm["VM_EXIT_INTERRUPTION_INFORMATION"] & 0xFF == 6
