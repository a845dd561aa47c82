"""Vector x trigger x disposition, on real guest code in every mode.

Each trigger runs twice: once its vector is the guest's, whose handler leaves with a
VMCALL, and once the VMM's, by the exception bitmap. Both must tell the same of it. The
expected values are the SDM's ("Exception and Interrupt Reference").
"""

from dataclasses import dataclass, field
from struct import pack

import pytest

from tests.conformance import tiny_guest as tg
from tests.conformance.tiny_guest import CODE, Tiny, begin, handler
from trapgate.decision.faults import Interruption
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

DE, DB, BP, OF, BR, UD, NM, DF = 0, 1, 3, 4, 5, 6, 7, 8
TS, NP, SS, GP, PF, MF, AC, XM = 10, 11, 12, 13, 14, 16, 17, 19
FAULT, PRIVILEGED, SOFTWARE = 3, 5, 6
PROTECTED = ("p32", "pae", "l64")
LEGACY = ("p32", "pae")
PRESENT, WRITE, USER, BAD, FETCH = 1, 2, 4, 8, 16
BREAKPOINT = 0x401


@dataclass(frozen=True)
class Trigger:
    """Code that raises `vector` at its byte `at`; what the SDM says of the event.

    `saved` is where the saved RIP lies if not at the instruction: its length for traps.
    `outer` is the software interrupt whose delivery raises it.
    """

    name: str
    vector: int
    code: bytes
    at: int = 0
    kind: int = FAULT
    error: int | None = None
    modes: tuple[str, ...] = PROTECTED
    ring: int = 0
    saved: int = 0
    length: int = 0
    qualification: int = 0
    rip: int = CODE
    image_rf: bool | None = True
    fields: dict[str, int] = field(default_factory=dict)
    registers: dict[str, int] = field(default_factory=dict)
    memory: dict[int, bytes] = field(default_factory=dict)
    outer: Interruption | None = None

    def guest(self, mode: str) -> Tiny:
        """The guest that runs it."""
        memory = dict(self.memory)
        return Tiny(mode, self.ring, self.code, memory, dict(self.fields), dict(self.registers))


def int_n(vector: int) -> Interruption:
    """What INT n is while it is delivered."""
    return Interruption(vector, InterruptionType.SOFTWARE_INTERRUPT)


def mov(register: int, value: int) -> bytes:
    """MOV r32, imm32: five bytes in every mode but 16-bit ones."""
    return bytes((0xB8 | register,)) + pack("<I", value)


def at(address: int, code: bytes) -> tuple[bytes, int]:
    """Code that runs with EBX = address, and where it begins."""
    return mov(3, address) + code, 5


def fault_on(
    name: str, address: int, code: bytes, error: int, *, ring: int = 0,
    modes: tuple[str, ...] = PROTECTED, fields: dict[str, int] | None = None,
) -> Trigger:  # fmt: skip
    """A page fault of `code` at [EBX] = address."""
    whole, begins = at(address, code)
    return Trigger(
        name, PF, whole, begins, error=error, ring=ring, modes=modes,
        qualification=address, fields=fields or {},
    )  # fmt: skip


def load(register: int, selector: int) -> bytes:
    """MOV AX, selector; MOV sreg, AX: the second begins at 4."""
    return b"\x66\xb8" + pack("<H", selector) + bytes((0x8E, 0xC0 | register << 3))


READ, STORE, RMW, JUMP = b"\x8b\x03", b"\x89\x03", b"\xff\x03", b"\xff\xe3"
DS_REGISTER, SS_REGISTER = 3, 2
UNMASKED_FPU = b"\xdb\xe3\x6a\x00\xd9\x2c\x24\xd9\xe8\xd9\xee\xde\xf9"
"""FNINIT; FLDCW 0; 1.0 / 0.0: the exception is pending for the next x87 instruction."""

