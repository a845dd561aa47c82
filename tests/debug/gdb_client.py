"""A client of gdb's remote protocol that is quicker than gdb, and asks what it likes."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.debug.test_gdb import Session
from trapgate.debug.gdb import Debugger
from trapgate.debug.gdb.packets import PacketReader, framed
from trapgate.vmm.actions import End, Stop
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.scheduler import run_all

STEPPED = b"T05thread:1;"
BEGIN = b"T05replaylog:begin;thread:1;"
BREAK = b"T05swbreak:;thread:1;"


class Client:
    """Asks, and waits for the answer."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, timeout=60)
        self._reader = PacketReader()
        self._waiting: list[bytes] = []
        self.said = ""
        assert self.ask("QStartNoAckMode") == b"OK"

    def ask(self, packet: str | bytes) -> bytes:
        self.send(packet)
        return self.answer()

    def send(self, packet: str | bytes) -> None:
        body = packet.encode() if isinstance(packet, str) else packet
        self._socket.sendall(body if body == b"\x03" else framed(body))

    def answer(self) -> bytes:
        while True:
            while not self._waiting:
                data = self._socket.recv(65536)
                assert data, "the server has gone"
                self._waiting += self._reader.feed(data)
            packet = self._waiting.pop(0)
            if packet[:1] != b"O" or packet == b"OK":
                return packet
            self.said += bytes.fromhex(packet[1:].decode()).decode("latin-1")

    def monitor(self, line: str) -> str:
        answer = self.ask(f"qRcmd,{line.encode().hex()}")
        return "" if answer == b"OK" else bytes.fromhex(answer.decode()).decode("latin-1")

    def number(self, register: int) -> int:
        return int.from_bytes(bytes.fromhex(self.ask(f"p{register:x}").decode()), "little")

    def close(self) -> None:
        self._socket.close()


@contextmanager
def waiting(
    machines: VirtualMachine | Sequence[VirtualMachine], *, bits: int = 32
) -> Iterator[Session]:
    """A machine, or several, before the first instruction; waits for a gdb."""
    several = [machines] if isinstance(machines, VirtualMachine) else list(machines)
    made = Session(several[0], Debugger(machines, "127.0.0.1", 0, bits=bits))

    def run() -> None:
        made.debugger.wait()
        if len(several) > 1:
            made.stops += [stop for stop in run_all(several, turn=100_000) if stop is not None]
        else:
            made.stops.append(several[0].run(timeout=120))
        made.debugger.finished(made.stops[0])

    made.thread = threading.Thread(target=run, daemon=True)
    made.thread.start()
    try:
        yield made
    finally:
        for vm in several:
            vm.stopped = vm.stopped or Stop(End.STOPPED_BY_VMM, "the test is over", 1)
        made.end(60)


@contextmanager
def debugged(
    machines: VirtualMachine | Sequence[VirtualMachine], *, bits: int = 32
) -> Iterator[tuple[Client, Session]]:
    """The same with a client."""
    with waiting(machines, bits=bits) as made:
        client = Client(made.debugger.address)
        try:
            yield client, made
        finally:
            client.close()
