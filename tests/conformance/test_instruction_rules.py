"""Rules of the criteria table about instructions, INIT and SMIs: one redirection map for all."""

import pytest

from tests.conformance import tiny_guest as tg
from tests.conformance.tiny_guest import CODE, Run, Tiny, handler, prepare
from tests.conformance.x86_vmm import X86Vmm
from trapgate.decision.conditions import parse, rules_for
from trapgate.decision.criteria_rules import Action, Rule, encode
from trapgate.processor.processor import VmExit
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
    guest = Tiny(mode, code=code + tg.VMCALL)
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
}


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
