"""Listens for one gdb; its packets wait in a queue for the debugger, which answers when it may.

A thread reads the socket, so that a guest that runs costs nothing. Whatever a client sends, at
worst its connection is closed.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable

from trapgate.debug.gdb.packets import INTERRUPT, NOT_UNDERSTOOD, PacketReader, framed
from trapgate.errors import TrapgateError

CONNECTED = b"\x00connected"
"""Queued when a gdb has connected."""
GONE = b"\x00gone"
"""Queued when it has gone, without goodbye or with."""
_LOOPBACK = "127.0.0.1"


def address_of(text: str, option: str = "--gdb") -> tuple[str, int]:
    """[HOST:]PORT; loopback unless a host is given. Raises TrapgateError, which names `option`."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 <= int(port) < 65536:
        raise TrapgateError(
            f"{option}: {text[:60]!r} is not [HOST:]PORT; write 1234 or 127.0.0.1:1234 (0 to 65535)"
        )
    return host.strip("[]") or _LOOPBACK, int(port)


class Server:
    """A listening socket, the one client, and what it sent.

    `wake` is called, in another thread, when something arrives that a running guest must heed.
    Raises TrapgateError if the port cannot be opened.
    """

    def __init__(self, host: str, port: int, wake: Callable[[], None]) -> None:
        self.packets: queue.Queue[bytes] = queue.Queue()
        self._wake = wake
        self._client: socket.socket | None = None
        self._acknowledges = True
        self._closed = False
        self._lock = threading.Lock()
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._listener = socket.create_server(family[4][:2], family=family[0])
        except (OSError, UnicodeError, OverflowError) as error:
            # Python adds the address to some of these texts.
            reason = (getattr(error, "strerror", None) or str(error)).partition(" (while ")[0]
            raise TrapgateError(
                f"--gdb: {host}:{port} cannot be opened ({reason}); give another port or host"
            ) from None
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                taken = self._client is not None
                if not taken:
                    self._client = client
                    self._acknowledges = True
            if taken:
                client.close()  # one debugger at a time
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._read, args=(client,), daemon=True).start()

    def _read(self, client: socket.socket) -> None:
        reader = PacketReader()
        self._put(CONNECTED)
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                for packet in reader.feed(data):
                    if packet != INTERRUPT and self._acknowledges:
                        self._write(b"-" if packet == NOT_UNDERSTOOD else b"+")
                    if packet != NOT_UNDERSTOOD:
                        self._put(packet)
        with self._lock:
            if self._client is client:
                self._client = None
        client.close()
        self._put(GONE)

    def _put(self, packet: bytes) -> None:
        self.packets.put(packet)
        self._wake()

    def _write(self, data: bytes) -> None:
        client = self._client
        if client is not None:
            with contextlib.suppress(OSError):
                client.sendall(data)

    def send(self, body: bytes) -> None:
        """Send a packet, if anybody is there."""
        self._write(framed(body))

    def stop_acknowledging(self) -> None:
        """QStartNoAckMode."""
        self._acknowledges = False

    def close(self) -> None:
        """Close everything."""
        self._closed = True
        self._listener.close()
        client = self._client
        if client is not None:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
