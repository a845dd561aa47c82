"""REP OUTS in blocks: the same as one iteration at a time, whatever comes in between.

The reference is a machine whose VMM looks at each iteration alone (SDM, "REP/REPE/REPZ/REPNE/REPNZ
--Repeat String Operation Prefix": interrupts and faults between two of them, and registers as of
the one that is not done).
"""

import random

import pytest

from tests.guests.test_polled_ports import EXIT, asked, drives, python_exits, real_mode
from tests.guests.test_snapshots import state
from trapgate.decision.faults import Interruption
from trapgate.instructions import polled_ports as polled
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import ExitReason
from trapgate.vmm.actions import End
from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.pc import Pc
from trapgate.vmm.devices.storage import Memory
from trapgate.vmm.exits.platform import Platform
from trapgate.vmm.machine import VirtualMachine

ENGINES = pytest.mark.parametrize("engine", ["native", "portable"])


def iterate(patch: pytest.MonkeyPatch) -> None:
    """Have the VMM carry out one iteration an exit."""
    patch.setattr(Platform, "_string_block", lambda *args, **named: False)


def each_way(code: bytes, engine: str) -> list[tuple[VirtualMachine, bool]]:
    """Machines: as it is; with a VMM that is asked about each block; and one by one."""
    made = [(real_mode(code, engine, vmm, drives()), False) for vmm in (None, asked())]
    return [*made, (real_mode(code, engine, asked(), drives()), True)]


def contents(vm: VirtualMachine) -> bytes:
    """The first sectors of the disk."""
    return vm.board.disks[0].read(0, 64)


# Write two sectors: drive, count, address CL; from DS:(BX + CL); words, in two parts each.
_BEGIN = (
    "baf603 b002 ee 8cc8 8ed8 baf601 b0e0 ee baf201 b002 ee 42 b003 ee 42 b000 ee 42 ee"
    "baf701 b030 ee ec 00c3"
)
_WORDS = "be{si} b90001 baf001 f36f baf703 ec 00c3 baf701 ec 00c3 b9ff00 baf001 f36f 6f ec 00c3"
_DOUBLE = "66be{si}0000 66b980000000 baf001 {rep} baf701 ec 00c3 66b980000000 baf001 {rep} ec 00c3"
_FORMS = {
    "words": _WORDS.format(si="007c"),
    "words, odd": _WORDS.format(si="017c"),
    "to the next page, odd": _WORDS.format(si="015e"),
    "to the segment's end": _WORDS.format(si="00fe"),
    "beyond the segment's end": _WORDS.format(si="01fe"),
    "downwards": "fd" + _WORDS.format(si="007c"),
    "repne": _WORDS.format(si="007c").replace("f36f", "f26f"),
    "stack segment": _WORDS.format(si="007c").replace("f36f", "36f36f"),
    "fs": "b84000 8ee0" + _WORDS.format(si="0078").replace("f36f", "64f36f"),
    "video memory": "b800b8 8ed8" + _WORDS.format(si="0000"),
    "double words": _DOUBLE.format(si="007c", rep="66f36f"),
    "addresses of 32 bits": "66b978563412" + _DOUBLE.format(si="007c", rep="6766f36f"),
    "bytes": _WORDS.format(si="007c").replace("f36f", "f36e"),
    "nothing": _WORDS.format(si="007c").replace("b90001", "b90000"),
    "far too much": _WORDS.format(si="007c").replace("b90001", "b90004"),
    "another command between": _WORDS.format(si="007c").replace("b9ff00", "baf701 b0ec ee b9ff00"),
    "reset between": _WORDS.format(si="007c").replace(
        "b9ff00", "baf603 b004 ee b000 ee baf001 b9ff00"
    ),
    "read instead": _WORDS.format(si="007c").replace("b9ff00 baf001 f36f", "b9ff00 baf001 f36d"),
    "to nobody": _WORDS.format(si="007c").replace("baf001", "baf002"),
    "serial port": "be007c b90010 baf803 f36e bafd03 ec 00c3",
    "serial port, words": "be007c b90010 baf803 f36f bafd03 ec 00c3",
    "serial port, transmitter's interrupt": (
        "b002 baf903 ee be007c b92000 baf803 f36e bafa03 ec 00c3"
    ),
    "debug console": "be007c b90010 bae900 f36e b041 e6e9 bafa03 ec 00c3",
    "debug console, then its interrupt": (
        "be007c b90010 bae900 f36e bafa03 ec b002 baf903 ee ec bafa03 ec 00c3"
    ),
    "both by turns": "b90010 be007c baf803 6e bae900 6e 49 75f6",
}  # fmt: skip


