"""The two 8259A interrupt controllers of a PC, cascaded.

Interrupt lines come in, one "interrupt pending" signal goes out; the VMM acknowledges
it when the guest can take an interrupt and injects the vector at VM entry. A request
whose line falls before the acknowledge is withdrawn, and an acknowledge that finds no
request answers the spurious vector (line 7), as the chip does.
"""

from collections.abc import Callable

from trapgate.vmm.devices.bus import UntimedDevice
from trapgate.vmm.devices.polled import Wired

_CASCADE = 2
_COMMANDS = (0x20, 0xA0)
_DATA = (0x21, 0xA1)
_EDGE_LEVEL = (0x4D0, 0x4D1)
_EDGE_LEVEL_WRITABLE = (0xF8, 0xDE)  # the timer, keyboard, cascade, RTC and FPU stay edges


class Pic8259:
    """One 8259A: eight lines, their mask, requests and services.

    Comes up as a PC's firmware leaves it: initialised at `vector_base`, all lines masked.
    """

    def __init__(self, vector_base: int, *, master: bool) -> None:
        self.vector_base = vector_base
        self.master = master
        self.requests = 0
        self.in_service = 0
        self.mask = 0xFF
        self.lines = 0
        self.edge_level = 0
        self.output = False
        self._level_triggered = False
        self._lowest_priority = 7
        self._auto_eoi = False
        self._rotate_on_auto_eoi = False
        self._special_mask = False
        self._fully_nested = False
        self._read_in_service = False
        self._poll = False
        self._init_step = 0
        self._expect_icw4 = False
        self._single = False

    def set_line(self, line: int, level: bool) -> None:
        """Drive input `line` (0..7); a rising edge, or a high level, is a request."""
        bit = 1 << line
        if level:
            if not self.lines & bit or self._is_level(bit):
                self.requests |= bit
            self.lines |= bit
        else:
            self.lines &= ~bit
            self.requests &= ~bit
        self._update()

    def acknowledge(self) -> int | None:
        """INTA: the line (0..7) that goes into service, or None if there is no request."""
        line = self._winner()
        if line is None:
            return None
        bit = 1 << line
        if not (self._is_level(bit) and self.lines & bit):
            self.requests &= ~bit
        if self._auto_eoi:
            if self._rotate_on_auto_eoi:
                self._lowest_priority = line
        else:
            self.in_service |= bit
        self._update()
        return line

    def read_command(self) -> int:
        """Read the command port: requests, services or the answer to a poll."""
        if self._poll:
            return self._answer_poll()
        return self.in_service if self._read_in_service else self.requests

    def read_data(self) -> int:
        """Read the data port: the mask, or the answer to a poll."""
        return self._answer_poll() if self._poll else self.mask

    def write_command(self, value: int) -> None:
        """Write ICW1, OCW2 or OCW3; which one, bits 4:3 say."""
        if value & 0x10:
            self._initialise(value)
        elif value & 0x08:
            self._poll = bool(value & 0x04)
            if value & 0x02:
                self._read_in_service = bool(value & 0x01)
            if value & 0x40:
                self._special_mask = bool(value & 0x20)
        else:
            self._end_of_interrupt(value >> 5, value & 7)
        self._update()

    def write_data(self, value: int) -> None:
        """Write ICW2, ICW3 or ICW4 during initialisation, the mask (OCW1) otherwise."""
        step = self._init_step
        if step == 0:
            self.mask = value
        elif step == 2:
            self.vector_base = value & 0xF8
            self._init_step = 4 if self._single else 3
            if self._single and not self._expect_icw4:
                self._init_step = 0
        elif step == 3:
            # ICW3 describes the cascade, which on a PC is soldered.
            self._init_step = 4 if self._expect_icw4 else 0
        else:
            self._auto_eoi = bool(value & 0x02)
            self._fully_nested = bool(value & 0x10)
            self._init_step = 0
        self._update()

    def set_edge_level(self, value: int) -> None:
        """Set which lines are level triggered, a bit a line (the chipset's ELCR)."""
        self.edge_level = value
        self._update()

    def _is_level(self, bit: int) -> bool:
        return self._level_triggered or bool(self.edge_level & bit)

    def _initialise(self, icw1: int) -> None:
        self.requests = 0
        self.in_service = 0
        self.mask = 0
        self._lowest_priority = 7
        self._special_mask = False
        self._read_in_service = False
        self._poll = False
        self._auto_eoi = False
        self._rotate_on_auto_eoi = False
        self._fully_nested = False
        self._level_triggered = bool(icw1 & 0x08)
        self._single = bool(icw1 & 0x02)
        self._expect_icw4 = bool(icw1 & 0x01)
        self._init_step = 2

    def _end_of_interrupt(self, operation: int, line: int) -> None:
        if operation in (1, 5):  # non-specific, with or without rotation
            served = self._first(self.in_service)
            if served is not None:
                self.in_service &= ~(1 << served)
                if operation == 5:
                    self._lowest_priority = served
        elif operation in (3, 7):  # specific, with or without rotation
            self.in_service &= ~(1 << line)
            if operation == 7:
                self._lowest_priority = line
        elif operation == 6:
            self._lowest_priority = line
        elif operation in (0, 4):
            self._rotate_on_auto_eoi = operation == 4

    def _answer_poll(self) -> int:
        # A poll is an acknowledge whose answer is read instead of sent on the bus.
        self._poll = False
        line = self.acknowledge()
        return 0 if line is None else 0x80 | line

    def _first(self, bits: int) -> int | None:
        """The line of highest priority in `bits`."""
        if not bits:
            return None
        start = self._lowest_priority + 1
        for i in range(8):
            line = (start + i) & 7
            if bits >> line & 1:
                return line
        return None

    def _winner(self) -> int | None:
        candidates = self.requests & ~self.mask
        if not candidates:
            return None
        blocking = self.in_service
        if self._special_mask:
            # Special mask mode: a masked line in service blocks nothing but itself.
            candidates &= ~self.in_service
            blocking &= ~self.mask
        if self._fully_nested and self.master:
            # The slave judges its own priorities, so its line may interrupt itself.
            blocking &= ~(1 << _CASCADE)
        line = self._first(candidates)
        served = self._first(blocking)
        if line is None:
            return None
        if served is not None:
            base = self._lowest_priority + 1
            if (line - base) & 7 >= (served - base) & 7:
                return None
        return line

    def _update(self) -> None:
        # A level-triggered line that is still high asks again.
        if self.edge_level or self._level_triggered:
            levels = 0xFF if self._level_triggered else self.edge_level
            self.requests |= self.lines & levels
        self.output = self._init_step == 0 and self._winner() is not None


