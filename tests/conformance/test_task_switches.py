"""Task switches as the VMM in Python carries them out.

SDM, "Task Switching" and its table of exception conditions. The guest of each test switches from
the task of `tiny_guest` to one whose TSS, of 16 or 32 bits, the test has made.
"""

from dataclasses import dataclass, field
from struct import pack, pack_into, unpack_from

import pytest

from tests.conformance.tiny_guest import (
    ABSENT,
    CODE,
    CODE_32,
    CODE_32_USER,
    DATA_0,
    DATA_3,
    GDT,
    IDT,
    MEMORY,
    OTHER_TASK,
    OTHER_TSS,
    STACK,
    TABLES,
    TASK,
    TSS,
    USER_STACK,
    VMCALL,
    Run,
    Tiny,
    begin,
    descriptor,
    handler,
)
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.state import CR0_TS, RFLAGS_NT, RFLAGS_VM
from trapgate.sdm.vectors import DB, DF, GP, NP, PF, SS, TS
from trapgate.vmm.actions import Action, Inject, StateReplaced
from trapgate.vmm.exits.task_switch import switch_tasks
from trapgate.vmm.machine import VirtualMachine

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.parametrize("engine", ["native", "portable"]),
]

NEW_CODE, NEW_STACK = 0x30000, 0x32000
INNER_STACK = 0xF000
"""That of ring 0, by the new task's TSS."""
GATE = 0x68
"""Selector of a task gate to OTHER_TASK."""
ABSENT_CODE, LDT, SMALL_CODE = 0x70, 0x78, 0x48
WIDTHS = (16, 32)
NAMES = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
GENERAL = {name: 0x1110 + n for n, name in enumerate(NAMES)} | {"esp": NEW_STACK}
SEGMENTS = {"es": DATA_0, "cs": CODE_32, "ss": DATA_0, "ds": DATA_0, "fs": 0, "gs": DATA_0}


@dataclass
class Task:
    """A TSS: registers, segments and the rest of it."""

    width: int = 32
    ip: int = NEW_CODE
    flags: int = 2
    general: dict[str, int] = field(default_factory=lambda: dict(GENERAL))
    segments: dict[str, int] = field(default_factory=lambda: dict(SEGMENTS))
    ldt: int = 0
    link: int = 0
    trap: int = 0
    cr3: int = TABLES

    def image(self) -> bytes:
        """104 or 44 bytes."""
        values = (self.ip, self.flags, *self.general.values())
        selectors = list(self.segments.values())
        if self.width == 16:
            tss = bytearray(44)
            pack_into("<2H", tss, 2, INNER_STACK, DATA_0)
            pack_into("<10H", tss, 14, *(value & 0xFFFF for value in values))
            pack_into("<5H", tss, 34, *selectors[:4], self.ldt)
        else:
            tss = bytearray(104)
            pack_into("<2I", tss, 4, INNER_STACK, DATA_0)
            pack_into("<I", tss, 28, self.cr3)
            pack_into("<10I", tss, 32, *values)
            pack_into(
                "<14H", tss, 72, *(word for one in selectors for word in (one, 0)), self.ldt, 0
            )
            pack_into("<HH", tss, 100, self.trap, 0x68)
        pack_into("<H", tss, 0, self.link)
        return bytes(tss)


FAR = {"jmp": b"\xea", "call": b"\x9a"}


def small(address: int) -> int:
    """Where 16-bit code of the new task lies: its pointer has 16 bits."""
    return address & 0xFFFF