@ENGINES
@pytest.mark.parametrize("form", _FORMS)
def test_a_block_is_its_iterations(form: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = bytes.fromhex(_BEGIN + _FORMS[form] + "88d8") + EXIT
    ends = []
    for vm, one_by_one in each_way(code, engine):
        with monkeypatch.context() as patch:
            if one_by_one:
                iterate(patch)
            vm.processor.memory.write(4 * 13, b"\x00\x05\x00\x00")  # #GP: out F4h, al
            vm.processor.memory.write(0x500, EXIT)
            vm.processor.memory.write(0x5E00, random.Random(1).randbytes(0x1000))
            vm.processor.memory.write(0xFC00, random.Random(2).randbytes(0x400))
            stop = vm.run(max_instructions=100_000)
            assert stop.end is End.DEBUG_EXIT
            found = state(vm)
            del found["vmcs"], found["exits"]
            ends.append((stop, found, contents(vm), vm.processor.skipped))
    assert ends[0] == ends[2]
    assert ends[1] == ends[2]


def test_blocks_cost_few_exits() -> None:
    """Two sectors: two exits each beside those of the command and the statuses."""
    code = bytes.fromhex(_BEGIN + _FORMS["double words"] + _FORMS["serial port"]) + EXIT
    vm = real_mode(code, "native", board=drives())
    vm.processor.memory.write(0x7C00 + len(code), random.Random(1).randbytes(512))
    expected = vm.processor.memory.read(0x7C00, 1024)
    seen = python_exits(vm)
    vm.run(max_instructions=100_000)
    assert contents(vm)[3 * 512 : 5 * 512] == expected
    assert len(seen) < 30
    assert len(vm.output) == 0x1000


# The same in protected mode, with paging: ECX double words from DS:ESI to the data port of a disk
# that wants a sector. Behind it, a mark in memory.
_MARK = "26c7050060000001000000 b000 e6f4"
_PAGED = "b90f000000 81c171000000 baf0010000 f36f" + _MARK
_FAULT = "26890d04600000 26893508600000 50 0f20d0 26a30c600000 26830d{pte} 01 58 83c404 cf"
"""#PF: note ECX, ESI and CR2; make the page present; IRET."""
_OTHER = "26890d04600000 26893508600000 b001 e6f4"
"""#GP and #SS: note ECX and ESI, and end."""
_TABLES, _PAGES = 0x2000, 0x3000
_GATES, _GDT = 0x1000, 0x1800
_SOURCE = 0x9F40
"""48 double words before a page's end."""


def paged(engine: str, one_by_one: bool, present: bool, **fields: int) -> VirtualMachine:
    """A machine that is about to execute _PAGED in ring 0."""
    vm = VirtualMachine(1 << 20, engine=engine, vmm=asked() if one_by_one else None, board=drives())
    memory = vm.processor.memory
    memory.write(_TABLES, (_PAGES | 7).to_bytes(4, "little"))
    for n in range(256):
        flag = 7 if n != 10 or present else 6
        memory.write(_PAGES + 4 * n, (n << 12 | flag).to_bytes(4, "little"))
    memory.write(_GDT + 8, bytes.fromhex("ffff0000009bcf00 ffff00000093cf00"))
    for vector, at in ((12, 0x5100), (13, 0x5100), (14, 0x5000), (0x40, 0x5200)):
        gate = (at & 0xFFFF).to_bytes(2, "little") + bytes.fromhex("0800 008f 0000")
        memory.write(_GATES + 8 * vector, gate)
    pte = (_PAGES + 40).to_bytes(4, "little").hex()
    memory.write(0x5000, bytes.fromhex(_FAULT.format(pte=pte)))
    memory.write(0x5100, bytes.fromhex(_OTHER))
    # An interrupt: inc dword [6010h]; add [6014h], ecx; iret
    memory.write(0x5200, bytes.fromhex("26ff0510600000 26010d14600000 cf"))
    memory.write(0x7C00, bytes.fromhex(_PAGED))
    memory.write(_SOURCE - 0x40, random.Random(3).randbytes(0x300))
    vm.vmcs.set_flat_segments(32)
    vm.vmcs["GUEST_CR0"] |= 1 << 31 | 1
    vm.vmcs["GUEST_CR3"] = _TABLES
    vm.vmcs["GUEST_IDTR_BASE"], vm.vmcs["GUEST_IDTR_LIMIT"] = _GATES, 0x7FF
    vm.vmcs["GUEST_GDTR_BASE"], vm.vmcs["GUEST_GDTR_LIMIT"] = _GDT, 23
    vm.vmcs["GUEST_CS_SELECTOR"] = 8
    vm.vmcs["GUEST_RIP"], vm.vmcs["GUEST_RSP"] = 0x7C00, 0x7000
    vm.vmcs["GUEST_RFLAGS"] = 0x202
    for name, value in fields.items():
        vm.vmcs[name] = value
    vm.processor.registers.rsi = _SOURCE
    for port, value in ((0x1F6, 0xE0), (0x1F2, 1), (0x1F3, 3), (0x1F4, 0), (0x1F5, 0), (0x1F7, 48)):
        vm.devices.write(port, 1, value, 0)
    return vm


_STATES = {
    "present": (True, {}),
    "a page fault between": (False, {}),
    "a limit": (True, {"GUEST_DS_LIMIT": _SOURCE + 301, "GUEST_DS_ACCESS_RIGHTS": 0x4093}),
    "a limit of the stack": (True, {}),
    "expand down": (True, {"GUEST_DS_LIMIT": 0x8FFF, "GUEST_DS_ACCESS_RIGHTS": 0xC097}),
    "unusable": (True, {"GUEST_DS_ACCESS_RIGHTS": 1 << 16}),
    "readable code": (True, {"GUEST_DS_ACCESS_RIGHTS": 0xC09B}),
    "read only": (True, {"GUEST_DS_ACCESS_RIGHTS": 0xC091}),
    "a breakpoint": (True, {"GUEST_DR7": 0xF0401}),
    "a base": (True, {"GUEST_DS_BASE": 0xFFFF_FFF1}),
}  # fmt: skip


@ENGINES
@pytest.mark.parametrize("case", _STATES)
def test_faults_in_the_middle(case: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    present, fields = _STATES[case]
    ends = []
    for one_by_one in (False, True):
        with monkeypatch.context() as patch:
            if one_by_one:
                iterate(patch)
            vm = paged(engine, one_by_one, present, **fields)
            if case == "a breakpoint":
                # Reads and writes of four bytes; #DB has no gate: a triple fault, with the journal.
                vm.processor.registers.dr0 = _SOURCE + 64
            if case == "a limit of the stack":
                vm.vmcs["GUEST_SS_LIMIT"], vm.vmcs["GUEST_SS_ACCESS_RIGHTS"] = 0x9FFE, 0x4093
                vm.processor.memory.write(0x7C10, bytes.fromhex("36f36f"))
                vm.processor.memory.write(0x7C13, bytes.fromhex(_MARK))
            stop = vm.run(max_instructions=10_000)
            found = state(vm)
            del found["vmcs"], found["exits"]
            found["registers"] = found["registers"][:21]  # type: ignore[index]
            ends.append((stop.end, stop.message, found, contents(vm)))
            notes = [vm.processor.memory.read(0x6000 + 4 * n, 4) for n in range(4)]
            done, left, at, cr2 = (int.from_bytes(note, "little") for note in notes)
    assert ends[0] == ends[1]
    if case == "a page fault between":
        assert (done, left, at, cr2) == (1, 80, 0xA000, 0xA000)
    elif case == "a limit":
        # Elements 0 to 74 lie below it; the next begins at _SOURCE + 300, and ends beyond.
        assert (done, left, at) == (0, 128 - 75, _SOURCE + 300)
    elif case == "a limit of the stack":
        assert (done, left, at) == (0, 128 - 47, _SOURCE + 47 * 4)
    elif case == "unusable":
        assert (done, left, at) == (0, 128, _SOURCE)
    elif case != "a breakpoint":
        assert done == 1


def _interrupt(vm: VirtualMachine) -> None:
    vm.inject(Interruption(0x40, InterruptionType.EXTERNAL_INTERRUPT))


@ENGINES
@pytest.mark.parametrize("when", [4, 5, 6, 40, 51, 52, 100, 130, 131])
def test_interrupts_between_iterations(
    when: int, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come at the same iteration, and the rest is made behind them."""
    ends = []
    for one_by_one in (False, True):
        with monkeypatch.context() as patch:
            if one_by_one:
                iterate(patch)
            vm = paged(engine, one_by_one, present=False)
            vm.at(when, _interrupt)
            stop = vm.run(max_instructions=10_000)
            assert stop.end is End.DEBUG_EXIT
            found = state(vm)
            del found["vmcs"], found["exits"]
            ends.append((found, contents(vm)))
    assert ends[0] == ends[1]
    assert vm.processor.memory.read(0x6010, 4) == b"\1\0\0\0"


def test_a_block_of_any_lengths_and_sizes() -> None:
    """What a channel gets in blocks and singly, mixed at random, is what the disk has then."""
    r = random.Random(5)
    for _ in range(20):
        pc = Pc(1 << 20, lambda byte: None, board=Board(disks=(disk := Memory(bytes(1 << 16)),)))
        pc.write(0x3F6, 1, 2, 0)
        count = r.choice((1, 2, 5, 16, 40))
        for port, value in ((6, 0xE0), (2, count), (3, 7), (4, 0), (5, 0), (7, 0x30)):
            pc.write(0x1F0 + port, 1, value, 0)
        data = r.randbytes(512 * count)
        at = 0
        while at < len(data):
            size = r.choice((2, 4, 4)) if at % 4 == 0 else 2
            slot = polled.slot_about(pc.ports.cells, polled.access(0x1F0, size, False))
            element = int.from_bytes(data[at : at + size], "little")
            how = r.randrange(3)
            if how == 0:
                at += size * pc.write_string(
                    0x1F0, size, data[at : at + size * r.randrange(1, 300)], 0
                )
            elif how == 1 and not polled.needs_vmm(pc.ports.cells, slot, 0, element):
                polled.store(pc.ports.cells, slot, 0, element)
                at += size
            else:
                pc.write(0x1F0, size, element, 0)
                at += size
        assert disk.read(7, count) == data
        assert pc.read(0x1F7, 1, 0) == 0x50
        assert not pc.write_string(0x1F0, 4, b"more than that", 0) > 1


def test_a_command_of_several_sectors_keeps_what_has_come_so_far() -> None:
    """WRITE MULTIPLE of 16 sectors wants more at once than the processor may put aside."""
    vm = real_mode(b"", "native", board=drives())
    vm.devices.write(0x3F6, 1, 2, 0)
    vm.devices.write(0x1F2, 1, 16, 0)
    vm.devices.write(0x1F7, 1, 0xC6, 0)
    for port, value in ((6, 0xE0), (2, 16), (3, 0), (4, 0), (5, 0), (7, 0xC5)):
        vm.devices.write(0x1F0 + port, 1, value, 0)
    data = random.Random(8).randbytes(8192)
    vm.processor.memory.write(0x8000, data)
    vm.processor.memory.write(
        0x7C00, bytes.fromhex("b80008 8ed8 31f6 b90010 baf001 f36f b000") + EXIT
    )
    seen = python_exits(vm)
    assert vm.run(max_instructions=10_000).end is End.DEBUG_EXIT
    assert contents(vm)[:8192] == data
    assert seen.count(ExitReason.IO_INSTRUCTION) < 8
