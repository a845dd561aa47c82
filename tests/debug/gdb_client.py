"""A client of gdb's remote protocol that is quicker than gdb, and asks what it likes."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.debug.test_gdb import Session
from trapgate.debug.gdb import Debugger
from trapgate.debug.gdb.packets import PacketReader, framed
from trapgate.vmm.actions import End, Stop
from trapgate.vmm.machine import VirtualMachine

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
def debugged(
    vm: VirtualMachine, *, bits: int = 32, steps: Callable[[], Stop] | None = None
) -> Iterator[tuple[Client, Session]]:
    """A machine that stands before its first instruction, and a client."""
    made = Session(vm, Debugger(vm, "127.0.0.1", 0, bits=bits))

    def run() -> None:
        made.debugger.wait()
        made.stops.append(steps() if steps is not None else vm.run(timeout=120))
        made.debugger.finished(made.stops[0])

    made.thread = threading.Thread(target=run, daemon=True)
    made.thread.start()
    client = Client(made.debugger.address)
    try:
        yield client, made
    finally:
        vm.stopped = vm.stopped or Stop(End.ASKED, "the test is over", 1)
        client.close()
        made.end(60)
