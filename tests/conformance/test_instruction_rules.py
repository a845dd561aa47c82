"""Rules of the criteria table about instructions, INIT and SMIs: one redirection map for all."""

from struct import pack

import pytest

from tests.conformance import tiny_guest as tg
from tests.conformance.test_task_switches import NEW_CODE, Task, memory_of
from tests.conformance.tiny_guest import CODE, GDT, IDT, Run, Tiny, handler, prepare
from tests.conformance.x86_vmm import X86Vmm
from trapgate.decision.condition_rules import rules_for
from trapgate.decision.conditions import parse
from trapgate.decision.criteria_rules import Action, Rule, encode
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import controls as ct
from trapgate.sdm.cells import ENCODINGS
from trapgate.sdm.reasons import ExitReason
from trapgate.vmm.machine import VirtualMachine

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
SPIN = b"\xeb\xfe"


def rules(*texts: tuple[str, Action]) -> tuple[Rule, ...]:
    return tuple(rule for text, action in texts for rule in rules_for(parse(text), action))


def run(code: bytes, table: tuple[Rule, ...], engine: str, mode: str = "p32", **fields: int) -> Run:
    guest = Tiny(mode, code=code + tg.VMCALL, memory=TABLES_THERE)
    processor, vmcs = prepare(guest, fields, engine=engine)
    vmcs.criteria_table = table
    return tg.launch(guest, processor, vmcs)