def memory_of(task: Task, width: int) -> dict[int, bytes]:
    """The tables with the new task, its code, and room for what the checks need."""
    kind = 0x89 if width == 32 else 0x81
    limit = 103 if width == 32 else 43
    entries = {
        OTHER_TASK: descriptor(OTHER_TSS, limit, kind),
        GATE: OTHER_TASK << 16 | 0xE5 << 40,
        ABSENT_CODE: descriptor(0, 0xFFFFF, 0xC01B),
        LDT: descriptor(0x33000, 0x3F, 0x82),
        SMALL_CODE: descriptor(NEW_CODE, 0xF, 0x409B),
    }
    parts = {GDT + selector: pack("<Q", entry) for selector, entry in entries.items()}
    parts |= {OTHER_TSS: task.image(), NEW_CODE: VMCALL, TSS + 28: pack("<I", TABLES)}
    return parts


def switched(guest: Tiny, engine: str) -> tuple[Run, Action, VirtualMachine]:
    """The guest up to its task switch, and what the handler says."""
    run = begin(guest, engine=engine)
    assert run.exit.reason is ExitReason.TASK_SWITCH
    machine = VirtualMachine(MEMORY, processor=run.processor)
    machine.vmcs = run.vmcs
    return run, switch_tasks(run.exit, machine), machine


def inject(run: Run, action: Action) -> None:
    """Go on to the VMCALL of the handler that the action wants entered."""
    assert isinstance(action, Inject)
    word, code = action.event.encode()
    run.vmcs["VM_ENTRY_INTERRUPTION_INFORMATION"] = word
    run.vmcs["VM_ENTRY_EXCEPTION_ERROR_CODE"] = code
    assert run.resume().reason is ExitReason.VMCALL


def by_far_transfer(name: str, task: Task, selector: int = OTHER_TASK, **fields: int) -> Tiny:
    """A guest that jumps or calls to the task."""
    code = FAR[name] + pack("<IH", 0, selector)
    return Tiny("p32", 0, code, memory_of(task, task.width), dict(fields))


def state_of(run: Run) -> dict[str, int]:
    registers = {
        f"e{name}": getattr(run.processor.registers, f"r{name}")
        for name in ("ax", "cx", "dx", "bx", "bp", "si", "di")
    }
    return registers | {"esp": run.vmcs["GUEST_RSP"]}


def saved(run: Run, base: int = TSS) -> tuple[int, ...]:
    """EIP, EFLAGS and the general registers in a 32-bit TSS."""
    return unpack_from("<10I", run.processor.memory.read(base, 104), 32)


def access_byte(run: Run, selector: int) -> int:
    return run.processor.memory.read(GDT + selector + 5, 1)[0]


@pytest.mark.parametrize("selector", [OTHER_TASK, GATE])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", FAR)
def test_a_far_transfer_to_a_task(name: str, width: int, selector: int, engine: str) -> None:
    ip = NEW_CODE if width == 32 else small(CODE_16)
    guest = by_far_transfer(name, Task(width, ip=ip), selector)
    guest.memory[CODE_16] = VMCALL
    guest.registers = {"rax": 0xABCD0001}
    run, action, _ = switched(guest, engine)
    assert action == StateReplaced()
    nested = name == "call"
    assert run.vmcs["GUEST_TR_SELECTOR"] == OTHER_TASK
    assert run.vmcs["GUEST_TR_ACCESS_RIGHTS"] & 0xF == (0xB if width == 32 else 3)
    assert access_byte(run, TASK) & 2 == (2 if nested else 0)
    assert access_byte(run, OTHER_TASK) & 2 == 2
    assert run.vmcs["GUEST_RFLAGS"] == 2 | (RFLAGS_NT if nested else 0)
    assert run.vmcs["GUEST_CR0"] & CR0_TS
    eip, flags, eax, *_ = saved(run)
    assert (eip, flags, eax) == (CODE + len(guest.code), 2, 0xABCD0001)
    link = run.processor.memory.read(OTHER_TSS, 2)
    assert link == pack("<H", TASK if nested else 0)
    mask = 0xFFFF if width == 16 else 0xFFFF_FFFF
    assert state_of(run) == {register: value & mask for register, value in GENERAL.items()}
    assert run.vmcs["GUEST_GS_SELECTOR"] == (DATA_0 if width == 32 else 0)
    assert run.resume().reason is ExitReason.VMCALL
    assert run.vmcs["GUEST_RIP"] == ip


