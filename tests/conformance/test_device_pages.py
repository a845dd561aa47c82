"""Devices behind physical pages: every kind of access reaches them, byte for byte."""

from collections.abc import Callable
from struct import pack

import pytest

from tests.conformance.tiny_guest import (
    ABSENT,
    CODE,
    DATA,
    TABLES,
    Run,
    Tiny,
    handler,
    launch,
    prepare,
)
from trapgate.errors import EngineError
from trapgate.processor.processor import Processor
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm.reasons import ExitReason
from trapgate.vmcs.vmcs import Vmcs

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
MODES = ("p32", "pae", "l64")
PAGE = 0x40000
"""The device's physical page, far above RAM; the guests see it at ABSENT."""
NOTHING = PAGE + 7


class Panel:
    """A device like RAM: 4096 bytes, and a note of each access."""

    def __init__(self) -> None:
        self.bytes = bytearray(n * 7 & 0xFF for n in range(4096))
        self.accesses: list[tuple[str, int, int]] = []

    def load(self, address: int, size: int) -> int:
        assert address >> 12 == PAGE
        self.accesses.append(("load", address & 0xFFF, size))
        return int.from_bytes(self.bytes[address & 0xFFF :][:size], "little")

    def store(self, address: int, size: int, value: int) -> None:
        assert address >> 12 == PAGE
        self.accesses.append(("store", address & 0xFFF, size))
        self.bytes[address & 0xFFF :][:size] = b""
        offset = address & 0xFFF
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")


def guest(mode: str, code: bytes, page: int = PAGE) -> Tiny:
    size = 4 if mode == "p32" else 8
    entry = (page << 12 | 7).to_bytes(size, "little")
    tiny = Tiny(mode, code=code)
    tiny.memory[TABLES + 0x3000 + (ABSENT >> 12) * size] = entry
    tiny.registers |= {"rbx": ABSENT, "rsi": ABSENT, "rdi": ABSENT, "rcx": 0, "rdx": 0}
    return tiny


def begin(mode: str, code: bytes, engine: str, **registers: int) -> tuple[Run, Panel]:
    tiny = guest(mode, code)
    tiny.registers |= registers
    processor, vmcs = prepare(tiny, engine=engine)
    panel = Panel()
    processor.connect(panel.load, panel.store, (PAGE,))
    return launch(tiny, processor, vmcs), panel


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_aligned_accesses_arrive_whole(mode: str, engine: str) -> None:
    code = (
        b"\x8a\x43\x03"  # mov al, [rbx + 3]
        b"\x66\x8b\x43\x06"  # mov ax, [rbx + 6]
        b"\x8b\x43\x08"  # mov eax, [rbx + 8]
        b"\x88\x43\x11"  # mov [rbx + 11h], al
        b"\x66\x89\x43\x12"  # mov [rbx + 12h], ax
        b"\x89\x43\x14"  # mov [rbx + 14h], eax
    )
    run, panel = begin(mode, code, engine)
    assert run.exit.reason == ExitReason.VMCALL
    assert panel.accesses == [
        ("load", 3, 1),
        ("load", 6, 2),
        ("load", 8, 4),
        ("store", 0x11, 1),
        ("store", 0x12, 2),
        ("store", 0x14, 4),
    ]
    assert run.processor.registers.rax == int.from_bytes(bytes(range(56, 84, 7)), "little")
    assert panel.bytes[0x11:0x18] == bytes((56, 56, 63, 56, 63, 70, 77))


def changed(address: int, data: bytes) -> Callable[[bytearray], None]:
    def change(image: bytearray) -> None:
        image[address : address + len(data)] = data

    return change


