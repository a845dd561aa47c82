"""The machine code that stands between the engine's translated code and functions of ours.

A stub keeps what the engine's calling convention wants kept, adds an argument, or goes on at
the engine's own function. `Stubs` makes them and holds them in memory.
"""

import ctypes
import mmap

from trapgate.engine import assembly as asm
from trapgate.engine import layout as at
from trapgate.engine import machine as mc
from trapgate.sdm.state import RFLAGS_IF, RFLAGS_RF, RFLAGS_VM

_PAGES = 2
_CS = at.SEGMENTS + at.SEGMENT_SIZE


class Stubs:
    """Executable memory with stubs in it; it lives as long as the process.

    Each method returns the address of a new stub. Functions are given by their addresses.
    """

    def __init__(self, translator: int, request: int, check_exit: int) -> None:
        """`translator` is the address of the cells that hooks in the translator share.

        `check_exit` is the engine's look for a request to exit, which stands `request` bytes
        into the CPU.
        """
        size = _PAGES * mmap.PAGESIZE
        self._code = mmap.mmap(-1, size, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._free = 0
        self._translator = translator
        self._request = request
        self._check_exit = check_exit

    def _place(self, *lines: asm.Line) -> int:
        code = asm.assemble(*lines)
        start = self._free
        assert start + len(code) <= len(self._code)
        self._code[start : start + len(code)] = code
        self._free += (len(code) + 15) & ~15
        return self._start + start

    def with_cells(self, function: int, arguments: int) -> int:
        """`function` with one argument more than `arguments`: the translator's cells."""
        register = (asm.RDI, asm.RSI, asm.RDX, asm.RCX, asm.R8, asm.R9)[arguments]
        return self.with_value(function, register, self._translator)

    def block_begins(self, deadline: int) -> int:
        """Begin a block of RSI instructions on the machine RDI.

        `deadline` is asked when the deadline is near, and answers whether to stop. It also gets the
        count, and the address where the block's code goes on.
        """
        return self._place(
            asm.load(asm.RAX, asm.RDI, 8 * mc.TIME),
            asm.load(asm.RCX, asm.RDI, 8 * mc.CPU),
            asm.compare(asm.RAX, asm.RDI, 8 * mc.DEADLINE),
            (asm.JGE, "deadline"),
            "begin",
            asm.compare_32(asm.RCX, self._request, 0),
            (asm.JS, "asked to exit"),
            asm.add(asm.RAX, asm.RSI),
            asm.store(asm.RDI, 8 * mc.TIME, asm.RAX),
            asm.RET,
            "deadline",
            asm.load(asm.RDX, asm.RSP, 0),
            *asm.call_saving(deadline, asm.RDI, asm.RSI, asm.RCX),
            asm.test(asm.RAX),
            (asm.JNE, "asked to exit"),
            asm.load(asm.RAX, asm.RDI, 8 * mc.TIME),
            (asm.JMP, "begin"),
            "asked to exit",
            asm.load(asm.RAX, asm.RDI, 8 * mc.TIME),
            asm.add(asm.RAX, asm.RSI),
            asm.store(asm.RDI, 8 * mc.TIME, asm.RAX),
            *self._asked_to_exit(),
        )

    def careful_block_begins(self, decide: int) -> int:
        """Begin a block that needs care, the tagged RSI, on the machine RDI.

        `decide` also gets the address where the block's code goes on, and answers as above.
        """
        return self._place(
            asm.load(asm.RDX, asm.RSP, 0),
            *asm.call_saving(decide, asm.RDI, asm.RSI, asm.RCX),
            asm.test(asm.RAX),
            (asm.JNE, "asked to exit"),
            asm.load(asm.RCX, asm.RDI, 8 * mc.CPU),
            asm.compare_32(asm.RCX, self._request, 0),
            (asm.JS, "asked to exit"),
            asm.RET,
            "asked to exit",
            *self._asked_to_exit(),
        )

    def _asked_to_exit(self) -> list[asm.Line]:
        """Go on at the engine's own look for a request to exit; RDI is the machine.

        The block was counted. The engine will restore its first instruction's state, as if that
        one were done.
        """
        return [
            asm.load(asm.RAX, asm.RDI, 8 * mc.TIME),
            asm.add_small(asm.RAX, -1),
            asm.store(asm.RDI, 8 * mc.TIME, asm.RAX),
            asm.load(asm.RDI, asm.RDI, 8 * mc.UC),
            asm.clear(asm.RSI),
            *asm.jump_to(self._check_exit),
        ]

    def with_value(self, function: int, register: int, value: int) -> int:
        """`function` with one argument more, in the register that is its place."""
        return self._place(asm.constant(register, value), *asm.jump_to(function))

    def with_return_address(self, function: int, arguments: int) -> int:
        """`function` with one argument more than `arguments`: where the block's code goes on."""
        register = (asm.RDI, asm.RSI, asm.RDX, asm.RCX, asm.R8, asm.R9)[arguments]
        return self._place(asm.load(register, asm.RSP, 0), *asm.jump_to(function))

    def pushed_flags(self, read_flags: int) -> int:
        """The flags as PUSHF stores them: without RF and VM."""
        return self._place(
            *asm.call_saving(read_flags, asm.RDI),
            asm.and_32(asm.EAX, ~(RFLAGS_RF | RFLAGS_VM)),
            asm.RET,
        )

    def sti_begins(self) -> int:
        """STI of the CPU state RSI on the machine RDI blocks interrupts if it enables them."""
        return self._place(
            asm.clear(asm.RAX),
            asm.test_32(asm.RSI, at.EFLAGS, RFLAGS_IF),
            asm.set_if_zero(asm.AL),
            asm.store(asm.RDI, 8 * mc.SHADOW, asm.RAX),
            asm.RET,
        )

    def shadow_begins(self) -> int:
        """What RSI says is blocked behind the instruction, on the machine RDI."""
        return self._place(asm.store(asm.RDI, 8 * mc.SHADOW, asm.RSI), asm.RET)

    def if_canonical(self, helper: int, complain: int) -> int:
        """`helper` if RIP of the CPU state at RDI is canonical; else first `complain`.

        That gets the CPU state, the translator's cells, and where the block's code goes on.
        """
        return self._place(
            asm.load(asm.RAX, asm.RDI, at.EIP),
            asm.shift_right_signed(asm.RAX, 47),
            asm.add_small(asm.RAX, 1),
            asm.compare_small(asm.RAX, 1),
            (asm.JA, "complain"),
            *asm.jump_to(helper),
            "complain",
            *self._complain(complain, helper),
        )

    def if_within_limit(self, helper: int, complain: int) -> int:
        """The same if RIP is not above the limit of CS."""
        return self._place(
            asm.load_32(asm.RAX, asm.RDI, _CS + at.LIMIT),
            asm.compare(asm.RAX, asm.RDI, at.EIP),
            (asm.JB, "complain"),
            *asm.jump_to(helper),
            "complain",
            *self._complain(complain, helper),
        )

    def if_mxcsr_is_legal(self, helper: int, complain: int) -> int:
        """The same if the value in ESI has no bits that are reserved in MXCSR."""
        return self._place(
            asm.test_small_32(asm.RSI, ~0xFFFF),
            (asm.JNE, "complain"),
            *asm.jump_to(helper),
            "complain",
            *self._complain(complain, helper),
        )

    def _complain(self, complain: int, helper: int) -> list[asm.Line]:
        return [
            asm.constant(asm.RSI, self._translator),
            asm.load(asm.RDX, asm.RSP, 0),
            *asm.call_saving(complain, asm.RDI),
            *asm.jump_to(helper),
        ]