CODE_16 = 0x9000
"""Below 64 KiB."""


def test_a_called_task_returns(engine: str) -> None:
    guest = by_far_transfer("call", Task())
    guest.memory[NEW_CODE] = b"\xcf" + VMCALL
    run, action, machine = switched(guest, engine)
    assert action == StateReplaced()
    assert run.resume().reason is ExitReason.TASK_SWITCH
    assert run.exit.qualification == 1 << 30 | TASK
    assert switch_tasks(run.exit, machine) == StateReplaced()
    assert run.vmcs["GUEST_RFLAGS"] == 2
    assert access_byte(run, TASK) & 2
    assert not access_byte(run, OTHER_TASK) & 2
    assert run.resume().reason is ExitReason.VMCALL
    assert run.vmcs["GUEST_RIP"] == CODE + len(guest.code)
    # The task that was left goes on behind its IRET, without NT.
    eip, flags, *_ = saved(run, OTHER_TSS)
    assert (eip, flags) == (NEW_CODE + 1, 2)


def task_gate(vector: int) -> dict[int, bytes]:
    return {IDT + 8 * vector: pack("<Q", OTHER_TASK << 16 | 0xE5 << 40)}


def test_an_interrupt_by_a_task_gate_saves_where_it_returns_to(engine: str) -> None:
    guest = Tiny("p32", 0, b"\xcd\x40", memory_of(Task(), 32) | task_gate(0x40))
    run, action, _ = switched(guest, engine)
    assert action == StateReplaced()
    assert saved(run)[0] == CODE + 2
    assert run.vmcs["GUEST_RFLAGS"] & RFLAGS_NT
    assert run.vmcs["GUEST_RSP"] == NEW_STACK


def test_a_fault_by_a_task_gate_pushes_its_error_code(engine: str) -> None:
    load = b"\xb8\x00\x10\x00\x00\x8e\xd8"  # mov eax, 1000H; mov ds, ax
    guest = Tiny("p32", 0, load, memory_of(Task(), 32) | task_gate(GP))
    run, action, _ = switched(guest, engine)
    assert action == StateReplaced()
    assert saved(run)[0] == CODE + 5
    assert run.vmcs["GUEST_RSP"] == NEW_STACK - 4
    assert run.pushed(1) == [0x1000]
    assert run.resume().reason is ExitReason.VMCALL


def test_a_breakpoint_on_the_error_code_for_a_task(engine: str) -> None:
    load = b"\xb8\x00\x10\x00\x00\x8e\xd8"  # mov eax, 1000H; mov ds, ax
    for place, vector in ((NEW_STACK - 4, DB), (NEW_STACK, None)):
        guest = Tiny("p32", 0, load, memory_of(Task(), 32) | task_gate(GP))
        guest.registers["dr1"] = place
        guest.fields["GUEST_DR7"] = 0x400 | 8 | 0xD << 20  # global: it outlives the switch
        run, action, _ = switched(guest, engine)
        assert run.vmcs["GUEST_RIP"] == NEW_CODE
        if vector is None:
            assert action == StateReplaced()
            continue
        assert isinstance(action, Inject)
        assert action.event.vector == vector
        assert run.processor.registers.dr6 & 0xF == 2
        assert run.vmcs["GUEST_PENDING_DEBUG_EXCEPTIONS"] == 0


def test_a_task_in_ring_3(engine: str) -> None:
    segments = dict.fromkeys(SEGMENTS, DATA_3) | {"cs": CODE_32_USER}
    task = Task(segments=segments, general=GENERAL | {"esp": USER_STACK})
    run, action, _ = switched(by_far_transfer("jmp", task), engine)
    assert action == StateReplaced()
    assert run.vmcs["GUEST_SS_ACCESS_RIGHTS"] >> 5 & 3 == 3
    assert run.resume().reason is ExitReason.VMCALL


