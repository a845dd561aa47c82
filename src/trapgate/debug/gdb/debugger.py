"""Stops the guest for gdb and answers it: a VMM around the machine's own.

The guest notices nothing: breakpoints are the engine's (`UnicornEngine.set_breakpoints`), single
steps the monitor trap flag, and a stop is what the VMM sees as a VM exit. Nothing is looked at
between exits, so a guest that nobody stops runs at full speed.
"""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass, field
from pathlib import Path

from trapgate.debug.gdb import server as wire
from trapgate.debug.gdb.catches import Catches, Pending
from trapgate.debug.gdb.packets import INTERRUPT, LONGEST
from trapgate.debug.gdb.target import Target
from trapgate.debug.story.tell import tell, view_of
from trapgate.debug.story.view import View
from trapgate.decision.conditions import Names
from trapgate.processor.decoded import Operand
from trapgate.processor.processor import VmExit
from trapgate.processor.stepping import Access, accesses_of
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import ExitReason
from trapgate.vmm.actions import RESUME, Action, Emulated, End, Inject, Resume, Stop
from trapgate.vmm.machine import VirtualMachine, Vmm
from trapgate.vmm.platform import Platform

_MASK = (1 << 64) - 1
_TRAP = b"05"
_VALID = 1 << 31
_MONITOR_TRAP = _VALID | InterruptionType.OTHER_EVENT << 8
_WATCH_NAMES = {2: "watch", 3: "rwatch", 4: "awatch"}
_NUDGE = 0.002
"""Seconds between two requests to stop."""
_MEMORY_MAP = (
    '<?xml version="1.0"?><!DOCTYPE memory-map PUBLIC '
    '"+//IDN gnu.org//DTD GDB Memory Map V1.0//EN" '
    '"http://sourceware.org/gdb/gdb-memory-map.dtd"><memory-map>'
    '<memory type="ram" start="0x0" length="0xffffffffffffffff"/></memory-map>'
)
"""gdb asks for linear addresses, any of which may be mapped."""
_SUPPORTED = (
    f"PacketSize={LONGEST // 4:x};qXfer:features:read+;qXfer:memory-map:read+;"
    "qXfer:exec-file:read+;QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+"
)
_PLAIN: dict[bytes, bytes] = {
    b"qC": b"QC1",
    b"qfThreadInfo": b"m1",
    b"qsThreadInfo": b"l",
    b"qAttached": b"1",
    b"vCont?": b"vCont;c;C;s;S",
    b"qSymbol::": b"OK",
    b"qTStatus": b"T0",
    b"qqemu.PhyMemMode": b"0",
    b"!": b"OK",
}


@dataclass
class _Points:
    """What gdb has set: breakpoints by linear address, watchpoints by kind, address and length."""

    code: dict[int, int] = field(default_factory=dict)
    data: set[tuple[int, int, int]] = field(default_factory=set)