FORMS: dict[str, tuple[bytes, dict[str, int], Callable[[bytearray], None]]] = {
    "unaligned store": (b"\x89\x43\x15", {"rax": 0x11223344}, changed(0x15, b"\x44\x33\x22\x11")),
    # The page behind is read-only: a page fault, and nothing is stored.
    "store that faults": (b"\x89\x83\xfd\x0f\x00\x00", {"rax": 1}, changed(0, b"")),
    "store from the page before": (
        b"\x89\x43\xfe",
        {"rax": 0x11223344},
        changed(0, b"\x22\x11"),
    ),
    "add": (b"\x83\x43\x10\x01", {}, changed(0x10, b"\x71")),
    "lock add": (b"\xf0\x83\x43\x10\x01", {}, changed(0x10, b"\x71")),
    "lock xadd": (b"\xf0\x0f\xc1\x43\x10", {"rax": 1}, changed(0x10, b"\x71")),
    "unaligned lock add": (b"\xf0\x83\x43\x11\x01", {}, changed(0x11, b"\x78")),
    "xchg": (b"\x87\x43\x10", {"rax": 0x01020304}, changed(0x10, b"\x04\x03\x02\x01")),
    "cmpxchg": (
        b"\xf0\x0f\xb1\x4b\x10",
        {"rax": 0x857E7770, "rcx": 0xAABBCCDD},
        changed(0x10, b"\xdd\xcc\xbb\xaa"),
    ),
    "cmpxchg8b": (
        b"\xf0\x0f\xc7\x4e\x10",
        {"rax": 0x857E7770, "rdx": 0xA19A938C, "rcx": 5, "rbx": 6},
        changed(0x10, b"\6\0\0\0\5\0\0\0"),
    ),
    "bts": (b"\xf0\x0f\xab\x43\x10", {"rax": 0}, changed(0x10, b"\x71")),
    "rep stosd": (b"\xf3\xab", {"rax": 0x01010101, "rcx": 64}, changed(0, b"\1" * 256)),
    "rep stosd, unaligned": (
        b"\xf3\xab",
        {"rax": 0x01010101, "rcx": 64, "rdi": ABSENT + 3},
        changed(3, b"\1" * 256),
    ),
    "rep movsb within": (b"\xf3\xa4", {"rcx": 16, "rdi": ABSENT + 0x100}, changed(0x100, b"")),
    "push": (b"\x89\xe5\x8d\x63\x40\x50\x89\xec", {"rax": 0x7}, changed(0x3C, b"\7\0\0\0")),
    "movups": (b"\x0f\x57\xc0\x0f\x11\x43\x21", {}, changed(0x21, bytes(16))),
    "fxsave": (b"\x0f\xae\x43\x40", {}, changed(0x40, b"")),
    "smsw": (b"\x0f\x01\x63\x10", {}, changed(0x10, b"")),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_access(name: str, engine: str) -> None:
    code, registers, change = FORMS[name]
    run, panel = begin("p32", code, engine, **registers)
    assert run.exit.reason == ExitReason.VMCALL, run.exit
    expected = Panel().bytes
    change(expected)
    if name == "rep movsb within":
        expected[0x100:0x110] = expected[:16]
    if name in ("fxsave", "smsw"):
        return  # what they store is the processor's business; that they come back is ours
    assert panel.bytes == expected


@pytest.mark.parametrize("engine", ENGINES)
def test_loads_that_straddle_memory_device_and_nothing(engine: str) -> None:
    code = b"\x8b\x43\xfe" + b"\x8b\x8b\xfd\x0f\x00\x00" + b"\x8b\x53\x05"
    run, panel = begin("p32", code, engine)
    registers = run.processor.registers
    assert registers.rax == int.from_bytes(b"\0\0\x00\x07", "little")
    top = panel.bytes[0xFFD:]
    assert registers.rcx & 0xFFFFFF == int.from_bytes(top, "little")
    assert registers.rdx == int.from_bytes(bytes((35, 42, 49, 56)), "little")


@pytest.mark.parametrize("engine", ENGINES)
def test_pages_without_a_device_are_absent(engine: str) -> None:
    tiny = guest("p32", b"\x8b\x03\x89\x0b", NOTHING)
    processor, vmcs = prepare(tiny, engine=engine)
    panel = Panel()
    processor.connect(panel.load, panel.store, (PAGE,))
    launch(tiny, processor, vmcs)
    assert processor.registers.rax == 0xFFFFFFFF
    assert panel.accesses == []


@pytest.mark.parametrize("engine", ENGINES)
def test_devices_can_move_while_mapped(engine: str) -> None:
    tiny = guest("p32", b"\x8b\x03\x0f\x01\xc1\x8b\x0b")
    processor, vmcs = prepare(tiny, engine=engine)
    panel = Panel()
    processor.connect(panel.load, panel.store, (PAGE,))
    run = launch(tiny, processor, vmcs)
    assert processor.registers.rax == 0x150E0700
    processor.place_devices((NOTHING,))
    run.skip()
    assert processor.registers.rcx == 0xFFFFFFFF


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_code_in_a_device_page_is_undefined(mode: str, engine: str) -> None:
    run, panel = begin(mode, b"\xff\xe3", engine)  # jmp rbx
    assert run.exit.reason == ExitReason.VMCALL
    assert run.vmcs["GUEST_RIP"] == handler(6)
    assert run.pushed(1) == [ABSENT]
    assert panel.accesses == []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("structure", ["stack", "idt", "tables"])
def test_the_processor_itself_never_asks_devices(structure: str, engine: str) -> None:
    tiny = guest("p32", b"\xcd\x30")
    if structure == "stack":
        tiny.fields["GUEST_RSP"] = ABSENT + 0x100
    elif structure == "idt":
        tiny.fields["GUEST_IDTR_BASE"] = ABSENT
    else:
        # The second directory entry: a table in the device's page.
        tiny.memory[TABLES + 4] = pack("<I", PAGE << 12 | 7)
        tiny.code = b"\xa1" + pack("<I", 0x400000)
    processor, vmcs = prepare(tiny, engine=engine)
    panel = Panel()
    processor.connect(panel.load, panel.store, (PAGE,))
    launch(tiny, processor, vmcs)
    if engine == "native" or structure != "tables":
        assert panel.accesses == []


class BrokenDeviceError(Exception):
    pass


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("error", [BrokenDeviceError, KeyboardInterrupt])
@pytest.mark.parametrize("code", [b"\x8b\x03", b"\x89\x03", b"\xf3\xab"])
def test_what_a_device_raises_comes_out_of_the_run(
    code: bytes, error: type[BaseException], engine: str
) -> None:
    def load(address: int, size: int) -> int:
        raise error

    def store(address: int, size: int, value: int) -> None:
        raise error

    tiny = guest("p32", code + b"\xeb\xfe")
    tiny.registers["rcx"] = 100
    processor, vmcs = prepare(tiny, engine=engine)
    processor.connect(load, store, (PAGE,))
    with pytest.raises(error):
        processor.vmlaunch(vmcs)
    # Each iteration of a repeated instruction is a block of its own.
    assert vmcs["GUEST_RIP"] in (CODE, CODE + len(code))
    panel = Panel()
    processor.connect(panel.load, panel.store, (PAGE,))
    assert isinstance(processor.vmlaunch(vmcs), VmExit)  # it lives on


@pytest.mark.parametrize("engine", ENGINES)
def test_a_device_can_ask_for_the_vmm(engine: str) -> None:
    tiny = guest("p32", b"\x89\x03\xeb\xfe")
    processor, vmcs = prepare(tiny, engine=engine)
    processor.connect(lambda a, s: 0, lambda a, s, v: processor.preempt(), (PAGE,))
    vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 100_000_000
    run = launch(tiny, processor, vmcs)
    assert run.exit.reason == ExitReason.PREEMPTION_TIMER
    assert processor.time < 100
    assert vmcs["GUEST_RIP"] == CODE + 2


def test_pages_need_a_device_and_a_slot() -> None:
    processor, vmcs = Processor(1 << 20), Vmcs()
    with pytest.raises(EngineError, match="connect"):
        processor.place_devices((PAGE,))
    with pytest.raises(EngineError, match="at most 4"):
        processor.connect(lambda a, s: 0, lambda a, s, v: None, tuple(range(5)))
    assert not vmcs.launched


@pytest.mark.parametrize("engine", ENGINES)
def test_ram_comes_before_a_device(engine: str) -> None:
    tiny = guest("p32", b"\xa1" + pack("<I", DATA))
    tiny.memory[DATA] = b"\x11\x22\x33\x44"
    processor, vmcs = prepare(tiny, engine=engine)
    processor.connect(lambda a, s: 0, lambda a, s, v: None, (DATA >> 12,))
    launch(tiny, processor, vmcs)
    assert processor.registers.rax == 0x44332211


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_operands_of_what_the_core_carries_out(mode: str, engine: str) -> None:
    code = (
        b"\x0f\x01\x53\x10"  # lgdt [rbx + 10h]
        b"\x0f\x01\x63\x20"  # smsw [rbx + 20h]
        b"\x0f\x01\x43\x30"  # sgdt [rbx + 30h]
    )
    processor, vmcs = prepare(guest(mode, code), engine=engine)
    panel = Panel()
    size = 10 if mode == "l64" else 6
    table = pack("<HQ", 0x7F, 0x123400)[:size]
    panel.bytes[0x10 : 0x10 + size] = table
    processor.connect(panel.load, panel.store, (PAGE,))
    run = launch(guest(mode, code), processor, vmcs)
    assert run.exit.reason == ExitReason.VMCALL
    assert (vmcs["GUEST_GDTR_LIMIT"], vmcs["GUEST_GDTR_BASE"]) == (0x7F, 0x123400)
    assert panel.bytes[0x20:0x24] == bytes([0x31, 0, 0x22 * 7 & 0xFF, 0x23 * 7 & 0xFF])
    assert panel.bytes[0x30 : 0x30 + size] == table