def test_a_task_in_virtual_8086_mode(engine: str) -> None:
    segments = dict.fromkeys(SEGMENTS, 0x900)
    task = Task(flags=2 | RFLAGS_VM, ip=0, segments=segments, general=GENERAL | {"esp": 0x100})
    guest = by_far_transfer("jmp", task)
    guest.memory[0x9000] = b"\x90\x0f\x0b"
    run, action, _ = switched(guest, engine)
    assert action == StateReplaced()
    run.vmcs["EXCEPTION_BITMAP"] = 1 << 6
    run.resume()
    assert run.exit.reason is ExitReason.EXCEPTION_OR_NMI
    assert run.vmcs["GUEST_RIP"] == 1
    assert run.vmcs["GUEST_CS_BASE"] == 0x9000


def test_the_trap_flag_of_a_tss(engine: str) -> None:
    run, action, _ = switched(by_far_transfer("jmp", Task(trap=1)), engine)
    assert isinstance(action, Inject)
    assert action.event.vector == 1
    assert run.processor.registers.dr6 & 0x8000
    assert run.vmcs["GUEST_RIP"] == NEW_CODE


def test_local_breakpoints_are_the_old_tasks(engine: str) -> None:
    run, _, _ = switched(by_far_transfer("jmp", Task(), GUEST_DR7=0x755), engine)
    assert run.vmcs["GUEST_DR7"] == 0x600 | 0 | 0x400


BEYOND = 0x1000


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"cs": 0}, (TS, 0)),
        ({"cs": DATA_0}, (TS, DATA_0)),
        ({"cs": BEYOND}, (TS, BEYOND)),
        ({"cs": CODE_32 | 3}, (TS, CODE_32)),
        ({"cs": ABSENT_CODE}, (NP, ABSENT_CODE)),
        ({"ss": 0}, (TS, 0)),
        ({"ss": CODE_32}, (TS, CODE_32)),
        ({"ss": DATA_3}, (TS, DATA_3 & ~3)),
        ({"ss": 0x50}, (SS, 0x50)),
        ({"ds": BEYOND}, (TS, BEYOND)),
        ({"es": OTHER_TASK}, (TS, OTHER_TASK)),
    ],
)
def test_segments_of_the_new_task_are_checked_in_it(
    change: dict[str, int], expected: tuple[int, int], engine: str
) -> None:
    run, action, _ = switched(by_far_transfer("jmp", Task(segments=SEGMENTS | change)), engine)
    assert isinstance(action, Inject)
    assert (action.event.vector, action.event.error_code) == expected
    # The fault is the new task's.
    assert run.vmcs["GUEST_RIP"] == NEW_CODE
    assert run.vmcs["GUEST_TR_SELECTOR"] == OTHER_TASK
    inject(run, action)
    assert run.vmcs["GUEST_RIP"] == handler(expected[0])


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        # Each row against the next one that is wrong, too.
        ({"ldt": CODE_32, "cs": CODE_32 | 1}, (TS, CODE_32)),
        ({"cs": CODE_32 | 1, "ss": 0}, (TS, CODE_32)),
        ({"cs": 0, "ss": 0x50}, (SS, 0x50)),
        ({"cs": ABSENT_CODE, "ss": DATA_3}, (TS, DATA_3 & ~3)),
        ({"cs": DATA_0, "ss": DATA_0 | 1}, (TS, DATA_0)),
        ({"cs": ABSENT_CODE, "ss": DATA_0 | 1}, (NP, ABSENT_CODE)),
        ({"ss": DATA_0 | 1, "ds": BEYOND}, (TS, DATA_0)),
        ({"ds": 0x48, "es": BEYOND}, (NP, 0x48)),
        ({"gs": BEYOND, "ip": 1 << 31}, (TS, BEYOND)),
    ],
)
def test_the_order_of_the_checks(
    wrong: dict[str, int], expected: tuple[int, int], engine: str
) -> None:
    """SDM, table "Exception Conditions Checked During a Task Switch"."""
    task = Task(segments=SEGMENTS | {n: wrong[n] for n in wrong if n in SEGMENTS})
    task.ldt, task.ip = wrong.get("ldt", 0), wrong.get("ip", NEW_CODE)
    guest = by_far_transfer("jmp", task)
    guest.memory[GDT + 0x48] = pack("<Q", descriptor(0, 0xFFFFF, 0xC013))
    _, action, _ = switched(guest, engine)
    assert isinstance(action, Inject)
    assert (action.event.vector, action.event.error_code) == expected


