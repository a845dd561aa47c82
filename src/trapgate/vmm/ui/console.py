"""The terminal at the other end of the guest's serial port.

Output goes out in lines, or when the VMM flushes. If input is a terminal it is put into
raw mode while the guest runs, and always put back: on leaving, at exit, on a signal that
ends us. Ctrl-A is the escape: Ctrl-A x leaves, Ctrl-A Ctrl-A sends one Ctrl-A, Ctrl-A c
sends Ctrl-C, which typed itself interrupts the run as everywhere else, and Ctrl-A p presses the
machine's power button.
"""

import atexit
import contextlib
import importlib.util
import os
import re
import select
import signal
from types import FrameType, TracebackType
from typing import Protocol, Self

from trapgate.errors import TrapgateError

_ESCAPE = 0x01
_LEAVE = (ord("x"), ord("X"))
_INTERRUPT = (ord("c"), ord("C"))
_BUTTON = (ord("p"), ord("P"))

WINDOW = 4096
"""How many of the latest bytes of output the --until expression sees."""

_FLUSH_AT = 1024
_READ = 1024
_ENDING_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class ConsoleError(TrapgateError):
    """An option for the console makes no sense; `option` names it, `problem` says how to mend it.

    Caused by a regular expression that does not compile.
    """

    def __init__(self, option: str, problem: str) -> None:
        """Name the `option` and the `problem` with its remedy."""
        self.option = option
        self.problem = problem
        super().__init__(option, problem)

    def __str__(self) -> str:
        """Option and problem on one line."""
        return " ".join(f"{self.option}: {self.problem}".split())


class Output(Protocol):
    """Where a guest's output goes: a binary file, or what acts like one."""

    def write(self, data: bytes, /) -> object:
        """Take bytes."""

    def flush(self) -> object:
        """Flush what was written."""


EVERY_BYTE = (1 << 256) - 1
_PLAIN_TEXT = re.compile(rb"(?:[^\\.^$*+?{}\[\]|()]|\\[^0-9A-Za-z])+")


def last_bytes(expression: bytes) -> int:
    """With which bytes what matches a regular expression can end, a bit each.

    Plain text is found with its last byte, so that no other has to be looked at before the guest
    continues. Of an expression that is more than that every byte may be the one.
    """
    return 1 << expression[-1] if _PLAIN_TEXT.fullmatch(expression) else EVERY_BYTE


class Watcher:
    """Looks for a regular expression in the latest `WINDOW` bytes of output.

    It is asked after every byte, so that a run ends at the same instruction each time.
    Raises ConsoleError if `expression` does not compile.
    """

    def __init__(self, expression: str) -> None:
        try:
            self._search = re.compile(expression.encode("utf-8", "surrogateescape")).search
        except (re.error, OverflowError, RecursionError) as error:
            raise ConsoleError(
                "--until", f"{expression!r} is not a regular expression ({error}); correct it"
            ) from None
        self.expected = last_bytes(expression.encode("utf-8", "surrogateescape"))
        """With which bytes it can appear, a bit each."""
        self._recent = bytearray()
        self.found = False

    def see(self, byte: int) -> bool:
        """Take one byte of output; has the expression been found by now?"""
        if not self.found:
            recent = self._recent
            recent.append(byte)
            if len(recent) > 2 * WINDOW:
                del recent[:-WINDOW]
            if self._search(recent, max(len(recent) - WINDOW, 0)):
                self.found = True
        return self.found


class KeyFilter:
    """Takes the Ctrl-A commands out of what is typed."""

    def __init__(self) -> None:
        self.left = False
        self.button = False
        """Whether Ctrl-A p was typed."""
        self._escaped = False

    def feed(self, typed: bytes) -> bytes:
        """The bytes that are for the guest; nothing after Ctrl-A x, which sets `left`."""
        keys = bytearray()
        for byte in typed:
            if self.left:
                break
            if self._escaped:
                self._escaped = False
                if byte in _LEAVE:
                    self.left = True
                elif byte in _INTERRUPT:
                    keys.append(0x03)
                elif byte in _BUTTON:
                    self.button = True
                elif byte == _ESCAPE:
                    keys.append(byte)
                # Any other key after Ctrl-A means nothing and is dropped.
            elif byte == _ESCAPE:
                self._escaped = True
            else:
                keys.append(byte)
        return bytes(keys)


