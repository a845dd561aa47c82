"""The terminal: keys, --until, and that it is always put back."""

import contextlib
import io
import os
import pty
import signal
import subprocess
import sys
import termios
import time

import pytest

from trapgate.vmm.ui.console import (
    EVERY_BYTE,
    WINDOW,
    Console,
    ConsoleError,
    KeyFilter,
    Watcher,
    input_bytes,
    last_bytes,
)


def test_output_goes_out_in_lines_or_when_flushed() -> None:
    output = io.BytesIO()
    with Console(output) as console:
        for byte in b"line\npart":
            console.emit(byte)
        assert output.getvalue() == b"line\n"
        assert console.poll() == b""
        assert output.getvalue() == b"line\npart"
        console.emit(ord("!"))
    assert output.getvalue() == b"line\npart!"
    assert not console.interactive


def test_until_is_found_at_its_last_byte() -> None:
    console = Console(io.BytesIO(), until=r"login: $")
    for byte in b"a login:":
        console.emit(byte)
    assert not console.found
    console.emit(ord(" "))
    assert console.found


def test_watcher_forgets_all_but_its_window() -> None:
    watcher = Watcher(r"start[^z]*end")
    for byte in b"start" + b"." * (3 * WINDOW) + b"end":
        watcher.see(byte)
    assert not watcher.found
    assert len(watcher._recent) <= 2 * WINDOW
    for byte in b"start" + b"." * (WINDOW - 8) + b"end":
        watcher.see(byte)
    assert watcher.found


def test_bad_expression_is_explained_in_one_line() -> None:
    with pytest.raises(ConsoleError) as caught:
        Console(io.BytesIO(), until="(unclosed\n")
    assert str(caught.value).startswith("--until: ")
    assert "\n" not in str(caught.value)


def test_escape_keys_across_reads() -> None:
    keys = KeyFilter()
    assert keys.feed(b"ab\x01") == b"ab"
    assert keys.feed(b"\x01c") == b"\x01c"
    assert keys.feed(b"\x01c\x01q.\x03") == b"\x03.\x03"
    assert not keys.left
    assert keys.feed(b"d\x01xrest") == b"d"
    assert keys.left


def test_input_text_with_escapes() -> None:
    assert input_bytes(r"ls\n\x03\te\\n") == b"ls\n\x03\te\\n"
    assert input_bytes("plain é\n") == "plain é\n".encode()
    assert input_bytes(r"\xff\q") == b"\xff\\q"


def test_a_reader_that_goes_away_ends_the_run() -> None:
    class Gone(io.BytesIO):
        def write(self, data: object) -> int:
            raise BrokenPipeError

    console = Console(Gone())
    console.emit(ord("\n"))
    assert console.left
    console.emit(ord("\n"))


def test_terminal_is_raw_inside_and_restored_outside() -> None:
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        output = io.BytesIO()
        with contextlib.suppress(RuntimeError), Console(output, source=slave) as console:
            assert console.interactive
            inside = termios.tcgetattr(slave)
            assert not inside[3] & (termios.ICANON | termios.ECHO)
            assert inside[3] & termios.ISIG
            os.write(master, b"ls\r\x01c\x1a")
            assert console.wait(5.0) == b"ls\r\x03\x1a"
            assert console.poll() == b""
            os.write(master, b"\x01x")
            assert console.wait(5.0) == b""
            assert console.left
            raise RuntimeError("the guest's VMM broke")
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


def test_hung_up_terminal_ends_the_run() -> None:
    master, slave = pty.openpty()
    with Console(io.BytesIO(), source=slave) as console:
        os.close(master)
        assert console.wait(5.0) == b""
        assert console.left
    os.close(slave)


def test_terminal_is_restored_when_a_signal_ends_us() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    program = (
        "import sys, time\n"
        "from trapgate.vmm.ui.console import Console\n"
        "with Console(sys.stdout.buffer, source=0):\n"
        "    print('raw', flush=True)\n"
        "    time.sleep(30)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=slave, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"raw\n"
        assert termios.tcgetattr(slave) != before
        child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert child.returncode == -signal.SIGTERM
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    ("expression", "last"),
    [(rb"/ # ", b" "), (rb"login:", b":"), (rb"a\.b\$", b"$"), ("ü".encode(), b"\xbc")],
)
def test_plain_text_ends_with_its_last_byte(expression: bytes, last: bytes) -> None:
    assert last_bytes(expression) == 1 << last[0]


@pytest.mark.parametrize(
    "expression", [rb"a\n", rb"x|y", rb"a$", b"", rb"a\B", rb"(?i)x", rb"a{2}"]
)
def test_other_expressions_may_end_with_any_byte(expression: bytes) -> None:
    assert last_bytes(expression) == EVERY_BYTE