@pytest.mark.parametrize("unrestricted", [0, 0x80])
def test_what_a_handler_finds(unrestricted: int, engine: str) -> None:
    """Where SS cannot be loaded, the new task's inner stack, and on it its own selectors."""
    task = Task(segments=SEGMENTS | {"ss": BEYOND, "cs": ABSENT_CODE})
    guest = by_far_transfer("jmp", task)
    run = begin(guest, engine=engine)
    run.vmcs["SECONDARY_PROCESSOR_BASED_CONTROLS"] &= ~0x80
    run.vmcs["SECONDARY_PROCESSOR_BASED_CONTROLS"] |= unrestricted
    machine = VirtualMachine(MEMORY, processor=run.processor)
    action = switch_tasks(run.exit, machine)
    inject(run, action)
    assert run.vmcs["GUEST_RIP"] == handler(TS)
    assert run.vmcs["GUEST_RSP"] == INNER_STACK - 24
    rpl = 0 if unrestricted else 3
    pushed = [BEYOND, NEW_CODE, ABSENT_CODE | rpl, 2, NEW_STACK, BEYOND | rpl]
    assert run.pushed(6) == pushed


def test_where_only_cs_is_wrong_the_new_stack_is_used(engine: str) -> None:
    task = Task(segments=SEGMENTS | {"cs": ABSENT_CODE})
    run, action, _ = switched(by_far_transfer("jmp", task), engine)
    inject(run, action)
    assert run.vmcs["GUEST_RSP"] == NEW_STACK - 16
    assert run.pushed(4) == [ABSENT_CODE, NEW_CODE, ABSENT_CODE, 2]


OTHER_POINTERS = TABLES + 0x800


@pytest.mark.parametrize("cr3", [TABLES, OTHER_POINTERS])
@pytest.mark.parametrize("reserved", [0, 1 << 1, 1 << 40])
def test_the_pointers_of_pae_paging(cr3: int, reserved: int, engine: str) -> None:
    """They are loaded if the switch changes CR3, and checked; the fault is the new task's.

    SDM, "Loading Page-Directory-Pointer-Table Entries".
    """
    guest = by_far_transfer("jmp", Task(cr3=cr3))
    guest.mode = "pae"
    guest.memory[OTHER_POINTERS] = pack("<4Q", TABLES + 0x2000 | 1 | reserved, 0, 0, 0)
    run, action, _ = switched(guest, engine)
    assert run.vmcs["GUEST_TR_SELECTOR"] == OTHER_TASK
    if cr3 != TABLES and reserved:
        assert isinstance(action, Inject)
        assert (action.event.vector, action.event.error_code) == (GP, 0)
        assert (run.vmcs["GUEST_CR3"], run.vmcs["GUEST_RIP"]) == (TABLES, NEW_CODE)
    else:
        assert action == StateReplaced()
        assert run.vmcs["GUEST_CR3"] == cr3
        assert run.resume().reason is ExitReason.VMCALL
        assert run.vmcs["GUEST_RIP"] == NEW_CODE


