"""`python -m benchmarks.gdb`: what a gdb that is attached costs, and ways back, on Linux."""

import io
import socket
import threading
import time
from statistics import median

from benchmarks.suite import LINUX
from trapgate.debug.gdb import Debugger
from trapgate.debug.gdb.packets import PacketReader, framed
from trapgate.vmm.loaders import load_guest
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.ui.console import Console

_MEMORY = 128 << 20
_LENGTH = 400_000_000
_TURNS = 3
_STEPS = 40


def linux() -> VirtualMachine:
    """Debian's kernel before its first instruction."""
    vm = VirtualMachine(_MEMORY, console=Console(io.BytesIO()))
    initrd = LINUX / "initrd-amd64.cpio"
    kernel = LINUX / "vmlinuz-amd64"
    vm.load(load_guest(kernel, memory=_MEMORY, append="console=ttyS0", initrd=initrd))
    return vm


class _Gdb:
    """Sends packets, and waits for answers."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address)
        self._reader = PacketReader()
        self._waiting: list[bytes] = []
        self.ask(b"QStartNoAckMode")

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._socket.sendall(b"\x03")

    def kill(self) -> None:
        """End the machine, which answers no more."""
        self._socket.sendall(framed(b"k"))

    def ask(self, packet: bytes) -> bytes:
        self._socket.sendall(framed(packet))
        while True:
            while not self._waiting:
                self._waiting += self._reader.feed(self._socket.recv(65536))
            answer = self._waiting.pop(0)
            if answer[:1] != b"O" or answer == b"OK":
                return answer


def seconds(*, attached: bool) -> float:
    """Processor time of the first instructions, from when the guest is let go."""
    vm = linux()
    if not attached:
        begun = time.process_time()
        vm.run(max_instructions=_LENGTH)
        return time.process_time() - begun
    debugger = Debugger(vm, "127.0.0.1", 0)
    took = []

    def run() -> None:
        debugger.wait()
        begun = time.process_time()
        stop = vm.run(max_instructions=_LENGTH)
        took.append(time.process_time() - begun)
        debugger.finished(stop)

    thread = threading.Thread(target=run)
    thread.start()
    _Gdb(debugger.address).ask(b"c")
    thread.join()
    return took[0]


def _interrupt(vm: VirtualMachine, gdb: _Gdb) -> None:
    """Ctrl-C, when the guest has executed most of what it is to execute."""
    while vm.processor.time < _LENGTH * 3 // 4:
        time.sleep(0.01)
    gdb.interrupt()


def steps_back() -> list[float]:
    """Milliseconds of single steps back from an instruction deep in the boot."""
    vm = linux()
    debugger = Debugger(vm, "127.0.0.1", 0)

    def run() -> None:
        debugger.wait()
        debugger.finished(vm.run(max_instructions=_LENGTH))

    thread = threading.Thread(target=run)
    thread.start()
    gdb = _Gdb(debugger.address)
    threading.Thread(target=_interrupt, args=(vm, gdb), daemon=True).start()
    gdb.ask(b"c")
    times = []
    for _ in range(_STEPS):
        begun = time.perf_counter()
        assert gdb.ask(b"bs")[:3] == b"T05"
        times.append((time.perf_counter() - begun) * 1e3)
    gdb.kill()
    thread.join()
    return times


def main() -> None:
    """Print both."""
    for turn in range(_TURNS):
        alone, attached = seconds(attached=False), seconds(attached=True)
        print(f"turn {turn + 1}: {alone:.2f} s alone, {attached:.2f} s with gdb attached")
    times = steps_back()
    print(f"a step back: the first {times[0]:.0f} ms, then {median(times[1:]):.1f} ms")


if __name__ == "__main__":
    main()
