"""What a PC does to memory accesses below and above 1 MiB: write-protected firmware, line 20."""

import pytest

from tests.conformance.tiny_guest import CODE, Tiny, launch, prepare
from trapgate.processor.processor import Processor
from trapgate.sdm.reasons import ExitReason

pytestmark = [pytest.mark.conformance, pytest.mark.native]

FIRMWARE = 0xC8000


def store(address: int, value: int) -> bytes:
    """MOV BYTE PTR [address], value."""
    return b"\xc6\x05" + address.to_bytes(4, "little") + bytes((value,))


def ran(code: bytes, prepared: "list[Processor]", *, read_only: int = 0, low: bool = False) -> None:
    processor, vmcs = prepare(Tiny("p32", code=code), engine="native")
    prepared.append(processor)
    processor.memory.write(FIRMWARE, b"\x11" * 64)
    processor.engine.protect_firmware(read_only)
    processor.engine.hold_a20(low=low)
    run = launch(Tiny("p32", code=code), processor, vmcs)
    assert run.exit.reason == ExitReason.VMCALL
    assert run.vmcs["GUEST_RIP"] == CODE + len(code)


@pytest.mark.parametrize(
    "code",
    [
        store(FIRMWARE, 0x22),
        b"\xf0\xff\x05" + FIRMWARE.to_bytes(4, "little"),  # lock inc
        b"\xbf" + FIRMWARE.to_bytes(4, "little") + b"\xb9\x10\0\0\0\xf3\xaa",  # rep stosb
        b"\x0f\x11\x05" + FIRMWARE.to_bytes(4, "little"),  # movups
    ],
)
def test_stores_to_protected_firmware_go_nowhere(code: bytes) -> None:
    for read_only, kept in ((1 << 2, True), (1 << 1, False), (0, False)):
        processors: list[Processor] = []
        ran(code, processors, read_only=read_only)
        assert (processors[0].memory.read(FIRMWARE, 16) == b"\x11" * 16) == kept


def test_firmware_that_is_protected_can_be_read_and_executed() -> None:
    jump = b"\xb8" + (FIRMWARE + 16).to_bytes(4, "little") + b"\xff\xd0"  # call it
    processor, vmcs = prepare(Tiny("p32", code=jump), engine="native")
    body = b"\xa1" + FIRMWARE.to_bytes(4, "little") + store(FIRMWARE, 0x33) + b"\xc3"
    processor.memory.write(FIRMWARE, b"\x44" * 16 + body)
    processor.engine.protect_firmware(0xFFFF)
    assert launch(Tiny("p32", code=jump), processor, vmcs).exit.reason == ExitReason.VMCALL
    assert processor.registers.rax == 0x4444_4444
    assert processor.memory.read(FIRMWARE, 16) == b"\x44" * 16


@pytest.mark.parametrize("low", [False, True])
def test_address_line_20(low: bool) -> None:
    high = 1 << 20 | 0x50000
    code = store(0x50000, 1) + store(high, 2) + b"\xa0" + (0x50000).to_bytes(4, "little")
    processors: list[Processor] = []
    ran(code, processors, low=low)
    assert processors[0].memory.read(0x50000, 1) == (b"\x02" if low else b"\x01")
    assert processors[0].memory.read(high, 1) == (b"\0" if low else b"\x02")
    assert processors[0].registers.rax & 0xFF == (2 if low else 1)