class Debugger(Vmm):
    """Serves gdb on `host`:`port` for `vm`, whose VMM it takes the place of.

    `guest` is the file that gdb may read symbols from, `names` are for conditions. Raises
    TrapgateError if the port is taken.
    """

    def __init__(
        self,
        vm: VirtualMachine,
        host: str,
        port: int,
        *,
        guest: Path | None = None,
        bits: int = 64,
        names: Names | None = None,
    ) -> None:
        self._vm = vm
        self._inner = vm.vmm
        super().__init__(self._inner.handlers)
        self.target = Target(vm, wide=bits == 64)
        self.catches = Catches(vm, names)
        self._guest = guest
        self._points = _Points()
        self._stepping = False
        self._watching = False
        self._accesses: list[Access] = []
        self._physical = False
        self._attention = False
        self._attached = False
        self._standing = False
        self._busy = False
        self._last = b"S" + _TRAP
        self._server = wire.Server(host, port, self._wake)
        self.address = self._server.address
        vm.vmm = self

    # Running.

    def _wake(self) -> None:
        """In the server's thread: get the guest to stop, and go on asking until it does.

        A VM entry that is just being made sets the timer anew.
        """
        self._attention = True
        while self._attention and not self._standing and self._vm.stopped is None:
            self._vm.processor.preempt()
            time.sleep(_NUDGE)

    def wait(self) -> None:
        """Stand before the first instruction until a gdb lets the guest go on."""
        self._serve(b"")

    def finished(self, stop: Stop) -> None:
        """The machine has stopped for good: tell gdb, and close."""
        if self._attached:
            story = tell(self._vm)
            self.say(f"{story or stop.message}\n")
            self._server.send(b"W%02x" % (stop.status & 0xFF))
        self._server.close()

    def handle(self, vmexit: VmExit, vm: Platform) -> Action:
        """What the machine's own VMM wants, after whatever gdb wanted."""
        if not (self._attention or self._busy) and vmexit.reason is not ExitReason.TRIPLE_FAULT:
            return self._inner.handle(vmexit, vm)
        pending = self._look(vmexit)
        if self._vm.stopped is not None:
            return self._vm.stopped
        if vmexit.reason is ExitReason.MONITOR_TRAP_FLAG:
            self.catches.trapped()
            return RESUME
        action = self.catches.action(pending) or self._inner.handle(vmexit, vm)
        if isinstance(action, Inject) and self.catches.injections and not self._stepping:
            self.say(f"about to inject {action.event}\n")
            self._stop(b"T" + _TRAP + b"thread:1;")
        if self._stepping or self._watching or self.catches.stepping:
            self._count_as_step(vmexit, action)
        return action

    def _look(self, vmexit: VmExit) -> Pending | None:
        """Stop if there is a reason to; the fault that was caught, if one was."""
        hit = self._vm.processor.engine.breakpoint_hit()
        trapped = vmexit.reason is ExitReason.MONITOR_TRAP_FLAG
        pending = self.catches.caught(vmexit)
        if hit is not None and hit in self._points.code:
            self._stop(b"T" + _TRAP + b"swbreak:;thread:1;")
        elif trapped and self._stepping:
            self._stop(b"T" + _TRAP + b"thread:1;")
        elif trapped and self._watching:
            self._watched()
        elif pending is not None:
            self.say(f"{pending.words}\n")
            self._stop(b"T" + _TRAP + b"thread:1;")
        elif vmexit.reason is ExitReason.TRIPLE_FAULT and self._attached:
            self.say("triple fault: the guest stands before it shuts down\n")
            self._stop(b"T0bthread:1;")
        elif self._attention:
            self._heed()
        return pending

    def _heed(self) -> None:
        """Something came from gdb while the guest ran: Ctrl-C, a first packet, or its end."""
        self._attention = False
        try:
            packet = self._server.packets.get_nowait()
        except queue.Empty:
            return
        if packet == INTERRUPT:
            self._stop(b"T02thread:1;")
        elif packet == wire.GONE:
            self._detach()
        elif packet != wire.CONNECTED:
            self._attached = True
            if not self._answer(packet):
                self._stop(b"")
        if not self._server.packets.empty():
            self._attention = True
            self._vm.processor.preempt()

    def _stop(self, reply: bytes) -> None:
        """Stand until gdb lets the guest go on."""
        self._set_trap(on=False)
        self._stepping = self._watching = False
        self._serve(reply)

    def _serve(self, reply: bytes) -> None:
        self._standing = True
        if reply:
            self._last = reply
            self._server.send(reply)
        while True:
            packet = self._server.packets.get()
            if packet == wire.GONE:
                self._detach()
                break
            if packet == wire.CONNECTED:
                self._last = b"S" + _TRAP
                continue
            self._attached = True
            if packet != INTERRUPT and self._answer(packet):
                break
        self._attention = not self._server.packets.empty()
        self._standing = False

    def _detach(self) -> None:
        self._attached = False
        self._points = _Points()
        self._vm.processor.engine.set_breakpoints(())
        self.catches.clear()
        self._set_trap(on=False)
        self._stepping = self._watching = self._busy = False

    def _resume(self, *, step: bool) -> None:
        self._stepping = step
        self._watching = not step and bool(self._points.data)
        self._set_trap(on=step or self._watching or self.catches.stepping)
        if self._watching:
            self._foresee()
        self._vm.processor.engine.set_breakpoints(self._points.code)
        self._vm.processor.engine.pass_breakpoint(self.view().code_address)
        self._busy = self._wants_looks

    @property
    def _wants_looks(self) -> bool:
        """Whether exits have to be looked at while the guest runs."""
        points = self._points
        return bool(points.code or points.data or self._stepping or self.catches.any)

    def _set_trap(self, *, on: bool) -> None:
        v = self._vm.vmcs.words
        primary = v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & ~ct.PRIMARY_MONITOR_TRAP_FLAG
        v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] = primary | ct.PRIMARY_MONITOR_TRAP_FLAG * on

    def _count_as_step(self, vmexit: VmExit, action: Action) -> None:
        """An instruction that the VMM did itself is a step too: the trap comes before the next."""
        v = self._vm.vmcs.words
        self._set_trap(on=True)
        halted = isinstance(action, Resume) and vmexit.reason is ExitReason.HLT
        done = halted or isinstance(action, Emulated)
        if done and not v[f.VM_ENTRY_INTERRUPTION_INFORMATION] & _VALID:
            v[f.VM_ENTRY_INTERRUPTION_INFORMATION] = _MONITOR_TRAP

    # Watchpoints: one instruction at a time, with a look at what it is about to access.

    def _foresee(self) -> None:
        guest = Operand(self._vm.processor, self._vm.vmcs.cells)
        self._accesses = list(accesses_of(guest, guest.decode()))

    def _watched(self) -> None:
        for access in self._accesses:
            for kind, address, length in self._points.data:
                wanted = (kind in (2, 4) and access.write) or (kind in (3, 4) and access.read)
                start = access.linear & _MASK
                if wanted and start < address + length and address < start + access.size:
                    name = _WATCH_NAMES[kind]
                    self._stop(f"T05{name}:{address:x};thread:1;".encode())
                    return
        if self.view().code_address in self._points.code:
            self._stop(b"T" + _TRAP + b"swbreak:;thread:1;")
        elif self._attention:
            self._heed()
        else:
            self._foresee()

    # Answers.

    def view(self) -> View:
        """The guest as it stands."""
        return view_of(self._vm)

    def say(self, text: str) -> None:
        """Let gdb print something."""
        if self._attached:
            for start in range(0, len(text), 4000):
                part = text[start : start + 4000].encode("latin-1", "replace")
                self._server.send(b"O" + part.hex().encode())

    def _answer(self, packet: bytes) -> bool:
        """Answer a packet; whether the guest goes on."""
        try:
            reply = self._reply(packet)
        except (ValueError, IndexError, KeyError, OverflowError):
            reply = b"E01"
        if reply is None:
            return True
        self._server.send(reply)
        if packet == b"QStartNoAckMode":
            self._server.stop_acknowledging()
        return packet[:1] == b"D"

    def _reply(self, packet: bytes) -> bytes | None:
        if packet in _PLAIN:
            return _PLAIN[packet]
        kind, rest = packet[:1], packet[1:]
        match kind:
            case b"?":
                return self._last if self._last[:1] in b"TS" else b"S05"
            case b"g":
                return b"".join(
                    self.target.read(n).hex().encode() for n in range(len(self.target.registers))
                )
            case b"G":
                return self._write_all(bytes.fromhex(rest.decode()))
            case b"p":
                return self.target.read(int(rest, 16)).hex().encode()
            case b"P":
                number, _, value = rest.partition(b"=")
                self.target.write(int(number, 16), bytes.fromhex(value.decode()))
                return b"OK"
            case b"m":
                address, length = (int(part, 16) for part in rest.split(b","))
                return self._read_memory(address, min(length, LONGEST // 8))
            case b"M" | b"X":
                return self._store(kind, rest)
            case b"c" | b"s" | b"C" | b"S":
                self._resume(step=kind.lower() == b"s")
                return None
            case b"Z" | b"z":
                return self._point(rest, insert=kind == b"Z")
            case b"H" | b"T":
                return b"OK"
            case b"D":
                self._detach()
                return b"OK"
            case b"k":
                self._kill()
                return None
            case b"v":
                return self._verbose(packet)
            case b"q" | b"Q":
                return self._query(packet)
            case b"b":
                return b"E.reverse execution needs snapshots, which this version does not have"
        return b""

    def _verbose(self, packet: bytes) -> bytes | None:
        if packet.startswith(b"vKill"):
            self._kill()
            return None
        if not packet.startswith(b"vCont;"):
            return b""
        first = packet[6:].split(b";")[0].split(b":")[0]
        if first[:1] not in (b"c", b"C", b"s", b"S"):
            return b""
        self._resume(step=first[:1].lower() == b"s")
        return None

    def _kill(self) -> None:
        self._vm.stopped = Stop(End.ASKED, "killed by gdb", 1)

    def _query(self, packet: bytes) -> bytes:
        from trapgate.debug.gdb.commands import run

        if packet.startswith(b"qSupported"):
            return _SUPPORTED.encode()
        if packet == b"QStartNoAckMode":
            return b"OK"
        if packet.startswith(b"qRcmd,"):
            words = bytes.fromhex(packet[6:].decode()).decode("latin-1")
            return run(self, self._vm, words).encode("latin-1", "replace").hex().encode() or b"OK"
        if packet.startswith(b"Qqemu.PhyMemMode:"):
            self._physical = packet.endswith(b"1")
            return b"OK"
        for name, content in (
            (b"qXfer:features:read:target.xml:", self.target.description),
            (b"qXfer:memory-map:read::", lambda: _MEMORY_MAP),
            (b"qXfer:exec-file:read:", self._exec_file),
        ):
            if packet.startswith(name):
                start, length = (int(n, 16) for n in packet.rsplit(b":", 1)[1].split(b","))
                data = content().encode()
                part = data[start : start + length]
                return (b"m" if start + length < len(data) else b"l") + part
        return b""

    def _exec_file(self) -> str:
        return str(self._guest.resolve()) if self._guest else ""

    def _write_all(self, data: bytes) -> bytes:
        for number, register in enumerate(self.target.registers):
            size = (register.bits + 7) // 8
            part, data = data[:size], data[size:]
            if len(part) == size:
                self.target.write(number, part)
        return b"OK"

    def _places(self, address: int, length: int) -> list[tuple[int, int]]:
        """Physical addresses and sizes of what lies at a linear address; shorter at a hole."""
        view, found = self.view(), []
        end = address + length
        while address < end:
            size = min(end - address, 0x1000 - (address & 0xFFF))
            physical = address if self._physical else view.walk(address & _MASK).physical
            if physical is None or view.read(physical, size) is None:
                break
            found.append((physical, size))
            address += size
        return found

    def _read_memory(self, address: int, length: int) -> bytes:
        memory = self._vm.processor.memory
        data = b"".join(memory.read(at, size) for at, size in self._places(address, length))
        return data.hex().encode() if data or not length else b"E14"

    def _store(self, kind: bytes, rest: bytes) -> bytes:
        where, _, body = rest.partition(b":")
        address, length = (int(part, 16) for part in where.split(b","))
        data = body if kind == b"X" else bytes.fromhex(body.decode())
        places = self._places(address, length)
        if len(data) != length or sum(size for _, size in places) != length:
            return b"E14"
        for at, size in places:
            self._vm.processor.memory.write(at, data[:size])
            data = data[size:]
        return b"OK"

    def _point(self, rest: bytes, *, insert: bool) -> bytes:
        kind, address, length = (int(part, 16) for part in rest.split(b";")[0].split(b","))
        if kind in (0, 1):
            count = self._points.code.get(address, 0) + (1 if insert else -1)
            if count > 0:
                self._points.code[address] = count
            else:
                self._points.code.pop(address, None)
        elif kind in _WATCH_NAMES:
            point = (kind, address, max(length, 1))
            if insert:
                self._points.data.add(point)
            else:
                self._points.data.discard(point)
        else:
            return b""
        return b"OK"
