"""gdb on an unmodified kernel that runs: stopped anywhere, stepped, broken into, and let go."""

import io
import threading
import time

import pytest

from tests.debug.test_gdb import Session, gdb, needs_gdb
from tests.guests.test_linux_boots import MEMORY, PROMPT, paths
from trapgate.debug.gdb import Debugger
from trapgate.vmm.actions import End
from trapgate.vmm.console import Console
from trapgate.vmm.loaders import load_guest
from trapgate.vmm.machine import VirtualMachine

pytestmark = [pytest.mark.linux, needs_gdb]


def test_a_kernel_is_stopped_stepped_and_goes_on_to_its_shell() -> None:
    kernel, initrd = paths("amd64")
    output = io.BytesIO()
    vm = VirtualMachine(MEMORY, console=Console(output, until="/ # $"))
    image = load_guest(kernel, memory=MEMORY, append="console=ttyS0", initrd=initrd)
    vm.load(image)
    made = Session(vm, Debugger(vm, "127.0.0.1", 0, guest=kernel, bits=image.bits))

    def run() -> None:
        made.stops.append(vm.run(timeout=120))
        made.debugger.finished(made.stops[0])

    made.thread = threading.Thread(target=run, daemon=True)
    made.thread.start()
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