TRIGGERS = (
    Trigger("DIV by zero", DE, b"\x31\xc9\xf7\xf1", 2),
    Trigger("DIV by zero, ring 3", DE, b"\x31\xc9\xf7\xf1", 2, ring=3),
    Trigger("IDIV, quotient too large", DE, mov(0, 0x80000000) + b"\x99\x83\xc9\xff\xf7\xf9", 9),
    Trigger("AAM 0", DE, b"\xd4\x00", modes=LEGACY),
    Trigger("single step", DB, b"\x90\x90", saved=1, qualification=1 << 14, image_rf=False,
            fields={"GUEST_RFLAGS": 2 | tg.TF}),
    Trigger("single step, ring 3", DB, b"\x90\x90", saved=1, qualification=1 << 14, ring=3,
            image_rf=False, fields={"GUEST_RFLAGS": 2 | tg.TF}),
    Trigger("POPF sets TF: a step later", DB, b"\x9c\x80\x4c\x24\x01\x01\x9d\x90\x90", 7, saved=1,
            qualification=1 << 14, image_rf=False),
    Trigger("single step of CLTS", DB, b"\x0f\x06\x90", saved=2,
            qualification=1 << 14, image_rf=False, fields={"GUEST_RFLAGS": 2 | tg.TF}),
    Trigger("DR0 on execution", DB, b"\x90\x90\x90", 2, qualification=1, image_rf=False,
            fields={"GUEST_DR7": BREAKPOINT}, registers={"dr0": CODE + 2}),
    Trigger("DR3 on execution, ring 3", DB, b"\x90\x90\x90", 1, qualification=8, ring=3,
            image_rf=False, fields={"GUEST_DR7": 0x480}, registers={"dr3": CODE + 1}),
    Trigger("general detect", DB, b"\x0f\x21\xf8", qualification=1 << 13,
            image_rf=None, fields={"GUEST_DR7": 0x2400}),
    Trigger("ICEBP", DB, b"\x90\xf1", 1, PRIVILEGED, saved=1, length=1, image_rf=False),
    Trigger("INT3", BP, b"\x90\xcc", 1, SOFTWARE, saved=1, length=1, image_rf=False),
    Trigger("INT3, ring 3", BP, b"\xcc", 0, SOFTWARE, saved=1, length=1, ring=3, image_rf=False),
    Trigger("INTO", OF, mov(0, 0x7FFFFFFF) + b"\x83\xc0\x01\xce", 8, SOFTWARE, saved=1, length=1,
            modes=LEGACY, image_rf=False),
    Trigger("BOUND", BR, b"\x6a\x09\x6a\x00\x83\xc8\xff\x62\x04\x24", 7, modes=LEGACY),
    Trigger("UD2", UD, b"\x0f\x0b"),
    Trigger("UD2, ring 3", UD, b"\x0f\x0b", ring=3),
    Trigger("LOCK NOP", UD, b"\x90\xf0\x90", 1),
    Trigger("PUSH ES in 64-bit mode", UD, b"\x06", modes=("l64",)),
    Trigger("MOV CR5", UD, b"\x0f\x20\xe8"),
    Trigger("x87 with CR0.EM", NM, b"\xd9\xe8", fields={"GUEST_CR0": 0x80010035}),
    Trigger("x87 with CR0.TS, ring 3", NM, b"\xd9\xe8", ring=3,
            fields={"GUEST_CR0": 0x80010039}),
    Trigger("SSE with CR0.TS", NM, b"\x0f\x58\xc0", fields={"GUEST_CR0": 0x80010039}),
    Trigger("IRET with NT and no TSS behind it", TS, b"\x9c\x80\x4c\x24\x01\x40\x9d\xcf", 7,
            error=0, modes=LEGACY),
    Trigger("LTR of an absent TSS", NP, b"\x66\xb8\x58\x00\x0f\x00\xd8", 4, error=tg.OTHER_TASK,
            memory={tg.GDT + tg.OTHER_TASK + 5: b"\x09", tg.GDT + tg.READABLE: bytes(8)}),
    Trigger("absent data segment", NP, load(DS_REGISTER, tg.ABSENT_DATA), 4, error=tg.ABSENT_DATA,
            memory={tg.GDT + tg.ABSENT_DATA + 5: b"\x13"}),
    Trigger("absent gate", NP, b"\xcd\x30", error=0x30 << 3 | 2, length=2, outer=int_n(0x30),
            memory={tg.IDT + 8 * 0x30 + 5: b"\x6e", tg.IDT + 16 * 0x30 + 5: b"\x6e"}),
    Trigger("absent stack segment", SS, load(SS_REGISTER, tg.ABSENT_STACK), 4,
            error=tg.ABSENT_STACK),
    Trigger("stack not canonical", SS,
            b"\x48\xb8" + pack("<Q", 1 << 47 | 1 << 12) + b"\x48\x89\xc4\x50", 13, error=0,
            modes=("l64",), memory={tg.IDT + 16 * SS + 4: b"\x01"}),
    Trigger("CLI, ring 3", GP, b"\xfa", error=0, ring=3),
    Trigger("HLT, ring 3", GP, b"\xf4", error=0, ring=3),
    Trigger("OUT, ring 3", GP, b"\xe6\x80", error=0, ring=3),
    Trigger("MOV CR0, ring 3", GP, b"\x0f\x20\xc0", error=0, ring=3),
    Trigger("selector beyond the GDT", GP, load(DS_REGISTER, tg.BEYOND_GDT), 4,
            error=tg.BEYOND_GDT),
    Trigger("null stack selector", GP, load(SS_REGISTER, 0), 4, error=0, modes=LEGACY),
    Trigger("ring 0 data in ring 3", GP, load(DS_REGISTER, tg.DATA_0), 4, error=tg.DATA_0, ring=3),
    Trigger("gate of ring 0 from ring 3", GP, b"\xcd\x31", error=0x31 << 3 | 2, ring=3, length=2,
            outer=int_n(0x31),
            memory={tg.IDT + 8 * 0x31 + 5: b"\x8e", tg.IDT + 16 * 0x31 + 5: b"\x8e"}),
    Trigger("INT beyond the IDT", GP, b"\xcd\xf0", error=0xF0 << 3 | 2, length=2, outer=int_n(0xF0),
            fields={"GUEST_IDTR_LIMIT": 0x6FF}),
    Trigger("reserved bit of CR4", GP, b"\x0f\x20\xe0\x0d\x00\x00\x00\x80\x0f\x22\xe0", 8, error=0),
    Trigger("WRMSR to no MSR", GP, mov(1, 0x777) + b"\x0f\x30", 5, error=0),
    Trigger("address not canonical", GP,
            b"\x48\xbb" + pack("<Q", 1 << 47) + b"\x8b\x03", 10, error=0, modes=("l64",)),
    fault_on("read, absent", tg.ABSENT, READ, 0),
    fault_on("read, absent, ring 3", tg.ABSENT + 8, READ, USER, ring=3),
    fault_on("write, absent", tg.ABSENT + 0xFF8, STORE, WRITE),
    fault_on("read-modify-write, absent", tg.ABSENT, RMW, WRITE),
    fault_on("write, read-only, ring 3", tg.READ_ONLY, STORE, PRESENT | WRITE | USER, ring=3),
    fault_on("write, read-only, CR0.WP", tg.READ_ONLY + 4, STORE, PRESENT | WRITE),
    fault_on("read, supervisor's, ring 3", tg.SUPERVISOR, READ, PRESENT | USER, ring=3),
    fault_on("write, supervisor's, ring 3", tg.SUPERVISOR, STORE, PRESENT | WRITE | USER, ring=3),
    Trigger("fetch, absent", PF, *at(tg.ABSENT, JUMP), error=0, modes=("p32",),
            qualification=tg.ABSENT, rip=tg.ABSENT),
    Trigger("fetch, absent, NXE", PF, *at(tg.ABSENT, JUMP), error=FETCH, modes=("pae", "l64"),
            qualification=tg.ABSENT, rip=tg.ABSENT),
    Trigger("fetch, NX", PF, *at(tg.NO_EXECUTE, JUMP), error=PRESENT | FETCH,
            modes=("pae", "l64"), qualification=tg.NO_EXECUTE, rip=tg.NO_EXECUTE),
    Trigger("fetch, supervisor's, ring 3", PF, *at(tg.SUPERVISOR, JUMP), ring=3,
            error=PRESENT | USER | FETCH, modes=("pae", "l64"), qualification=tg.SUPERVISOR,
            rip=tg.SUPERVISOR),
    fault_on("read, reserved bit", tg.RESERVED, READ, PRESENT | BAD, modes=("pae", "l64")),
    fault_on("write, reserved bit, ring 3", tg.RESERVED, STORE, PRESENT | BAD | WRITE | USER,
             modes=("pae", "l64"), ring=3),
    fault_on("read, reserved bit of a 4 MB page", 0x400000, READ, PRESENT | BAD, modes=("p32",)),
    Trigger("read across pages", PF, *at(tg.ABSENT - 2, READ), error=0, qualification=tg.ABSENT),
    Trigger("write across pages, ring 3", PF, *at(tg.READ_ONLY + 0xFFE, STORE), ring=3,
            error=PRESENT | WRITE | USER, qualification=tg.READ_ONLY + 0xFFE),
    Trigger("#NP while #GP is delivered", DF, load(DS_REGISTER, tg.BEYOND_GDT), 4, error=0,
            image_rf=None, memory={tg.IDT + 8 * GP + 5: b"\x0e"}, modes=LEGACY),
    Trigger("#NP while #GP is delivered", DF, load(DS_REGISTER, tg.BEYOND_GDT), 4, error=0,
            image_rf=None, memory={tg.IDT + 16 * GP + 5: b"\x0e"}, modes=("l64",)),
    Trigger("#GP while #PF is delivered", DF, *at(tg.ABSENT, READ), error=0,
            image_rf=None, memory={tg.IDT + 8 * PF + 5: b"\x80"}, modes=LEGACY),
    Trigger("#GP while #PF is delivered", DF, *at(tg.ABSENT, READ), error=0,
            image_rf=None, memory={tg.IDT + 16 * PF + 5: b"\x80"}, modes=("l64",)),
    Trigger("x87 division by zero", MF, UNMASKED_FPU + b"\x9b", 13),
    Trigger("unaligned read, ring 3", AC, *at(tg.DATA + 1, READ), error=0, ring=3,
            fields={"GUEST_CR0": 0x80050031, "GUEST_RFLAGS": 2 | tg.AC}),
    Trigger("SSE division by zero", XM,
            b"\x6a\x00\x0f\xae\x14\x24\x0f\x57\xc0\x0f\x5e\xc0", 9),
)  # fmt: skip