class PicPair(Wired, UntimedDevice):
    """Master (lines 0..7) and slave (lines 8..15, on the master's line 2)."""

    ports = (*_COMMANDS, *_DATA, *_EDGE_LEVEL)

    def __init__(self) -> None:
        self.master = Pic8259(0x08, master=True)
        self.slave = Pic8259(0x70, master=False)
        self.levels: list[bool] = []
        """What each `IrqLine` is driven to; together, for snapshots have to look at each part."""
        self.wire: Callable[[bool], None] = _nowhere
        """Is told every level of the output pin, where somebody looks for edges."""

    def set_line(self, line: int, level: bool) -> None:
        """Drive interrupt line 0..15; line 2 is the cascade and can't be driven."""
        if line >= 8:
            self.slave.set_line(line - 8, level)
            self._cascade()
        elif line != _CASCADE:
            self.master.set_line(line, level)
            self.wire(self.master.output)

    def pending(self) -> bool:
        """Is the processor's INTR pin asserted?"""
        return self.master.output

    def acknowledge(self) -> int:
        """INTA: the vector (0..255) to deliver; line 7's where the request has gone."""
        line = self.master.acknowledge()
        if line is None:
            return self.master.vector_base | 7
        if line != _CASCADE:
            self.wire(self.master.output)
            return self.master.vector_base | line
        slave_line = self.slave.acknowledge()
        self._cascade()
        return self.slave.vector_base | (7 if slave_line is None else slave_line)

    def read(self, port: int, size: int, now: int) -> int:
        """Read a command, data or edge/level port."""
        if port == 0x21:
            value = self.master.read_data()
        elif port == 0xA1:
            value = self.slave.read_data()
        elif port == 0x20:
            value = self.master.read_command()
        elif port == 0xA0:
            value = self.slave.read_command()
        elif port == 0x4D0:
            return self.master.edge_level
        else:
            return self.slave.edge_level
        self._cascade()
        return value

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Write a command, data or edge/level port."""
        if port == 0x20:
            self.master.write_command(value)
        elif port == 0x21:
            self.master.write_data(value)
        elif port == 0xA0:
            self.slave.write_command(value)
        elif port == 0xA1:
            self.slave.write_data(value)
        elif port == 0x4D0:
            self.master.set_edge_level(value & _EDGE_LEVEL_WRITABLE[0])
        else:
            self.slave.set_edge_level(value & _EDGE_LEVEL_WRITABLE[1])
        self._cascade()

    def _cascade(self) -> None:
        master = self.master
        level = self.slave.output
        if level != bool(master.lines & (1 << _CASCADE)):
            master.set_line(_CASCADE, level)
        elif level and not master.requests & (1 << _CASCADE):
            # The slave asks again for another line: a new edge on the wire between them.
            master.set_line(_CASCADE, False)
            master.set_line(_CASCADE, True)
        self.wire(master.output)


def _nowhere(level: bool) -> None:
    pass


class IrqLine(Wired):
    """One numbered interrupt line into a `PicPair`, and into what else is wired to it."""

    def __init__(self, pic: PicPair, number: int, *others: Callable[[bool], None]) -> None:
        self._pic = pic
        self._number = number
        self._others = others
        self._levels = pic.levels
        self._at = len(pic.levels)
        pic.levels.append(False)

    def set(self, level: bool) -> None:
        """Drive the line; setting it to the level it has costs and does nothing."""
        if level != self._levels[self._at]:
            self._levels[self._at] = level
            self._pic.set_line(self._number, level)
            for other in self._others:
                other(level)