INSTRUCTIONS = {
    "PAUSE": (b"\xf3\x90", "reason == PAUSE", 40),
    "RDTSC": (b"\x0f\x31", "reason == RDTSC", 16),
    "INVLPG": (b"\x0f\x01\x3d\x00\x10\x00\x00", "reason == INVLPG and qualification == 0x1000", 14),
    "MOV from CR0": (b"\x0f\x20\xc0", "control_register == 0", 28),
    "MOV from CR2": (b"\x0f\x20\xd0", "control_register == 2 and bit(qualification, 4)", 28),
    "MOV from CR3": (b"\x0f\x20\xd8", "control_register == 3", 28),
    "MOV to CR2": (b"\x0f\x22\xd0", "control_register == 2 and cpl == 0", 28),
    "MOV from DR1": (b"\x0f\x21\xc8", "debug_register == 1", 29),
    "CLTS": (b"\x0f\x06", "reason == CONTROL_REGISTER_ACCESS", 28),
    "IN": (b"\xe4\x71", "port == 0x71", 30),
    "OUT": (b"\xe6\x80", "0x7F < port < 0x81", 30),
    "WBINVD": (b"\x0f\x09", "reason == WBINVD", 54),
    "SGDT": (b"\x0f\x01\x05\x00\x10\x01\x00", "table_access == SGDT and qualification > 0", 46),
    "SIDT": (b"\x0f\x01\x0d\x00\x10\x01\x00", "table_access == SIDT", 46),
    "LGDT": (b"\x0f\x01\x15\x40\x10\x01\x00", "table_access == LGDT", 46),
    "LIDT": (b"\x0f\x01\x1d\x50\x10\x01\x00", "table_access in (LIDT, SIDT)", 46),
    "SLDT": (b"\x0f\x00\xc0", "reason == LDTR_OR_TR_ACCESS", 47),
    "STR": (b"\x0f\x00\x0d\x00\x10\x01\x00", "table_access == STR", 47),
    "LLDT": (b"\x0f\x00\xd2", "table_access > STR", 47),
}
TABLES_THERE = {0x11040: pack("<HI", 0x7F, GDT), 0x11050: pack("<HI", 0x7FF, IDT)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_a_rule_makes_an_instruction_exit(name: str, engine: str) -> None:
    code, condition, reason = INSTRUCTIONS[name]
    got = run(code, rules((condition, Action.EXIT)), engine)
    assert got.exit.reason == reason
    assert got.vmcs["GUEST_RIP"] == CODE
    # With the rule turned round it does not, and what follows is reached.
    got = run(code, rules((f"not ({condition})", Action.EXIT)), engine)
    assert got.exit.reason == ExitReason.VMCALL
    assert got.vmcs["GUEST_RIP"] == CODE + len(code)


@pytest.mark.parametrize("engine", ENGINES)
def test_msrs_and_leaves(engine: str) -> None:
    # The tiny guest's MSR bitmaps are empty: of those that they speak of none exits.
    read = b"\xb9\x74\x01\x00\x00\x0f\x32"
    for condition, reason in (("msr == 0x174", ExitReason.RDMSR), ("msr == 9", ExitReason.VMCALL)):
        assert run(read, rules((condition, Action.EXIT)), engine).exit.reason == reason
    unknown = b"\xb9\x00\x40\x00\x00\x0f\x30"
    assert run(unknown, (), engine).exit.reason == ExitReason.WRMSR
    got = run(unknown, rules(("msr == 0x4000 and reason == WRMSR", Action.DELIVER)), engine)
    assert got.vmcs["GUEST_RIP"] == handler(13)
    cpuid = b"\xb8\x07\x00\x00\x00\x0f\xa2"
    for condition, reason in (("leaf == 7", ExitReason.VMCALL), ("leaf < 7", ExitReason.CPUID)):
        got = run(cpuid, rules((condition, Action.DELIVER)), engine)
        assert got.exit.reason == reason
        if reason == ExitReason.VMCALL:
            assert got.processor.registers.rax == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_what_exits_always_may_be_left_to_the_guest(engine: str) -> None:
    assert run(b"\x0f\x08", rules(("reason == INVD", Action.DELIVER)), engine).exit.reason == (
        ExitReason.VMCALL
    )
    got = run(
        b"\x0f\x01\xc2", rules(("reason == VMLAUNCH", Action.DELIVER)), engine, EXCEPTION_BITMAP=64
    )
    assert got.exit.interruption is not None
    assert got.exit.interruption.vector == 6


@pytest.mark.parametrize("engine", ENGINES)
def test_halting_without_an_exit(engine: str) -> None:
    table = rules(("reason == HLT and cpl == 0", Action.DELIVER))
    got = run(b"\xf4", table, engine, PRIMARY_PROCESSOR_BASED_CONTROLS=ct.PRIMARY_HLT_EXITING)
    assert got.exit.reason == ExitReason.PREEMPTION_TIMER
    assert got.vmcs["GUEST_ACTIVITY_STATE"] == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_privilege_comes_before_the_table(engine: str) -> None:
    guest = Tiny("p32", 3, b"\xf4")
    processor, vmcs = prepare(guest, engine=engine)
    vmcs.criteria_table = rules(("reason == HLT", Action.EXIT))
    got = tg.launch(guest, processor, vmcs)
    assert got.vmcs["GUEST_RIP"] == handler(13)


def test_rules_about_faults_do_not_touch_instructions_and_the_other_way_round() -> None:
    table = rules(("cpl == 0", Action.DELIVER))
    assert run(b"\x0f\xa2", table, "native").exit.reason == ExitReason.CPUID
    table = rules(("reason >= 0 and cpl == 0", Action.DELIVER))
    got = run(b"\x0f\x0b", table, "native", EXCEPTION_BITMAP=64)
    assert got.exit.reason == ExitReason.EXCEPTION_OR_NMI


@pytest.mark.parametrize("engine", ENGINES)
def test_smis_by_the_map_and_by_the_profile(engine: str) -> None:
    def spun(table: tuple[Rule, ...], profile: str = "extended") -> Run:
        guest = Tiny("p32", code=SPIN)
        processor, vmcs = prepare(guest, engine=engine)
        if profile == "vt-x":
            vmcs.profile = "vt-x"
        else:
            vmcs.criteria_table = table
        processor.smi()
        return tg.launch(guest, processor, vmcs)

    assert spun(()).exit.reason == ExitReason.OTHER_SMI
    left = spun(rules(("reason == OTHER_SMI", Action.DELIVER)))
    assert left.exit.reason == ExitReason.PREEMPTION_TIMER
    assert left.vmcs["GUEST_RIP"] == CODE
    assert spun((), "vt-x").exit.reason == ExitReason.PREEMPTION_TIMER


@pytest.mark.parametrize("engine", ENGINES)
def test_init_for_the_guest(engine: str) -> None:
    guest = Tiny("p32", code=SPIN)
    processor, vmcs = prepare(guest, engine=engine)
    vmcs.criteria_table = rules(("reason == INIT_SIGNAL and cpl == 0", Action.DELIVER))
    processor.memory.write(0xFFFF0, tg.VMCALL)
    processor.init()
    got = tg.launch(guest, processor, vmcs)
    assert got.exit.reason == ExitReason.VMCALL
    assert (vmcs["GUEST_CS_BASE"], vmcs["GUEST_RIP"]) == (0xF0000, 0xFFF0)
    assert vmcs["GUEST_CR0"] & 1 == 0
    assert processor.registers.rdx == 0x106A5


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["p32", "l64"])
def test_table_registers_without_their_exits(mode: str, engine: str) -> None:
    """Stores that descriptor-table exiting would stop are the guest's: they store what they do."""
    at = b"\x04\x25\x00\x10\x01\x00"  # [11000H], by a SIB byte in both modes
    code = b"\x0f\x01" + at + b"\x0f\x00" + bytes([0x0C]) + at[1:] + b"\x0f\x00\xcb"
    exiting = {
        "PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_SECONDARY_CONTROLS,
        "SECONDARY_PROCESSOR_BASED_CONTROLS": ct.SECONDARY_DESCRIPTOR_TABLE_EXITING,
    }
    assert run(code, (), engine, mode, **exiting).exit.reason == ExitReason.GDTR_OR_IDTR_ACCESS
    got = run(code, rules(("table_access >= SGDT", Action.DELIVER)), engine, mode, **exiting)
    assert got.exit.reason == ExitReason.VMCALL
    stored = got.processor.memory.read(0x11000, 10)
    assert stored[:2] == tg.TASK.to_bytes(2, "little")  # STR wrote over the limit
    assert int.from_bytes(stored[2:], "little") == GDT
    assert got.processor.registers.rbx & 0xFFFF == tg.TASK


