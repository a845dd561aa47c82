"""gdb on an unmodified kernel: stopped anywhere, stepped, broken into by name, and let go."""

import io
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.debug.test_gdb import Session, gdb, needs_gdb
from tests.guests.test_linux_boots import MEMORY, PROMPT, paths
from trapgate.debug.gdb import Debugger
from trapgate.vmm.actions import End
from trapgate.vmm.loaders import load_guest
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.ui.console import Console

pytestmark = [pytest.mark.linux, needs_gdb]

TOOL = Path(__file__).parents[2] / "tools" / "map-to-elf"
APPEND = "console=ttyS0 nokaslr"
WANTED = ("_text", "start_kernel", "kernel_clone", "copy_process", "attach_pid", "nr_threads")


def booting(append: str, *, until: str = "/ # $") -> tuple[VirtualMachine, Session, io.BytesIO]:
    """A machine with Debian's amd64 kernel, and a debugger around it."""
    kernel, initrd = paths("amd64")
    output = io.BytesIO()
    vm = VirtualMachine(MEMORY, console=Console(output, until=until))
    image = load_guest(kernel, memory=MEMORY, append=append, initrd=initrd)
    vm.load(image)
    return vm, Session(vm, Debugger(vm, "127.0.0.1", 0, guest=kernel, bits=image.bits)), output


def go(made: Session, *, wait: bool = False) -> None:
    """Let the machine run in a thread."""

    def run() -> None:
        if wait:
            made.debugger.wait()
        made.stops.append(made.vm.run(timeout=120))
        made.debugger.finished(made.stops[0])

    made.thread = threading.Thread(target=run, daemon=True)
    made.thread.start()


@pytest.fixture(scope="module")
def symbols(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A symbol file of what the kernel itself says of its functions and variables."""
    vm, made, output = booting(f"{APPEND} quiet", until="END\r?\n")
    vm.type(f"grep -E ' ({'|'.join(WANTED)})$' /proc/kallsyms; echo EN''D\n".encode())
    vm.run(timeout=120)
    made.debugger.finished(vm.stopped)  # type: ignore[arg-type]
    folder = tmp_path_factory.mktemp("symbols")
    (folder / "map").write_bytes(output.getvalue().replace(b"\r", b""))
    words = [sys.executable, str(TOOL), str(folder / "map"), "-o", str(folder / "symbols.elf")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert f"{len(WANTED)} symbols" in done.stdout
    return folder / "symbols.elf"


def test_a_kernel_with_symbols_is_debugged_from_its_first_instruction(symbols: Path) -> None:
    _, made, output = booting(APPEND)
    go(made, wait=True)
    words = gdb(
        made,
        "break start_kernel",
        "continue",
        "info symbol $pc",
        "stepi 3",
        "info symbol $pc",
        "break kernel_clone",
        "continue",
        "info symbol $pc",
        "backtrace 1",
        "set $caller = *(long *)$rsp",
        "tbreak attach_pid",
        "continue",
        "delete",
        "watch *(int *)&nr_threads",
        "continue",
        "info symbol $pc",
        "delete",
        "tbreak *$caller",
        "continue",
        'printf "process %d\\n", $eax',
        "break copy_process",
        "reverse-continue",
        "info symbol $pc",
        "delete",
        "continue",
        before=(f"symbol-file {symbols}",),
    )
    for line in (
        r"start_kernel in section \.text",
        r"start_kernel \+ \d+ in section \.text",
        r"kernel_clone in section \.text",
        r"#0 .* in kernel_clone \(\)",
        r"Old value = \d+\nNew value = \d+",
        r"copy_process \+ \d+ in section \.text",
        "process 1\n",
        r"copy_process in section \.text",
    ):
        assert re.search(line, words), (line, words)
    assert made.end(120).end is End.UNTIL
    assert output.getvalue().count(b"Linux version") == 1
    assert PROMPT in output.getvalue()


def test_a_kernel_is_stopped_stepped_and_goes_on_to_its_shell() -> None:
    _, made, output = booting("console=ttyS0")
    go(made)
    deadline = time.monotonic() + 60
    while b"Linux version" not in output.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    words = gdb(
        made,
        'printf "kernel %d\\n", $rip > 0xffffffff80000000',
        "stepi 5",
        "set $here = $rip",
        'printf "code %d\\n", *(unsigned char *)$rip >= 0',
        "stepi",
        "monitor walk 0xffffffff81000000",
        "monitor idt PF",
        "hbreak *$lstar",
        "continue",
        'printf "syscall %d %d\\n", $rip == $lstar, $cs & 3',
        "monitor trace 1",
        "delete",
        "stepi 3",
        "reverse-stepi",
        "reverse-stepi 2",
        'printf "back %d\\n", $rip == $lstar',
        "hbreak *$lstar",
        "stepi 2",
        "reverse-continue",
        'printf "broken %d\\n", $rip == $lstar',
        "delete",
        "detach",
    )
    assert "kernel 1" in words
    assert "code 1" in words
    assert "PML4E at" in words
    assert "its handler would be entered" in words
    assert "syscall 1 0" in words
    assert "back 1" in words
    assert "broken 1" in words
    assert made.end(120).end is End.UNTIL
    assert PROMPT in output.getvalue()
