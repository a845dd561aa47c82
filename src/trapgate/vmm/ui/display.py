"""The screen, keyboard and mouse of a running machine as a page for a browser.

The server's threads never touch the machine: they leave keys and movements, and ask for
pictures, and the machine looks at that from time to time (`Display.look`).
"""

from __future__ import annotations

import json
import queue
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, Final

from trapgate.errors import TrapgateError
from trapgate.vmm.devices import Pc
from trapgate.vmm.devices.pixels import Readable
from trapgate.vmm.devices.scancodes import pressed
from trapgate.vmm.ui.screen import ScreenError, png

_LONGEST_MESSAGE = 4096
_MOST_EVENTS = 1000
_PATIENCE = 2.0
"""Seconds that a browser waits for a picture of a machine that does not look."""

_PAGE: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Trapgate</title>
<style>
:root { color-scheme: dark } body { margin: 0; background: #1c1c1c; color: #ccc;
font: 14px system-ui, sans-serif; display: grid; justify-items: center; gap: .5rem }
img { image-rendering: pixelated; max-width: 100vw; max-height: 92vh; background: #000;
outline: none; cursor: crosshair } img:focus { box-shadow: 0 0 0 2px #6af }
</style>
<img id="screen" src="screen.png" tabindex="0" alt="The guest's screen">
<div><button id="power" type="button">Power button</button>
<span id="status" role="status">Click the screen: keys and mouse go to the guest.</span></div>
<script>
const screen_ = document.getElementById("screen"), status_ = document.getElementById("status");
let waiting = [], x = null, y = null, ended = false;
async function send() {
  if (waiting.length) {
    const events = waiting.splice(0, 64);
    try { await fetch("events", {method: "POST", body: JSON.stringify(events),
      headers: {"Content-Type": "application/json"}}) } catch {}
  }
  setTimeout(send, 20);
}
async function show() {
  try {
    const answer = await fetch("screen.png", {cache: "no-store"});
    if (answer.ok) {
      const old = screen_.src;
      screen_.src = URL.createObjectURL(await answer.blob());
      if (old.startsWith("blob:")) URL.revokeObjectURL(old);
      if (ended) status_.textContent = "";
      ended = false;
    } else status_.textContent = await answer.text();
  } catch { status_.textContent = "The run has ended."; ended = true }
  setTimeout(show, ended ? 1000 : 100);
}
for (const kind of ["keydown", "keyup"])
  screen_.addEventListener(kind, event => {
    event.preventDefault();
    if (kind === "keyup" || !event.repeat || event.code.startsWith("Arrow") ||
        event.code === "Backspace")
      waiting.push({key: event.code, down: kind === "keydown"});
  });
function mouse(event) {
  const scale = screen_.naturalWidth / screen_.clientWidth || 1;
  const nx = Math.round(event.offsetX * scale), ny = Math.round(event.offsetY * scale);
  const buttons = event.buttons & 7;
  if (x !== null) waiting.push({right: nx - x, down: ny - y, buttons});
  x = nx; y = ny;
}
for (const kind of ["mousemove", "mousedown", "mouseup"]) screen_.addEventListener(kind, mouse);
screen_.addEventListener("mouseleave", () => { x = y = null });
screen_.addEventListener("contextmenu", event => event.preventDefault());
document.getElementById("power").addEventListener("click", () => waiting.push({power: true}));
screen_.focus(); send(); show();
</script>
"""


class _Exchange:
    """Between the page and the machine: pictures that go out, events that come in."""

    def __init__(self) -> None:
        self.events: queue.Queue[dict[str, object]] = queue.Queue(_MOST_EVENTS)
        self.wanted = threading.Event()
        self._fresh = threading.Condition()
        self._picture: bytes | str = b""
        self._count = 0

    def put(self, picture: bytes | str) -> None:
        """Hand out a picture, or the reason why there is none."""
        self.wanted.clear()
        with self._fresh:
            self._picture = picture
            self._count += 1
            self._fresh.notify_all()

    def get(self) -> bytes | str:
        """A new picture; the last one if there is none in time."""
        with self._fresh:
            count = self._count
            self.wanted.set()
            self._fresh.wait_for(lambda: self._count != count, _PATIENCE)
            return self._picture


class _Handler(BaseHTTPRequestHandler):
    exchange: ClassVar[_Exchange]
    hosts: ClassVar[frozenset[str]]
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: the terminal is the guest's."""

    def do_GET(self) -> None:
        """The page, or a picture."""
        if not self._is_ours():
            return
        if self.path == "/":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", _PAGE.encode())
        elif self.path == "/screen.png":
            picture = self.exchange.get()
            if isinstance(picture, bytes) and picture:
                self._answer(HTTPStatus.OK, "image/png", picture)
            else:
                words = picture if isinstance(picture, str) else "no picture yet"
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", words.encode())
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"not here")

    def do_POST(self) -> None:
        """Keys and movements of the mouse."""
        if not self._is_ours():
            return
        length = self.headers.get("Content-Length", "")
        is_json = self.headers.get("Content-Type", "") == "application/json"
        if not length.isdigit() or int(length) > _LONGEST_MESSAGE or not is_json:
            self.close_connection = True
            self._answer(HTTPStatus.BAD_REQUEST, "text/plain", b"events as JSON, up to 4 KiB")
            return
        try:
            events = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            events = None
        if not isinstance(events, list) or not all(isinstance(one, dict) for one in events):
            self._answer(HTTPStatus.BAD_REQUEST, "text/plain", b"a list of events is wanted")
            return
        for event in events:
            if not self.exchange.events.full():
                self.exchange.events.put(event)
        self._answer(HTTPStatus.NO_CONTENT, "text/plain", b"")

    def _is_ours(self) -> bool:
        """Whether the page was asked for by its own name: other sites' pages must not type here."""
        origin = self.headers.get("Origin")
        named = self.headers.get("Host", "") in self.hosts
        if named and (origin is None or origin.partition("://")[2] in self.hosts):
            return True
        self.close_connection = True
        self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"another host's page may not do that")
        return False

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)


