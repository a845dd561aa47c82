"""Stops the guest for gdb and answers it: a VMM around the machine's own."""

from __future__ import annotations

import queue
import time
from pathlib import Path

from trapgate.debug.gdb import server as wire
from trapgate.debug.gdb.catches import Pending
from trapgate.debug.gdb.packets import INTERRUPT, LONGEST
from trapgate.debug.gdb.past import Moment, Past
from trapgate.debug.gdb.reverse import BrokenOffError, NoWayBackError, Reverse
from trapgate.debug.gdb.stops import INTERRUPT as SIGINT
from trapgate.debug.gdb.stops import STEPPED, Stopped, Stops
from trapgate.debug.gdb.target import Target
from trapgate.debug.story.tell import tell, view_of
from trapgate.debug.story.view import View
from trapgate.decision.conditions import Names
from trapgate.processor.processor import VmExit
from trapgate.sdm.reasons import ExitReason
from trapgate.vmm.actions import RESUME, Action, End, Inject, Moved, Stop
from trapgate.vmm.machine import VirtualMachine, Vmm
from trapgate.vmm.platform import Platform

_MASK = (1 << 64) - 1
_CLEAN = ExitReason.PREEMPTION_TIMER
"""The exit at which the guest stands between two instructions, and the VMM has nothing to do."""
_BETWEEN = (_CLEAN, ExitReason.MONITOR_TRAP_FLAG)
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
    "qXfer:exec-file:read+;QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+;"
    "ReverseStep+;ReverseContinue+"
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


