"""A run ends with the byte that `until` waits for, however few bytes the VMM looks at in time."""

import io

import pytest

from benchmarks.guests import Loop, multiboot_guest
from trapgate.vmm.actions import End
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.ui.console import Console

MEMORY = 8 << 20
TEXT = b"Booting...\n~ # / # never seen\n"


def printing(text: bytes) -> bytes:
    """mov edx, 3F8H; then mov al, byte; out dx, al for each."""
    return b"\xba\xf8\x03\0\0" + b"".join(bytes((0xB0, byte, 0xEE)) for byte in text)


def ended(until: str, engine: str) -> tuple[bytes, int, int]:
    """What was printed, the time of the end, and how often COM1 was asked."""
    output = io.BytesIO()
    vm = VirtualMachine(MEMORY, engine=engine, console=Console(output, until=until))
    guest = multiboot_guest(Loop(printing(TEXT), 2 * len(TEXT)))
    vm.load(parse_guest(guest, file="text.elf", memory=MEMORY))
    asked: list[int] = []
    emit = vm.devices.uart._emit

    def emit_at_once(byte: int) -> None:
        asked.append(byte)
        emit(byte)

    vm.devices.uart._emit = emit_at_once
    assert vm.run(max_instructions=10_000).end is End.UNTIL
    return output.getvalue(), vm.processor.time, len(asked)


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_plain_text_and_an_expression_end_at_the_same_instruction(engine: str) -> None:
    plain, then, asked = ended("/ # ", engine)
    assert plain == b"Booting...\n~ # / # "
    assert asked == plain.count(b" ")
    assert ended("/ [#] ", engine) == (plain, then, len(plain))
