"""The serial port."""

from trapgate.vmm.devices.clock import VirtualClock
from trapgate.vmm.devices.uart import BURST_MICROSECONDS, Uart16550

BASE = 0x3F8
BURST = BURST_MICROSECONDS * 1000


class Port:
    """A UART with its line and output in reach."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.level = False
        self.uart = Uart16550(self.sent.append, self, VirtualClock())

    def set(self, level: bool) -> None:
        self.level = level

    def read(self, register: int, now: int = 0) -> int:
        return self.uart.read(BASE + register, 1, now)

    def write(self, register: int, value: int, now: int = 0) -> None:
        self.uart.write(BASE + register, 1, value, now)


def test_transmits_at_once_and_is_always_ready() -> None:
    port = Port()
    for byte in b"hello":
        assert port.read(5) & 0x60 == 0x60
        port.write(0, byte)
    assert port.sent == b"hello"
    assert not port.level


def test_divisor_latch_hides_data_and_interrupt_enable() -> None:
    port = Port()
    port.write(1, 0x0F)
    port.write(3, 0x83)
    port.write(0, 0x34)
    port.write(1, 0x12)
    assert (port.read(0), port.read(1)) == (0x34, 0x12)
    port.write(0, 1)
    port.write(1, 0)
    assert port.uart.baud == 115200
    port.write(3, 0x03)
    assert port.read(1) == 0x0F
    assert port.sent == b""
    assert port.read(3) == 0x03


def test_registers_keep_only_their_bits() -> None:
    port = Port()
    for register, mask in ((1, 0x0F), (4, 0x1F), (7, 0xFF)):
        port.write(register, 0xFF)
        assert port.read(register) == mask


def test_fifo_is_announced_as_16550a() -> None:
    port = Port()
    assert port.read(2) == 0x01
    port.write(2, 0x01)
    assert port.read(2) >> 6 == 3
    assert not port.read(2) & 0x20  # not a 16750
    port.write(2, 0x00)
    assert port.read(2) == 0x01


def test_transmitter_interrupt_comes_when_enabled_and_after_each_byte() -> None:
    port = Port()
    port.write(1, 0x02)
    assert port.level
    assert port.read(2) == 0x02
    assert not port.level  # reading it is the answer
    assert port.read(2) == 0x01
    port.write(0, 0x41)
    assert port.level
    port.write(1, 0x00)
    assert not port.level
    port.write(1, 0x02)  # enabling it anew asks anew: Linux tests for this
    assert port.level
    assert port.read(2) == 0x02


def test_linux_loopback_test_of_the_modem_lines() -> None:
    port = Port()
    port.write(4, 0x10 | 0x0A)
    assert port.read(6) & 0xF0 == 0x90
    port.write(4, 0x10 | 0x05)
    assert port.read(6) == 0x60 | 0x0B  # all lines but RI changed since
    assert port.read(6) == 0x60
    port.write(4, 0x0B)
    assert port.read(6) & 0xF0 == 0xB0


def test_loopback_of_data_with_overrun() -> None:
    port = Port()
    port.write(4, 0x10)
    port.write(1, 0x04)
    port.write(0, 0x55)
    assert port.read(5) & 0x01
    port.write(0, 0x66)
    assert port.level
    assert port.read(2) == 0x06
    assert port.read(5) & 0x03 == 0x03
    assert not port.level
    assert port.read(0) == 0x66
    assert port.sent == b""


def test_received_bytes_come_by_interrupt_in_bursts() -> None:
    port = Port()
    port.write(2, 0x81)  # FIFO with trigger level 8
    port.uart.receive(b"0123456789abcdefXY")
    assert port.uart.next_deadline(5) is None  # nobody listens
    assert not port.read(5) & 0x01
    port.write(1, 0x01, 10)
    assert port.level
    assert port.read(2) == 0xC4
    got = bytearray()
    for _ in range(16):
        assert port.read(5, 20) & 0x01
        got.append(port.read(0, 20))
    assert got == b"0123456789abcdef"
    assert not port.level
    assert port.uart.next_deadline(20) == 20 + BURST
    port.uart.advance(20 + BURST - 1)
    assert not port.level
    port.uart.advance(20 + BURST)
    assert port.level
    assert port.read(2) == 0xCC  # two bytes are below the trigger: character timeout
    assert bytes(port.read(0, BURST * 2) for _ in range(2)) == b"XY"
    assert port.uart.next_deadline(BURST * 3) is None


def test_polling_guests_receive_too() -> None:
    port = Port()
    port.uart.receive(b"ok")
    got = bytearray()
    for _ in range(10):
        if port.read(5) & 1:
            got.append(port.read(0))
    assert got == b"ok"


def test_polling_between_transmissions_receives() -> None:
    port = Port()
    port.uart.receive(b"q")
    got = bytearray()
    for _ in range(8):
        assert port.read(5) & 0x20
        port.write(0, ord("."))
        if port.read(5) & 1:
            got.append(port.read(0))
    assert got == b"q"


def test_transmitting_and_resetting_loses_no_input() -> None:
    port = Port()
    port.uart.receive(b"keep")
    for byte in b"booting":  # a driver's polled output, then its start-up sequence
        assert port.read(5) & 0x20
        port.write(0, byte)
    port.write(2, 0x07)
    for _ in range(2):  # Linux clears "for luck", and looks whether a port is there at all
        port.read(5)
        assert port.read(0) == 0
        port.read(2)
        port.read(6)
        port.read(5)
        port.read(5)
    port.write(1, 0x05)
    assert bytes(port.read(0) for _ in range(4)) == b"keep"


def test_without_fifo_one_byte_at_a_time() -> None:
    port = Port()
    port.uart.receive(b"ab")
    port.write(1, 0x01)
    assert port.read(2) == 0x04
    assert port.read(0, 5) == ord("a")
    assert not port.read(5, 6) & 1
    port.uart.advance(5 + BURST)
    assert port.read(0, 5 + BURST) == ord("b")


def test_a_reset_fifo_is_filled_again_with_what_nobody_read() -> None:
    port = Port()
    port.uart.receive(b"echo")
    port.write(1, 0x01)  # listening before the FIFO is set up, as Linux does
    assert port.level
    port.write(2, 0x01)
    port.write(2, 0x83)
    assert not port.level
    port.uart.advance(1)
    assert bytes(port.read(0) for _ in range(4)) == b"echo"


def test_looped_back_bytes_do_not_come_again() -> None:
    port = Port()
    port.write(4, 0x10)
    port.write(0, 0x55)
    port.write(2, 0x07)
    port.write(4, 0x00)
    assert not any(port.read(5) & 1 for _ in range(8))