def test_wrong_pointers_of_a_task_in_virtual_8086_mode(engine: str) -> None:
    """Its registers are those of that mode when the fault is delivered."""
    segments = dict.fromkeys(SEGMENTS, 0x900)
    task = Task(flags=2 | RFLAGS_VM, ip=0, segments=segments, cr3=OTHER_POINTERS)
    guest = by_far_transfer("jmp", task)
    guest.mode = "pae"
    guest.memory[OTHER_POINTERS] = pack("<4Q", TABLES + 0x2000 | 1 | 1 << 40, 0, 0, 0)
    run, action, _ = switched(guest, engine)
    inject(run, action)
    assert run.vmcs["GUEST_RIP"] == handler(GP)
    assert run.pushed(10) == [0, 0, 0x900, 2 | RFLAGS_VM, NEW_STACK, *[0x900] * 5]


@pytest.mark.parametrize(("ldt", "expected"), [(LDT, None), (4, (TS, 4)), (CODE_32, (TS, CODE_32))])
def test_the_ldt_of_the_new_task(ldt: int, expected: tuple[int, int] | None, engine: str) -> None:
    run, action, _ = switched(by_far_transfer("jmp", Task(ldt=ldt)), engine)
    if expected is None:
        assert run.vmcs["GUEST_LDTR_BASE"] == 0x33000
        assert run.resume().reason is ExitReason.VMCALL
    else:
        assert isinstance(action, Inject)
        assert (action.event.vector, action.event.error_code) == expected


def test_an_instruction_pointer_beyond_the_limit(engine: str) -> None:
    task = Task(ip=0x10, segments=SEGMENTS | {"cs": SMALL_CODE})
    run, action, _ = switched(by_far_transfer("jmp", task), engine)
    assert isinstance(action, Inject)
    assert (action.event.vector, action.event.error_code) == (GP, 0)
    assert run.vmcs["GUEST_RIP"] == 0x10


def test_a_tss_that_is_not_there_is_the_old_tasks_page_fault(engine: str) -> None:
    guest = by_far_transfer("jmp", Task())
    guest.memory[GDT + OTHER_TASK] = pack("<Q", descriptor(ABSENT, 103, 0x89))
    run, action, _ = switched(guest, engine)
    assert isinstance(action, Inject)
    assert (action.event.vector, action.event.error_code) == (PF, 0)
    assert run.processor.registers.cr2 == ABSENT
    assert run.vmcs["GUEST_RIP"] == CODE
    assert run.vmcs["GUEST_TR_SELECTOR"] == TASK
    assert access_byte(run, OTHER_TASK) & 2 == 0


def test_a_page_fault_before_the_switch_is_combined_with_the_event(engine: str) -> None:
    guest = Tiny("p32", 0, b"\xa1" + pack("<I", ABSENT), memory_of(Task(), 32) | task_gate(PF))
    guest.memory[GDT + OTHER_TASK] = pack("<Q", descriptor(ABSENT, 103, 0x89))
    _, action, _ = switched(guest, engine)
    assert isinstance(action, Inject)
    assert (action.event.vector, action.event.error_code) == (DF, 0)


def test_a_guest_that_switches_tasks_runs_in_a_machine(engine: str) -> None:
    """The whole loop: the machine's own handler, and no delivery anew of what the gate served."""
    guest = Tiny("p32", 0, b"\xcd\x40", memory_of(Task(), 32) | task_gate(0x40))
    guest.memory[NEW_CODE] = b"\xcf"
    guest.memory[CODE + 2] = b"\xb0\x00\xe6\xf4\xf4"  # mov al, 0; out 0F4h, al; hlt
    machine = VirtualMachine(MEMORY, engine=engine)
    guest.put(machine.processor, machine.vmcs)
    stop = machine.run(max_instructions=1000)
    assert stop.message == "the guest exited with status 0"
    assert machine.vmcs["GUEST_RSP"] == STACK
