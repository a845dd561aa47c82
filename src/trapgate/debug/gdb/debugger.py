"""Answers gdb: which machines and processors there are, their registers and memory."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from pathlib import Path

from trapgate.debug.gdb import server as wire
from trapgate.debug.gdb.commands import Asked, run
from trapgate.debug.gdb.debuggee import Debuggee
from trapgate.debug.gdb.packets import INTERRUPT, LONGEST
from trapgate.debug.gdb.stops import INTERRUPT as SIGINT
from trapgate.debug.gdb.stops import Stopped
from trapgate.debug.gdb.target import Target
from trapgate.debug.gdb.threads import Thread, current_thread, threads_of
from trapgate.debug.postmortem.explain_end import explain_end
from trapgate.debug.postmortem.names import is_elf
from trapgate.decision.conditions import Names
from trapgate.vmm.actions import End, Stop
from trapgate.vmm.machine import VirtualMachine

_MASK = (1 << 64) - 1
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
    "QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+;ReverseStep+;ReverseContinue+"
)
_PLAIN: dict[bytes, bytes] = {
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
_ANY = ("0", "-1")
"""Threads that gdb does not choose between."""


class Debugger:
    """Serves gdb on `host`:`port` for a machine, or several that take turns (`run_all`).

    It takes the place of their VMMs. `guest` is the file that gdb may read symbols from, `names`
    are for conditions. Raises TrapgateError if the port is taken.
    """

    def __init__(
        self,
        vm: VirtualMachine | Sequence[VirtualMachine],
        host: str,
        port: int,
        *,
        guest: Path | None = None,
        bits: int = 64,
        names: Names | None = None,
    ) -> None:
        self._machines = [vm] if isinstance(vm, VirtualMachine) else list(vm)
        self.target = Target(wide=bits == 64)
        self.attention = False
        self._debuggees = [Debuggee(one, self, names) for one in self._machines]
        self._at = self._debuggees[0]
        """The machine that stopped, or runs."""
        self._selected: Thread | None = None
        self._guest = guest
        self._physical = False
        self._attached = False
        self._standing = False
        self._last = Stopped()
        self._server = wire.Server(host, port, self._wake)
        self.address = self._server.address

    @property
    def attached(self) -> bool:
        """Whether a gdb is there."""
        return self._attached

    @property
    def thread(self) -> Thread:
        """The one that gdb asks about."""
        return self._selected or self._current

    @property
    def _current(self) -> Thread:
        return current_thread(self._machines, self._at.vm)

    @property
    def _debuggee(self) -> Debuggee:
        vm = self.thread.vm
        return next(one for one in self._debuggees if one.vm is vm)

    # Running.

    def _wake(self) -> None:
        """In the server's thread: get the guest to stop, and continue asking until it does.

        A VM entry that is just being made sets the timer anew.
        """
        self.attention = True
        while self.attention and not self._standing and self._runs:
            for vm in self._machines:
                vm.processor.preempt()
            time.sleep(_NUDGE)

    @property
    def _runs(self) -> bool:
        return any(vm.stopped is None for vm in self._machines)

    def wait(self) -> None:
        """Wait before the first instruction until a gdb lets the guest continue."""
        self._serve()

    def finished(self, stop: Stop) -> None:
        """The machines have ended: tell gdb, and close."""
        if self._attached:
            for vm in self._machines:
                post_mortem = explain_end(vm)
                self.say(f"{post_mortem or (vm.stopped or stop).message}\n")
            self._server.send(b"W%02x" % (stop.status & 0xFF))
        self._server.close()

    def interrupts(self) -> bool:
        """Whether gdb wants to interrupt what runs, while the guest is not stopped."""
        if self.attention:
            self.attention = False
            with self._server.packets.mutex:
                waiting = tuple(self._server.packets.queue)
            return INTERRUPT in waiting or wire.GONE in waiting
        return False

    def handle_interrupt(self, debuggee: Debuggee) -> None:
        """Something came from gdb while a machine ran: Ctrl-C, a first packet, or its end."""
        self._at = debuggee
        self.attention = False
        try:
            packet = self._server.packets.get_nowait()
        except queue.Empty:
            return
        if packet == INTERRUPT:
            self.stop(debuggee, Stopped(SIGINT))
        elif packet == wire.GONE:
            self._detach()
        elif packet != wire.CONNECTED:
            self._attached = True
            if not self._answer(packet):
                self._stand()
        if not self._server.packets.empty():
            self.attention = True
            debuggee.vm.processor.preempt()

    def stop(self, debuggee: Debuggee, why: Stopped) -> None:
        """Wait until gdb lets the guests continue."""
        self._at = debuggee
        self._report(why)
        self._stand()

    def _stand(self) -> None:
        self._selected = None
        for one in self._debuggees:
            one.wait_for_gdb()
        self._serve()

    def _report(self, why: Stopped) -> None:
        if why.words:
            self.say(f"{why.words}\n")
        self._last = why
        self._server.send(self._stop_reply)

    @property
    def _stop_reply(self) -> bytes:
        return f"{self._last.reply}thread:{self._current.number:x};".encode()

    def _serve(self) -> None:
        self._standing = True
        while True:
            packet = self._server.packets.get()
            if packet == wire.GONE:
                self._detach()
                break
            if packet == wire.CONNECTED:
                self._last, self._selected = Stopped(), None
                continue
            self._attached = True
            if packet != INTERRUPT and self._answer(packet):
                break
        self.attention = not self._server.packets.empty()
        self._standing = False

    def _detach(self) -> None:
        self._attached = False
        for one in self._debuggees:
            one.detach()

    def _resume(self, thread: Thread, *, step: bool) -> None:
        for one in self._debuggees:
            steps = step and one.vm is thread.vm
            one.resume(step=steps, cpu=thread.cpu if steps else None)

    def _back(self, *, step: bool) -> bool:
        """Go back; whether the machine has to run to be where gdb wants it."""
        self._at = self._debuggee
        self._standing = False
        why = self._at.back(step=step)
        self._standing = True
        self._selected = None
        if why is not None:
            self._report(why)
        return why is None

    # Answers.

    def say(self, text: str) -> None:
        """Send gdb a text to print."""
        if self._attached:
            for start in range(0, len(text), 4000):
                part = text[start : start + 4000].encode("latin-1", "replace")
                self._server.send(b"O" + part.hex().encode())

    def _answer(self, packet: bytes) -> bool:
        """Answer a packet; whether the guest continues."""
        try:
            reply = self._reply(packet)
        except (ValueError, IndexError, KeyError, OverflowError):
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
                return self._stop_reply
            case b"g":
                numbers = range(len(self.target.registers))
                return "".join(self.target.read(self.thread, n) for n in numbers).encode()
            case b"G":
                return self._write_all(bytes.fromhex(rest.decode()))
            case b"p":
                return self.target.read(self.thread, int(rest, 16)).encode()
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
                self._resume(self._current, step=kind.lower() == b"s")
                return None
            case b"Z" | b"z":
                return self._point(rest, insert=kind == b"Z")
            case b"H":
                return self._select(rest)
            case b"T":
                return b"OK" if self._thread_of(rest.decode()) else b"E01"
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
        actions = packet.decode().split(";")
        if actions[0] != "vCont" or any(one[:1] not in ("c", "C", "s", "S") for one in actions[1:]):
            return b""
        for one in actions[1:]:
            action, _, where = one.partition(":")
            if action[:1] in "sS":
                thread = self._thread_of(where) if where and where not in _ANY else self._current
                if thread is None:
                    return b"E01"
                self._resume(thread, step=True)
                return None
        self._resume(self._current, step=False)
        return None

    def _thread_of(self, text: str) -> Thread | None:
        number = int(text.rpartition(".")[2], 16)
        return next((one for one in threads_of(self._machines) if one.number == number), None)

    def _select(self, rest: bytes) -> bytes:
        text = rest[1:].decode()
        if rest[:1] == b"g":
            self._selected = None if text in _ANY else self._thread_of(text)
            return b"OK" if text in _ANY or self._selected else b"E01"
        return b"OK"

    def _kill(self) -> None:
        for vm in self._machines:
            vm.stopped = Stop(End.STOPPED_BY_VMM, "killed by gdb", 1)

    def _query(self, packet: bytes) -> bytes:
        if packet.startswith(b"qSupported"):
            exec_file = ";qXfer:exec-file:read+" if self._exec_file() else ""
            return (_SUPPORTED + exec_file).encode()
        if packet == b"QStartNoAckMode":
            return b"OK"
        if packet == b"qC":
            return b"QC%x" % self._current.number
        if packet == b"qfThreadInfo":
            return b"m" + b",".join(b"%x" % one.number for one in threads_of(self._machines))
        if packet.startswith(b"qThreadExtraInfo,"):
            thread = self._thread_of(packet[17:].decode())
            return thread.words.encode().hex().encode() if thread else b"E01"
        if packet.startswith(b"qRcmd,"):
            words = bytes.fromhex(packet[6:].decode()).decode("latin-1")
            asked = Asked(self.thread, self.target, self._debuggee.stops.catches)
            said = run(asked, words)
            return said.encode("latin-1", "replace").hex().encode() or b"OK"
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
        # A bzImage looks like a program to gdb, too, but one of EFI's, at other addresses.
        guest = self._guest
        return str(guest.resolve()) if guest is not None and is_elf(guest) else ""

    def _point(self, rest: bytes, *, insert: bool) -> bytes:
        kind, address, length = (int(part, 16) for part in rest.split(b";")[0].split(b","))
        known = [one.stops.point(kind, address, length, insert=insert) for one in self._debuggees]
        return b"OK" if all(known) else b""

    def _write_register(self, number: int, data: bytes) -> None:
        if self.target.read(self.thread, number) != data.hex():
            self._debuggee.past.changes()
            self.target.write(self.thread, number, data)

    def _write_all(self, data: bytes) -> bytes:
        for number, register in enumerate(self.target.registers):
            size = (register.bits + 7) // 8
            part, data = data[:size], data[size:]
            if len(part) == size:
                self._write_register(number, part)
        return b"OK"

    def _places(self, address: int, length: int) -> list[tuple[int, int]]:
        """Machine addresses and sizes of what lies at a linear address; shorter at a hole."""
        thread, found = self.thread, []
        view, most = thread.view(), len(thread.vm.processor.memory.cells) * 8
        end = address + length
        while address < end:
            size = min(end - address, 0x1000 - (address & 0xFFF))
            physical = address if self._physical else view.walk(address & _MASK).physical
            where = None if physical is None else thread.machine_address(physical)
            if where is None or not 0 <= where <= most - size:
                break
            found.append((where, size))
            address += size
        return found

    def _read_memory(self, address: int, length: int) -> bytes:
        memory = self.thread.vm.processor.memory
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
            self._debuggee.past.changes()
        for at, size in places:
            self.thread.vm.processor.memory.write(at, data[:size])
            data = data[size:]
        return b"OK"