CASES = [
    pytest.param(trigger, mode, id=f"{mode}-{trigger.vector}-{trigger.name}")
    for trigger in TRIGGERS
    for mode in trigger.modes
]


def event(trigger: Trigger) -> Interruption:
    return Interruption(trigger.vector, InterruptionType(trigger.kind), trigger.error)


def expected_rip(trigger: Trigger) -> int:
    return trigger.rip + trigger.at if trigger.rip == CODE else trigger.rip


@pytest.mark.parametrize(("trigger", "mode"), CASES)
def test_the_guest_handles_it(trigger: Trigger, mode: str) -> None:
    run = begin(trigger.guest(mode))
    assert (run.exit.reason, run.vmcs["GUEST_RIP"]) == (ExitReason.VMCALL, handler(trigger.vector))
    words = run.pushed(6)
    if trigger.error is not None:
        assert words.pop(0) == trigger.error
    rip, selector, flags = words[:3]
    assert rip == expected_rip(trigger) + trigger.saved
    ring_0, user = (tg.CODE_64, tg.CODE_64_USER) if mode == "l64" else (tg.CODE_32, tg.CODE_32_USER)
    assert selector == (user if trigger.ring else ring_0)
    if trigger.ring:
        assert words[3:5] == [tg.USER_STACK, tg.DATA_3]
    if trigger.image_rf is not None:
        assert bool(flags & tg.RF) == trigger.image_rf
    assert run.vmcs["GUEST_RFLAGS"] & (tg.TF | tg.IF | tg.RF) == 0
    assert run.vmcs["GUEST_SS_ACCESS_RIGHTS"] >> 5 & 3 == 0
    registers = run.processor.registers
    if trigger.vector == PF:
        assert registers.cr2 == trigger.qualification
    if trigger.vector == DB and trigger.kind == FAULT:
        assert registers.dr6 == 0xFFFF0FF0 | trigger.qualification
        assert run.vmcs["GUEST_DR7"] & 1 << 13 == 0


