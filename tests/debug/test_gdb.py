"""The real gdb, scripted, on guests of every width and on both engines; and odd clients."""

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.debug import broken_guests as bg
from tests.unit.guest_files import boot_sector, elf
from trapgate.cli import app
from trapgate.debug.gdb import Debugger, address_of
from trapgate.debug.gdb.packets import NOT_UNDERSTOOD, PacketReader, framed
from trapgate.errors import TrapgateError
from trapgate.vmm.actions import End, Stop
from trapgate.vmm.loaders import load_guest
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.summary import EventKind

GDB = shutil.which("gdb")
needs_gdb = pytest.mark.skipif(GDB is None, reason="gdb is not installed")
MEMORY = 4 << 20
LEAVE = b"\xb0\x00\xe6\xf4\xf4"
"""mov al, 0; out 0F4h, al; hlt"""

LOOP_32 = b"\xb9\x05\0\0\0" + b"\x40\xa3" + pack("<I", bg.DATA_AT) + b"\x90\xe2\xf7" + LEAVE
"""mov ecx, 5; l: inc eax; mov [DATA_AT], eax; nop; loop l"""
INC, STORE, NOP, END = (bg.BASE + n for n in (5, 6, 11, 14))
LOOP_64 = (
    bytes.fromhex("b905000000 48ffc0 48890425")
    + pack("<I", bg.DATA_AT)
    + b"\x90"
    + (b"\xe2\xf2" + LEAVE)
)
LOOP_16 = b"\xb9\x05\x00" + b"\x40\xa3\x00\x80\x90\xe2\xf9" + LEAVE


@dataclass
class Session:
    """A machine that runs in a thread with a debugger around it."""

    vm: VirtualMachine
    debugger: Debugger
    thread: threading.Thread | None = None
    stops: list[Stop] = field(default_factory=list)

    def end(self, timeout: float = 30) -> Stop:
        """How the machine stopped."""
        assert self.thread is not None
        self.thread.join(timeout)
        assert not self.thread.is_alive()
        return self.stops[0]


@contextlib.contextmanager
def session(
    tmp_path: Path, file: bytes, *, engine: str = "auto", wait: bool = True, most: int = 50_000_000
) -> Iterator[Session]:
    path = tmp_path / "guest"
    path.write_bytes(file)
    image = load_guest(path, memory=MEMORY)
    vm = VirtualMachine(MEMORY, engine=engine)
    vm.load(image)
    made = Session(vm, Debugger(vm, "127.0.0.1", 0, guest=path, bits=image.bits))

    def run() -> None:
        if wait:
            made.debugger.wait()
        made.stops.append(vm.run(max_instructions=most, timeout=60))
        made.debugger.finished(made.stops[0])

    made.thread = threading.Thread(target=run, daemon=True)
    made.thread.start()
    yield made
    if made.thread.is_alive():
        vm.stopped = Stop(End.STOPPED_BY_VMM, "the test is over", 1)
        made.debugger.finished(vm.stopped)