class Display:
    """Serves the page of a PC at `host` and `port` (0: any) from now on, until `close`.

    `devices` are the PC's, `memory` is what its VGA shows; `look` is to be one of the machine's
    `watchers`. Raises TrapgateError if the port cannot be opened.
    """

    def __init__(self, devices: Pc, memory: Readable, host: str, port: int) -> None:
        self._devices, self._memory = devices, memory
        self._exchange = exchange = _Exchange()

        class Handler(_Handler):
            pass

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise TrapgateError(
                f"--display: {host}:{port} cannot be opened ({why}); give another port or host"
            ) from None
        self._server.daemon_threads = True
        self.address: Final = f"{host}:{self._server.server_address[1]}"
        Handler.exchange = exchange
        names = (host, "localhost", "127.0.0.1")
        Handler.hosts = frozenset(f"{one}:{self._server.server_address[1]}" for one in names)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def look(self, _vm: object) -> None:
        """Do what the page asks for; the machine asks from time to time."""
        self._take_events()
        if self._exchange.wanted.is_set():
            self._exchange.put(self._picture())

    def close(self) -> None:
        """The run has ended."""
        self._exchange.put(self._picture())
        self._server.shutdown()
        self._server.server_close()

    def _picture(self) -> bytes | str:
        try:
            return png(self._devices.vga, self._memory)
        except ScreenError as error:
            return str(error)

    def _take_events(self) -> None:
        keyboard = self._devices.keyboard
        while not self._exchange.events.empty():
            event = self._exchange.events.get_nowait()
            key = event.get("key")
            if isinstance(key, str):
                keyboard.press(pressed(key, down=event.get("down") is True))
                continue
            if event.get("power") is True:
                self._devices.power.press_button()
                continue
            numbers = [event.get(name) for name in ("right", "down", "buttons")]
            if all(type(number) is int for number in numbers):
                right, down, buttons = (max(-255, min(255, int(str(one)))) for one in numbers)
                keyboard.move(right, down, buttons)