@pytest.mark.parametrize(("trigger", "mode"), CASES)
def test_the_vmm_handles_it(trigger: Trigger, mode: str) -> None:
    run = begin(trigger.guest(mode), {"EXCEPTION_BITMAP": 1 << trigger.vector})
    found = run.exit
    assert (found.reason, found.interruption) == (ExitReason.EXCEPTION_OR_NMI, event(trigger))
    assert found.idt_vectoring == trigger.outer
    trap = trigger.kind == FAULT
    assert run.vmcs["GUEST_RIP"] == expected_rip(trigger) + (trigger.saved if trap else 0)
    assert found.instruction_length == trigger.length
    assert found.qualification == trigger.qualification
    if trigger.image_rf is not None:
        assert bool(run.vmcs["GUEST_RFLAGS"] & tg.RF) == trigger.image_rf
    registers = run.processor.registers
    assert registers.cr2 == (tg.ABSENT if trigger.name.endswith("#PF is delivered") else 0)
    assert registers.dr6 == 0xFFFF0FF0
    assert run.vmcs["GUEST_SS_ACCESS_RIGHTS"] >> 5 & 3 == trigger.ring


@pytest.mark.parametrize(("trigger", "mode"), CASES)
def test_the_vmm_gives_it_back(trigger: Trigger, mode: str) -> None:
    """A VMM that injects what exited leaves the guest as if it had not exited."""
    alone = begin(trigger.guest(mode))
    run = begin(trigger.guest(mode), {"EXCEPTION_BITMAP": 1 << trigger.vector})
    if trigger.vector == PF:
        run.processor.registers.cr2 = run.exit.qualification
    information, code = event(trigger).encode()
    run.vmcs["VM_ENTRY_INTERRUPTION_INFORMATION"] = information
    run.vmcs["VM_ENTRY_EXCEPTION_ERROR_CODE"] = code
    run.vmcs["VM_ENTRY_INSTRUCTION_LENGTH"] = run.exit.instruction_length
    assert run.resume().reason == ExitReason.VMCALL
    assert run.vmcs["GUEST_RIP"] == handler(trigger.vector)
    assert run.vmcs["GUEST_RSP"] == alone.vmcs["GUEST_RSP"]
    assert run.pushed(5) == alone.pushed(5)
    assert run.processor.registers.cr2 == alone.processor.registers.cr2