def test_a_store_that_is_left_to_the_guest_may_fault() -> None:
    code = b"\x0f\x01\x05" + pack("<I", tg.ABSENT - 2)
    table = rules(("table_access == SGDT", Action.DELIVER))
    got = run(code, table, "native", EXCEPTION_BITMAP=1 << 14)
    assert got.exit.interruption is not None
    assert (got.exit.interruption.error_code, got.exit.qualification) == (2, tg.ABSENT)
    assert got.processor.memory.read(tg.ABSENT - 2, 2) == bytes(2)


def test_xsetbv_and_invpcid_by_operand() -> None:
    def set_xcr(number: int, condition: str) -> Run:
        xsetbv = b"\xb9" + bytes([number]) + b"\0\0\0\x31\xd2\xb8\x03\0\0\0\x0f\x01\xd1"
        guest = Tiny("p32", code=xsetbv)
        processor, vmcs = prepare(guest)
        vmcs["GUEST_CR4"] |= 1 << 18
        vmcs.criteria_table = rules((condition, Action.DELIVER))
        return tg.launch(guest, processor, vmcs)

    for condition, reason in (
        ("xcr == 0", ExitReason.VMCALL),
        ("reason == XSETBV", ExitReason.VMCALL),
        ("xcr == 1", ExitReason.XSETBV),
    ):
        got = set_xcr(0, condition)
        assert got.exit.reason == reason, condition
        assert got.processor.registers.xcr0 == (3 if reason == ExitReason.VMCALL else 1)
    assert set_xcr(1, "xcr == 1").vmcs["GUEST_RIP"] == handler(13)
    # INVPCID EAX, [11000H]
    invpcid = b"\x31\xc0\x40\x40\x66\x0f\x38\x82\x05\x00\x10\x01\x00"
    there = {
        "PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_SECONDARY_CONTROLS,
        "SECONDARY_PROCESSOR_BASED_CONTROLS": ct.SECONDARY_INVPCID,
    }
    for condition, reason in (
        ("invpcid_type == 2", ExitReason.INVPCID),
        ("invpcid_type == 1", ExitReason.VMCALL),
        ("reason == INVLPG", ExitReason.VMCALL),
    ):
        got = run(invpcid, rules((condition, Action.EXIT)), "native", "p32", **there)
        assert got.exit.reason == reason, condition


@pytest.mark.parametrize("engine", ENGINES)
def test_start_up_ipis(engine: str) -> None:
    for condition, reason in (
        ("startup_vector == 0x30", ExitReason.VMCALL),
        ("startup_vector != 0x30", ExitReason.STARTUP_IPI),
    ):
        guest = Tiny("r16", memory={0x30000: tg.VMCALL}, fields={"GUEST_ACTIVITY_STATE": 3})
        processor, vmcs = prepare(guest, engine=engine)
        vmcs.criteria_table = rules((condition, Action.DELIVER))
        processor.start_up(0x30)
        got = tg.launch(guest, processor, vmcs)
        assert got.exit.reason == reason
        if reason == ExitReason.VMCALL:
            assert (vmcs["GUEST_CS_BASE"], vmcs["GUEST_RIP"]) == (0x30000, 0)