class Console:
    """Guest output to `output`, and keys from file descriptor `source` if it is a terminal.

    Windows has no such terminals: there is output only.

    Use as a context manager around the run. `until` is a regular expression (bytes of the
    output, UTF-8) whose appearance sets `found`. Raises ConsoleError if it is none.
    """

    def __init__(
        self, output: Output, *, source: int | None = None, until: str | None = None
    ) -> None:
        self._output = output
        has_terminals = importlib.util.find_spec("termios") is not None
        is_one = source is not None and has_terminals and os.isatty(source)
        self._source = source if is_one else None
        self._watcher = None if until is None else Watcher(until)
        self._keys = KeyFilter()
        self._buffer = bytearray()
        self._saved: list[int | list[bytes | int]] | None = None
        self._handlers: list[tuple[signal.Signals, object]] = []
        self._broken = False
        self.typed = False
        """Whether the guest has got keys from a terminal."""

    @property
    def interactive(self) -> bool:
        """Is somebody typing?"""
        return self._source is not None

    @property
    def expected(self) -> int:
        """With which bytes of output a run can end, a bit each."""
        return 0 if self._watcher is None else self._watcher.expected

    @property
    def found(self) -> bool:
        """Has the --until expression appeared?"""
        return self._watcher is not None and self._watcher.found

    @property
    def left(self) -> bool:
        """Has the user left (Ctrl-A x), or has the reader of our output gone?"""
        return self._keys.left or self._broken

    def take_button(self) -> bool:
        """Has the user pressed the power button (Ctrl-A p) since the last time?"""
        pressed, self._keys.button = self._keys.button, False
        return pressed

    def __enter__(self) -> Self:
        """Put the terminal into raw mode, but for interrupting and output processing."""
        if self._source is None:
            return self
        import termios

        self._saved = termios.tcgetattr(self._source)
        raw = termios.tcgetattr(self._source)
        raw[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
        raw[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
        # Ctrl-C still interrupts the run, and keeps what was typed before it; Ctrl-Z and
        # Ctrl-\ are the guest's.
        raw[3] |= termios.NOFLSH
        off = os.fpathconf(self._source, "PC_VDISABLE").to_bytes(1, "little")
        for key in (termios.VQUIT, termios.VSUSP):
            raw[6][key] = off
        raw[6][termios.VMIN] = 1
        raw[6][termios.VTIME] = 0
        atexit.register(self.restore)
        for number in _ENDING_SIGNALS:
            try:
                self._handlers.append((number, signal.signal(number, self._end)))
            except ValueError:
                break  # not the main thread; atexit has to do
        termios.tcsetattr(self._source, termios.TCSADRAIN, raw)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Flush the output and put the terminal back."""
        try:
            self.flush()
        finally:
            self.restore()

    def restore(self) -> None:
        """Put the terminal and the signal handlers back as they were; twice does no harm."""
        if self._saved is not None and self._source is not None:
            import termios

            saved, self._saved = self._saved, None
            # If this fails the terminal has gone, and there is nothing to put back.
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(self._source, termios.TCSADRAIN, saved)
        for number, handler in self._handlers:
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._handlers.clear()
        atexit.unregister(self.restore)

    def emit(self, byte: int) -> None:
        """Take one byte from the guest."""
        buffer = self._buffer
        buffer.append(byte)
        if self._watcher is not None:
            self._watcher.see(byte)
        if byte == 0x0A or len(buffer) >= _FLUSH_AT:
            self.flush()

    def flush(self) -> None:
        """Show what the guest has written so far."""
        if not self._buffer:
            return
        data = bytes(self._buffer)
        self._buffer.clear()
        if self._broken:
            return
        try:
            self._output.write(data)
            self._output.flush()
        except (OSError, ValueError):
            self._broken = True  # the reader has gone: `left` ends the run

    def poll(self) -> bytes:
        """Keys for the guest, without waiting; also flushes the output."""
        return self.wait(0.0)

    def wait(self, seconds: float) -> bytes:
        """Keys for the guest, waiting for the first at most `seconds`.

        An idle guest's VMM waits here instead of spinning. Without a terminal it answers
        at once: scripted runs never wait for the host's clock.
        """
        self.flush()
        if self._source is None:
            return b""
        try:
            ready, _, _ = select.select([self._source], [], [], seconds)
            typed = os.read(self._source, _READ) if ready else None
        except OSError:
            typed = b""
        if typed is None:
            return b""
        if not typed:
            self._broken = True  # the terminal was hung up
            return b""
        keys = self._keys.feed(typed)
        self.typed |= bool(keys)
        return keys

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        # The handler that was there before now ends us, with the status it always gives.
        os.kill(os.getpid(), number)


_ESCAPES = {
    "n": b"\n",
    "r": b"\r",
    "t": b"\t",
    "e": b"\x1b",
    "\\": b"\\",
}


def input_bytes(text: str) -> bytes:
    r"""The bytes that --input TEXT types: UTF-8, with \n \r \t \e \\ and \xNN understood."""

    def replace(match: re.Match[str]) -> str:
        escape = match[1]
        data = _ESCAPES.get(escape) or bytes([int(escape[1:], 16)])
        return data.decode("utf-8", "surrogateescape")

    unescaped = re.sub(r"\\([nrte\\]|x[0-9a-fA-F]{2})", replace, text)
    return unescaped.encode("utf-8", "surrogateescape")