NESTED = [
    pytest.param(mode, first, gate, nested, code, id=f"{mode}-{nested}-during-{first}")
    for mode in PROTECTED
    for first, gate, nested, code in (
        (GP, b"\x0e", NP, GP << 3 | 3),
        (GP, b"\x80", GP, GP << 3 | 3),
        (UD, b"\x0e", NP, UD << 3 | 3),
    )
]


@pytest.mark.parametrize(("mode", "first", "gate", "nested", "code"), NESTED)
def test_a_nested_fault_is_decided_as_itself(
    mode: str, first: int, gate: bytes, nested: int, code: int
) -> None:
    instructions = load(DS_REGISTER, tg.BEYOND_GDT) if first == GP else b"\x0f\x0b"
    step = 16 if mode == "l64" else 8
    guest = Tiny(mode, 0, instructions, {tg.IDT + step * first + 5: gate})
    # The first fault's own bit must be clear where it is not the same vector.
    run = begin(guest, {"EXCEPTION_BITMAP": 1 << nested})
    if nested == first:
        assert run.exit.idt_vectoring is None
        return
    assert run.exit.interruption == Interruption(nested, InterruptionType.HARDWARE_EXCEPTION, code)
    outer = Interruption(
        first, InterruptionType.HARDWARE_EXCEPTION, tg.BEYOND_GDT if first == GP else None
    )
    assert run.exit.idt_vectoring == outer
    assert run.vmcs["GUEST_RIP"] == CODE + (4 if first == GP else 0)