_SENT = b"sent"
"""In place of an answer that gdb has got already."""


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
        self._stops = Stops(vm, names)
        self.catches = self._stops.catches
        self._past = Past(vm)
        self._reverse = Reverse(self._past, self._stops, self._physical_address, self._interrupts)
        self._guest = guest
        self._physical = False
        self._attention = False
        self._attached = False
        self._standing = False
        self._busy = False
        self._moved = False
        self._in_exit = False
        """The guest stands in a VM exit that is not carried out yet."""
        self._last = Stopped()
        self._before: Moment | None = None
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
        self._serve()

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
            if vm.processor.time >= self._past.due and vmexit.reason is _CLEAN:
                self._past.keep()
            return self._inner.handle(vmexit, vm)
        pending = self.catches.caught(vmexit)
        self._in_exit = vmexit.reason not in _BETWEEN
        self._look(vmexit, pending)
        if self._vm.stopped is not None:
            return self._vm.stopped
        if self._moved:
            self._moved = False
            return Moved()
        if self._reverse.over:
            return Stop(End.ASKED, "gdb looks for something in the past")
        self._stops.go_past(vmexit)
        if vmexit.reason is ExitReason.MONITOR_TRAP_FLAG:
            if self.catches.stepping:
                self.catches.trapped()
                self._past.changes(self._before)
            return RESUME
        if vm.processor.time >= self._past.due and vmexit.reason is _CLEAN:
            self._past.keep()
        self._before = None if pending is None else self._past.moment()
        action = self.catches.action(pending)
        if action is not None and not self.catches.stepping:
            self._past.changes(self._before)
        action = action or self._inner.handle(vmexit, vm)
        if isinstance(action, Inject) and self.catches.injections and not self._stops.stepping:
            self._meet(Stopped(words=f"about to inject {action.event}"))
            if self._moved:
                self._moved = False
                return Moved()
        self._stops.carried_out(vmexit, action)
        return action

    def _look(self, vmexit: VmExit, pending: Pending | None) -> None:
        """Stop if there is a reason to."""
        why = self._stops.why(vmexit, pending)
        if vmexit.reason is ExitReason.TRIPLE_FAULT and not self._attached:
            return
        if why is not None:
            self._meet(why)
        elif self._attention and not self._reverse.searching:
            self._heed()

    def _meet(self, why: Stopped) -> None:
        """There is a reason to stop: do, but on the way to somewhere else."""
        if not self._reverse.passes(why):
            why = self._reverse.arrival(why)
            if why.words:
                self.say(f"{why.words}\n")
            self._stop(why)

    def _interrupts(self) -> bool:
        """Whether gdb wants an end of what goes on, while the guest does not stand."""
        if self._attention:
            self._attention = False
            with self._server.packets.mutex:
                waiting = tuple(self._server.packets.queue)
            return INTERRUPT in waiting or wire.GONE in waiting
        return False

    def _heed(self) -> None:
        """Something came from gdb while the guest ran: Ctrl-C, a first packet, or its end."""
        self._attention = False
        try:
            packet = self._server.packets.get_nowait()
        except queue.Empty:
            return
        if packet == INTERRUPT:
            self._stop(Stopped(SIGINT))
        elif packet == wire.GONE:
            self._detach()
        elif packet != wire.CONNECTED:
            self._attached = True
            if not self._answer(packet):
                self._stop(None)
        if not self._server.packets.empty():
            self._attention = True
            self._vm.processor.preempt()

    def _stop(self, why: Stopped | None) -> None:
        """Stand until gdb lets the guest go on."""
        self._stops.rest()
        self._reverse.give_up()
        if why is not None:
            self._report(why)
        self._serve()

    def _report(self, why: Stopped) -> None:
        self._last = why
        self._server.send(why.reply)

    def _serve(self) -> None:
        self._standing = True
        while True:
            packet = self._server.packets.get()
            if packet == wire.GONE:
                self._detach()
                break
            if packet == wire.CONNECTED:
                self._last = Stopped()
                continue
            self._attached = True
            if packet != INTERRUPT and self._answer(packet):
                break
        self._attention = not self._server.packets.empty()
        self._standing = False

    def _detach(self) -> None:
        self._attached = False
        self._stops.clear()
        self._past.end()
        self._busy = False

    def _resume(self, *, step: bool) -> None:
        self._past.begin()
        self._past.leave()
        self._stops.arm(step=step)
        self._busy = self._stops.any

    def _back(self, *, step: bool) -> bool:
        """Go back; whether the machine has to run to be where gdb wants it."""
        self._standing, self._busy = False, True
        try:
            runs = self._reverse.step(in_exit=self._in_exit) if step else self._reverse.go_on()
            why = STEPPED
        except NoWayBackError as error:
            runs, why = False, Stopped(detail="replaylog:begin;", words=str(error))
        except BrokenOffError:
            runs, why = False, Stopped(SIGINT)
        self._standing = True
        self._moved |= self._past.restored
        self._in_exit &= not self._past.restored
        self._past.restored = False
        if not runs:
            why = self._reverse.arrival(why)
            if why.words:
                self.say(f"{why.words}\n")
            self._report(why)
        return runs

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
            import traceback

            traceback.print_exc()
            reply = b"E01"
        if reply is None:
            return True
        if reply is not _SENT:
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
                return self._last.reply
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
                self._write_register(int(number, 16), bytes.fromhex(value.decode()))
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
                numbers = (int(part, 16) for part in rest.split(b";")[0].split(b","))
                point, address, length = numbers
                known = self._stops.point(point, address, length, insert=kind == b"Z")
                return b"OK" if known else b""
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
            case b"b" if rest in (b"s", b"c"):
                return None if self._back(step=rest == b"s") else _SENT
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

    def _write_register(self, number: int, data: bytes) -> None:
        if self.target.read(number) != data:
            self._past.changes()
            self.target.write(number, data)

    def _write_all(self, data: bytes) -> bytes:
        for number, register in enumerate(self.target.registers):
            size = (register.bits + 7) // 8
            part, data = data[:size], data[size:]
            if len(part) == size:
                self._write_register(number, part)
        return b"OK"

    def _physical_address(self, linear: int) -> int | None:
        return self.view().walk(linear & _MASK).physical

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
        if data:
            self._past.changes()
        for at, size in places:
            self._vm.processor.memory.write(at, data[:size])
            data = data[size:]
        return b"OK"