TASK_SWITCHES = {
    "by_jmp": b"\xea" + pack("<IH", 0, tg.OTHER_TASK),
    "by_call": b"\x9a" + pack("<IH", 0, tg.OTHER_TASK),
    "by_gate": b"\xcd\x40",
}


@pytest.mark.parametrize("name", TASK_SWITCHES)
def test_task_switches_by_the_processor(name: str) -> None:
    task = Task()
    memory = memory_of(task, 32)
    memory[IDT + 8 * 0x40] = pack("<HHHH", 0, tg.OTHER_TASK, 0xE500, 0)
    for condition, reason in (
        (f"task_source == {name} and task_selector == {tg.OTHER_TASK:#x}", ExitReason.VMCALL),
        (f"task_source != {name}", ExitReason.TASK_SWITCH),
    ):
        guest = Tiny("p32", code=TASK_SWITCHES[name], memory=memory)
        processor, vmcs = prepare(guest)
        vmcs.criteria_table = rules((condition, Action.DELIVER))
        got = tg.launch(guest, processor, vmcs)
        assert got.exit.reason == reason, condition
        if reason == ExitReason.VMCALL:
            assert vmcs["GUEST_RIP"] == NEW_CODE
            assert vmcs["GUEST_TR_SELECTOR"] == tg.OTHER_TASK
            assert processor.registers.rbx == task.general["ebx"]
            rows = [int(row[12]) for row in processor.last_events()]
            assert rows == ([1] if name == "by_gate" else [])


def test_a_task_switch_that_fails_raises_its_fault() -> None:
    task = Task(ldt=0x7FF8)
    guest = Tiny("p32", code=TASK_SWITCHES["by_jmp"], memory=memory_of(task, 32))
    processor, vmcs = prepare(guest, {"EXCEPTION_BITMAP": 1 << 10})
    vmcs.criteria_table = rules(("task_source == by_jmp", Action.DELIVER))
    got = tg.launch(guest, processor, vmcs)
    assert got.exit.interruption is not None
    assert (got.exit.interruption.vector, got.exit.interruption.error_code) == (10, 0x7FF8)


@pytest.mark.parametrize("engine", ENGINES)
def test_external_interrupts_by_vector(engine: str) -> None:
    def taken(vector: int, table: tuple[Rule, ...], exiting: int) -> VmExit:
        guest = Tiny("p32", code=b"\xfb" + SPIN)
        processor, vmcs = prepare(guest, {"PIN_BASED_CONTROLS": exiting}, engine=engine)
        vmcs.criteria_table = table
        processor.interrupt(vector)
        return tg.launch(guest, processor, vmcs).exit

    exiting = ct.PIN_EXTERNAL_INTERRUPT_EXITING
    table = rules(("type == external_interrupt and vector == 0x21", Action.DELIVER))
    assert taken(0x20, table, exiting).reason == ExitReason.EXTERNAL_INTERRUPT
    assert taken(0x21, table, exiting).vmcs["GUEST_RIP"] == handler(0x21)
    table = rules(("type == external_interrupt and vector == 0x21", Action.EXIT))
    assert taken(0x21, table, 0).reason == ExitReason.EXTERNAL_INTERRUPT
    assert taken(0x20, table, 0).vmcs["GUEST_RIP"] == handler(0x20)


@pytest.mark.parametrize("mode", ["l64", "p32"])
def test_an_x86_vmm_leaves_leaves_to_its_guest(mode: str) -> None:
    cpuid = b"\xb8\x00\x00\x00\x00\x0f\xa2"
    table = rules(("leaf == 0", Action.DELIVER))
    data = encode(table)
    place = 0x38000
    vmm = X86Vmm(
        mode,
        guest=cpuid + tg.VMCALL,
        fields={
            "CRITERIA_TABLE_ADDRESS": place,
            "CRITERIA_TABLE_LENGTH": len(data),
            "CRITERIA_TABLE_RULES": len(table),
        },
    )
    vmm.processor.memory.write(place, data)
    outcome = vmm.processor.vmlaunch(vmm.vmcs)
    # It is the machine's CPUID then: of the VMM in Python.
    assert isinstance(outcome, VmExit)
    assert outcome.reason == ExitReason.CPUID
    assert ENCODINGS["CRITERIA_TABLE_INSTRUCTIONS"] == 0x4704


def test_a_machine_answers_cpuid_without_an_exit() -> None:
    vm = VirtualMachine(1 << 20)
    assert vm.processor.cpuid(0, 0)[1].to_bytes(4, "little") == b"Genu"