REAL = (
    Trigger("DIV by zero", DE, b"\x31\xc9\xf7\xf1", 2),
    Trigger("UD2", UD, b"\x90\x0f\x0b", 1),
    Trigger("INT3", BP, b"\xcc", 0, SOFTWARE, saved=1, length=1),
    Trigger("ICEBP", DB, b"\xf1", 0, PRIVILEGED, saved=1, length=1),
    Trigger("INTO", OF, b"\xb0\x7f\x04\x01\xce", 4, SOFTWARE, saved=1, length=1),
    Trigger("single step", DB, b"\x90\x90", saved=1, qualification=1 << 14,
            fields={"GUEST_RFLAGS": 2 | tg.TF}),
    Trigger("x87 with CR0.TS", NM, b"\xd9\xe8", fields={"GUEST_CR0": 0x38}),
    Trigger("INT beyond the vector table", GP, b"\x90\xcd\x20", 1, length=2, outer=int_n(0x20),
            fields={"GUEST_IDTR_LIMIT": 4 * GP + 3}),
)  # fmt: skip


def real_id(trigger: Trigger) -> str:
    return trigger.name


@pytest.mark.parametrize("trigger", REAL, ids=real_id)
def test_real_mode_handles_it_through_its_vector_table(trigger: Trigger) -> None:
    fields = {**trigger.fields}
    fields["GUEST_RFLAGS"] = fields.get("GUEST_RFLAGS", 2) | tg.IF
    run = begin(Tiny("r16", 0, trigger.code, {}, fields))
    assert run.exit.reason == ExitReason.VMCALL
    assert run.vmcs["GUEST_CS_SELECTOR"] == 0
    assert run.vmcs["GUEST_RIP"] == handler(trigger.vector)
    ip, selector, flags = run.pushed(3)
    assert (ip, selector) == (trigger.at + trigger.saved, CODE >> 4)
    assert flags & tg.IF
    assert run.vmcs["GUEST_RFLAGS"] & (tg.IF | tg.TF) == 0
    assert run.vmcs["GUEST_RSP"] == tg.STACK - 6


@pytest.mark.parametrize("trigger", REAL, ids=real_id)
def test_real_mode_leaves_it_to_the_vmm(trigger: Trigger) -> None:
    guest = Tiny("r16", 0, trigger.code, {}, dict(trigger.fields))
    run = begin(guest, {"EXCEPTION_BITMAP": 1 << trigger.vector})
    # Real-address mode has no error codes, so the exit reports none.
    assert run.exit.idt_vectoring == trigger.outer
    assert (run.exit.reason, run.exit.interruption) == (ExitReason.EXCEPTION_OR_NMI, event(trigger))
    trap = trigger.kind == FAULT
    assert run.vmcs["GUEST_RIP"] == trigger.at + (trigger.saved if trap else 0)
    assert run.exit.instruction_length == trigger.length


@pytest.mark.parametrize("mode", tg.MODES)
@pytest.mark.parametrize("vector", [0, 3, 13, 0x20, 0x80, 0xFF])
def test_int_n_is_the_guests_whatever_the_bitmap_says(mode: str, vector: int) -> None:
    guest = Tiny(mode, 0, b"\x90\xcd" + bytes((vector,)))
    run = begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF})
    assert run.exit.reason == ExitReason.VMCALL
    assert run.vmcs["GUEST_RIP"] == handler(vector)
    saved = run.pushed(1)[0]
    assert saved == (3 if mode == "r16" else CODE + 3)


def test_a_chain_of_three_shuts_down() -> None:
    for mode in PROTECTED:
        run = begin(Tiny(mode, 0, b"\x0f\x0b", {}, {"GUEST_IDTR_LIMIT": 0}))
        assert run.exit.reason == ExitReason.TRIPLE_FAULT, mode
        assert run.vmcs["GUEST_RIP"] == CODE