def gdb(made: Session, *commands: str, before: tuple[str, ...] = ()) -> str:
    """What gdb prints."""
    assert GDB is not None
    words = [GDB, "-nx", "-q", "-batch"]
    for command in (
        "set confirm off",
        "set tcp connect-timeout 10",
        *before,
        f"target remote {made.debugger.address[0]}:{made.debugger.address[1]}",
        *commands,
    ):
        words += ["-ex", command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


@needs_gdb
@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize(
    ("file", "at", "pc", "counter"),
    [
        (LOOP_32, NOP, "$eip", "$eax"),
        (elf([(1, bg.BASE, bg.BASE, LOOP_64, len(LOOP_64))]), bg.BASE + 16, "$rip", "$rax"),
        (boot_sector(LOOP_16), 0x7C07, "$eip", "$eax"),
    ],
    ids=["32 bits", "64 bits", "16 bits"],
)
def test_breakpoints_steps_and_registers(
    tmp_path: Path, engine: str, file: bytes, at: int, pc: str, counter: str
) -> None:
    with session(tmp_path, file, engine=engine) as made:
        words = gdb(
            made,
            f"break *{at:#x}",
            "continue",
            f'printf "first %x %d\\n", {pc}, {counter} & 0xff',
            "continue",
            f'printf "second %x %d\\n", {pc}, {counter} & 0xff',
            "stepi",
            f'printf "stepped %x\\n", {pc}',
            "delete",
            f"set {counter} = 0x41",
            "continue",
        )
        assert f"first {at:x} 1" in words
        assert f"second {at:x} 2" in words
        assert f"stepped {at + 1:x}" in words
        assert "exited normally" in words
        assert made.end().end is End.DEBUG_EXIT
        assert made.vm.processor.memory.read(at, 1) == b"\x90"


@needs_gdb
@pytest.mark.parametrize("engine", ["native", "portable"])
def test_stops_and_steps_leave_the_run_as_it_was(tmp_path: Path, engine: str) -> None:
    with session(tmp_path, LOOP_32, engine=engine) as made:
        gdb(made, "continue")
        made.end()
        alone = made.vm.processor.registers.cells.copy(), made.vm.processor.time
    with session(tmp_path, LOOP_32, engine=engine) as made:
        gdb(made, f"hbreak *{STORE:#x}", "continue", "stepi 7", "continue", "delete", "continue")
        made.end()
        assert (made.vm.processor.registers.cells == alone[0]).all()
        assert made.vm.vmcs["GUEST_DR7"] == 0x400
        assert made.vm.processor.registers.dr0 == 0
        if engine == "native":
            assert made.vm.processor.time == alone[1]


@needs_gdb
def test_watchpoints(tmp_path: Path) -> None:
    with session(tmp_path, LOOP_32) as made:
        words = gdb(
            made,
            f"watch *(int*){bg.DATA_AT:#x}",
            "continue",
            'printf "at %x\\n", $eip',
            "continue",
            f'printf "value %d\\n", *(int*){bg.DATA_AT:#x}',
            "delete",
            "continue",
        )
        assert f"at {NOP:x}" in words
        assert "Old value = 1" in words
        assert "value 2" in words
        assert "exited normally" in words


@needs_gdb
def test_memory_and_all_registers(tmp_path: Path) -> None:
    with session(tmp_path, LOOP_32) as made:
        words = gdb(
            made,
            f"set *(int*){bg.DATA_AT:#x} = 0x1234",
            f'printf "memory %x\\n", *(int*){bg.DATA_AT:#x}',
            "x/i $pc",
            "set $xmm1.uint128 = 0x123456789abcdef0",
            "print/x $xmm1.uint128",
            "info registers eflags cs cr0 gdtr_limit mxcsr fctrl efer",
            "x/4x 0x7ffffff0",
            "maintenance packet Qqemu.PhyMemMode:1",
            f"maintenance packet m{bg.DATA_AT:x},2",
        )
        assert "memory 1234" in words
        assert "mov    $0x5,%ecx" in words
        assert "0x123456789abcdef0" in words
        for name in ("eflags", "cs ", "cr0", "gdtr_limit", "mxcsr", "fctrl", "efer"):
            assert name in words
        assert "Cannot access memory at address 0x7ffffff0" in words
        assert 'received: "3412"' in words


@needs_gdb
def test_control_c_detach_and_kill(tmp_path: Path) -> None:
    with session(tmp_path, b"\x40\xeb\xfd" + bytes(8), wait=False, most=1 << 40) as made:
        time.sleep(0.3)
        words = gdb(made, 'printf "stands %x\\n", $eip >= 0x100000', "detach")
        assert "stands 1" in words
        before = made.vm.processor.time
        time.sleep(0.3)
        assert made.vm.processor.time > before
        words = gdb(
            made,
            "python import threading, time, os, signal",
            "python threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()",
            "continue",
            "info registers eip",
            "kill",
        )
        assert "SIGINT" in words
        assert made.end().message == "killed by gdb"


FAULTS = bg.with_idt(
    bg.paging((0x300000,))
    + b"\xa1"
    + pack("<I", 0x300000)  # mov eax, [300000h]: not present
    + b"\x0f\x0b"
    + LEAVE,
    {14: bg.gate(bg.HANDLER), 6: bg.gate(bg.OTHER)},
    at_103000=bg.store(bg.TABLE + 0xC00, 0x300003) + b"\x83\xc4\x04" + bg.IRET,
    at_103100=b"\x83\x04\x24\x02" + bg.IRET,
)


@needs_gdb
def test_faults_are_caught_before_delivery(tmp_path: Path) -> None:
    with session(tmp_path, FAULTS) as made:
        words = gdb(
            made,
            "monitor catch PF if write and address < 0x301000",
            "monitor catch UD",
            "continue",
            "monitor skip",
            "continue",
        )
        assert "caught #UD, invalid opcode" in words
        assert "caught #PF" not in words  # it is a read
        assert made.end().end is End.DEBUG_EXIT
        assert made.vm.summary().injected[EventKind.FAULT][14] == 1
        assert 6 not in made.vm.summary().injected[EventKind.FAULT]
    with session(tmp_path, FAULTS) as made:
        words = gdb(
            made,
            "monitor catch PF if address in range(0x300000, 0x301000) and cpl == 0",
            f"break *{bg.OTHER:#x}",
            "continue",
            "monitor complete",
            "monitor inject UD",
            "continue",
            'printf "in %x\\n", $eip',
            "kill",
        )
        assert "not present, address 300000H" in words
        assert "no page is there" in words
        assert f"in {bg.OTHER:x}" in words
        made.end()
        assert made.vm.summary().injected[EventKind.FAULT][6] == 1


@needs_gdb
def test_a_forbidden_write_is_completed_once(tmp_path: Path) -> None:
    read_only = bg.store(bg.TABLE + 0xC00, 0x300001) + b"\x0f\x20\xc0\x0d\0\0\x01\0\x0f\x22\xc0"
    guest = bg.with_idt(
        bg.paging() + read_only + bg.store(0x300000, 0x77) + LEAVE, {14: bg.gate(bg.HANDLER)}
    )
    with session(tmp_path, guest) as made:
        words = gdb(
            made,
            "monitor catch PF if write and present",
            "continue",
            "monitor complete",
            "continue",
        )
        assert "that the page's rights forbid" in words
        assert made.end().end is End.DEBUG_EXIT
        assert made.vm.processor.memory.read(0x300000, 1) == b"\x77"
        assert made.vm.processor.memory.read(bg.TABLE + 0xC00, 1)[0] & 7 == 1


@needs_gdb
def test_monitor_commands(tmp_path: Path) -> None:
    with session(tmp_path, FAULTS) as made:
        words = gdb(
            made,
            "monitor catch exit IO_INSTRUCTION",
            "continue",
            "monitor walk 0x300000",
            "monitor idt",
            "monitor idt GP",
            "monitor gdt",
            "monitor tss",
            "monitor vmcs GUEST_CS_ACCESS",
            "monitor decide PF 2",
            "monitor trace 2",
            "monitor xp 0x200000 16",
            "monitor catch nonsense",
            "monitor catch PF if frob",
            "monitor walk $cr2",
            "monitor walk $xmm0",
            "monitor xp $cr3 4",
            "monitor walk",
            "monitor deliver",
            "monitor frob",
            "monitor help",
        )
        for sentence in (
            "VM exit: io instruction",
            "PTE at 201C00H = 300023H",
            " 14: bytes",
            "gate 13 is empty",
            "0010H: CF9B000000FFFFH (type 11: code, readable",
            "ESP0 F000FF53H",
            "GUEST_CS_ACCESS_RIGHTS = C09BH (type 11",
            "DELIVER: figure 3 match",
            "#UD, invalid opcode at RIP",
            "200000H: 23 10 20 00",
            "no exception 'nonsense'",
            "column 1: ",
            "300000H: PDE at 200000H",
            "'$xmm0' is not a register here",
            "200000H: 23 10 20 00\n",
            "walk needs more words",
            "no fault has been caught",
            "no command 'frob'",
            "Triple faults always stop",
        ):
            assert sentence in words, words


@needs_gdb
def test_a_triple_fault_stops_first_and_is_told(tmp_path: Path) -> None:
    with session(tmp_path, bg.flat(bg.UD2)) as made:
        words = gdb(made, "continue", "x/i $pc", "continue")
        assert "SIGSEGV" in words
        assert "ud2" in words
        assert "no IDT was loaded before the first exception" in words
        assert "exited with code 01" in words


@needs_gdb
def test_the_command_serves_gdb(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    path.write_bytes(LOOP_32)
    with subprocess.Popen(
        [sys.executable, "-m", "trapgate", "run", str(path), "--gdb", "0", "--wait"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as running:
        assert running.stderr is not None
        line = running.stderr.readline()
        assert "target remote 127.0.0.1:" in line
        assert GDB is not None
        done = subprocess.run(
            [GDB, "-nx", "-q", "-batch", "-ex", line.split("gdb: ")[1].strip(), "-ex", "continue"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "exited normally" in done.stdout
        assert running.wait(30) == 0


def talk(made: Session, data: bytes, *, linger: float = 0.2) -> bytes:
    """Send bytes and go; what came back until then."""
    with socket.create_connection(made.debugger.address, timeout=5) as client:
        client.sendall(data)
        client.settimeout(linger)
        got = b""
        with contextlib.suppress(OSError):
            while part := client.recv(65536):
                got += part
    return got


GARBAGE = [
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    b"$",
    b"$g#",
    b"$g#zz",
    b"$g#00" * 50,
    b"$" + b"A" * 200_000,
    b"\x00\xff\x03" * 1000,
    framed(b"m" + b"f" * 500 + b",ffffffffffffffff"),
    framed(b"G00") + framed(b"P9999=00") + framed(b"Z9,0,0") + framed(b"M0,4:zz") + framed(b"\xff"),
    framed(b"vCont;x:9") + framed(b"qXfer:features:read:target.xml:zz,q") + framed(b"qRcmd,zz"),
    framed(b"X0,5:ab") + framed(b"H") + framed(b"Z0,,") + framed(b"bc") + framed(b"c"),
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_the_run_goes_on_whatever_a_client_sends(tmp_path: Path, data: bytes) -> None:
    with session(tmp_path, b"\x40\xeb\xfd" + bytes(8), wait=False, most=1 << 40) as made:
        talk(made, data)
        deadline = time.monotonic() + 10
        start = made.vm.processor.time
        while made.vm.processor.time == start and time.monotonic() < deadline:
            time.sleep(0.05)
        assert made.vm.processor.time > start
        assert made.vm.stopped is None


def test_a_second_client_is_turned_away(tmp_path: Path) -> None:
    with session(tmp_path, b"\x40\xeb\xfd" + bytes(8), wait=False, most=1 << 40) as made:
        with socket.create_connection(made.debugger.address, timeout=5) as first:
            first.sendall(framed(b"?"))
            assert first.recv(100)
            assert talk(made, framed(b"?"), linger=2) == b""
        deadline = time.monotonic() + 10
        answer = b""
        while b"$" not in answer and time.monotonic() < deadline:
            answer = talk(made, framed(b"qC"), linger=1)
        assert b"$QC1#" in answer


@given(st.lists(st.binary(max_size=40), max_size=10))
@settings(max_examples=200)
def test_packets_arrive_in_any_pieces(bodies: list[bytes]) -> None:
    stream = b"".join(framed(body) for body in bodies)
    for size in (1, 3, 1000):
        reader = PacketReader()
        got = [p for n in range(0, len(stream), size) for p in reader.feed(stream[n : n + size])]
        assert got == bodies
    spoiled = PacketReader()
    assert list(spoiled.feed(b"$g#00")) == [NOT_UNDERSTOOD]


def test_ports_that_cannot_be_opened_are_one_line(tmp_path: Path) -> None:
    assert address_of("1234") == ("127.0.0.1", 1234)
    assert address_of("0.0.0.0:9") == ("0.0.0.0", 9)
    for text in ("x", "host:", "1:99999"):
        with pytest.raises(TrapgateError, match="is no"):
            address_of(text)
    (tmp_path / "guest").write_bytes(LOOP_32)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["run", str(tmp_path / "guest"), "--gdb", port])
    assert result.exit_code == 2
    assert "cannot be opened" in result.stderr.splitlines()[-1]
    result = CliRunner().invoke(app, ["run", str(tmp_path / "guest"), "--wait"])
    assert result.exit_code == 2
