"""What stops the guest for a debugger: breakpoints, watchpoints, single steps; how it continues.

The guest notices nothing: breakpoints are the engine's (`UnicornEngine.set_breakpoints`), single
steps the monitor trap flag, and a stop is what the VMM sees as a VM exit. Nothing is looked at
between exits, so a guest that nobody stops runs at full speed.
"""

from __future__ import annotations

from dataclasses import dataclass

from trapgate.debug.gdb.catches import Catches, Pending
from trapgate.debug.postmortem.view import view_of
from trapgate.decision.conditions import Names
from trapgate.processor.accesses import Access, accesses_of
from trapgate.processor.operand import Operand
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import ExitReason
from trapgate.vmm.actions import Action, Emulated, Resume
from trapgate.vmm.cpus.cpu import Cpu
from trapgate.vmm.machine import VirtualMachine

_MASK = (1 << 64) - 1
_VALID = 1 << 31
_MONITOR_TRAP = _VALID | InterruptionType.OTHER_EVENT << 8
_WATCH_NAMES = {2: "watch", 3: "rwatch", 4: "awatch"}
_READS, _WRITES = (3, 4), (2, 4)
_BREAK = "swbreak:;"
_NOWHERE = _MASK
"""The address of no instruction."""

TRAP, SEGV, INTERRUPT = "05", "0b", "02"
"""gdb's numbers of SIGTRAP, SIGSEGV and SIGINT."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why the guest stops: gdb's signal, its further word about it, and words for people."""

    signal: str = TRAP
    detail: str = ""
    words: str = ""

    @property
    def is_access(self) -> bool:
        """Whether it is the access that a watchpoint waits for; the guest is after it."""
        return "watch:" in self.detail

    @property
    def reply(self) -> str:
        """The stop reply, but for the thread."""
        return f"T{self.signal}{self.detail}"


STEPPED = Stopped()
"""A single step has been made."""


class Stops:
    """Everything that is to stop one machine.

    `code` are breakpoints by linear address, counted; `data` watchpoints: gdb's kind, linear
    address and length. `names` are for conditions.
    """

    def __init__(self, vm: VirtualMachine, names: Names | None = None) -> None:
        self._vm = vm
        self._engine = vm.processor.engine
        self.catches = Catches(vm, names)
        self.code: dict[int, int] = {}
        self.data: set[tuple[int, int, int]] = set()
        self.stepping = False
        self._stepper = vm.cpu
        self._watching = False
        self._met = False
        """The last exit was a breakpoint."""
        self._accesses: list[Access] = []

    @property
    def any(self) -> bool:
        """Whether exits have to be looked at while the guest runs."""
        return bool(self.code or self.data or self.stepping or self.catches.any)

    @property
    def looks_at_exits(self) -> bool:
        """Whether exits that the guest makes itself may stop it, or count as steps."""
        return bool(self.data or self.stepping or self.catches.any)

    @property
    def only_writes(self) -> bool:
        """Whether there are watchpoints, and all of them are for writes."""
        return bool(self.data) and all(kind == _WRITES[0] for kind, _, _ in self.data)

    def point(self, kind: int, address: int, length: int, *, insert: bool) -> bool:
        """Insert or remove gdb's point of that kind; False if there are none such."""
        if kind in (0, 1):
            count = self.code.get(address, 0) + (1 if insert else -1)
            if count > 0:
                self.code[address] = count
            else:
                self.code.pop(address, None)
        elif kind in _WATCH_NAMES:
            (self.data.add if insert else self.data.discard)((kind, address, max(length, 1)))
        else:
            return False
        return True

    def clear(self) -> None:
        """Nothing stops the guest any more."""
        self.code.clear()
        self.data.clear()
        self.catches.clear()
        self._engine.set_breakpoints(())
        self.rest()

    def arm(
        self,
        *,
        step: bool,
        cpu: Cpu | None = None,
        watch: bool = True,
        passing: bool = True,
    ) -> None:
        """Let the guest continue from where it is, for a step or until something stops it.

        The step is that of processor `cpu`, the current one unless given. Without `watch` nobody
        looks at what instructions access. A breakpoint where the guest stands stops it only
        without `passing`.
        """
        self.stepping = step
        self._stepper = cpu or self._vm.cpu
        self._watching = not step and watch and bool(self.data)
        self._set_trap(on=step or self._watching or self.catches.stepping)
        if self._watching:
            self._note_accesses()
        self._engine.set_breakpoints(self.code)
        self._engine.pass_breakpoint(view_of(self._vm).code_address if passing else _NOWHERE)

    def rest(self) -> None:
        """The guest stands."""
        self._set_trap(on=False)
        self.stepping = self._watching = False

    def why(self, vmexit: VmExit, pending: Pending | None) -> Stopped | None:
        """Whether this exit stops the guest; `pending` is it, if it was caught."""
        hit = self._engine.breakpoint_hit()
        trapped = vmexit.reason is ExitReason.MONITOR_TRAP_FLAG
        stopped = None
        if hit is not None and hit in self.code:
            stopped = Stopped(detail=_BREAK)
        elif trapped and self.stepping:
            stopped = STEPPED
        elif trapped and self._watching:
            stopped = self._watched()
        elif pending is not None:
            stopped = Stopped(words=pending.words)
        elif vmexit.reason is ExitReason.TRIPLE_FAULT:
            stopped = Stopped(SEGV, words="triple fault: the guest is stopped before it shuts down")
        self._met = stopped is not None and stopped.detail == _BREAK
        return stopped

    def go_past(self, vmexit: VmExit) -> None:
        """Be ready for the next instruction: the exit does not stop the guest, or does no more."""
        if self._met:
            self._engine.pass_breakpoint(view_of(self._vm).code_address)
        if self._watching and vmexit.reason is ExitReason.MONITOR_TRAP_FLAG:
            self._note_accesses()

    def carried_out(self, vmexit: VmExit, action: Action) -> None:
        """`action` is what becomes of the exit, while instructions are counted one by one.

        An instruction that the VMM did itself is a step too: the trap comes before the next.
        """
        if not (self.stepping or self._watching or self.catches.stepping):
            return
        v = self._vm.vmcs.words
        self._set_trap(on=True)
        if self.stepping and self._stepper is not self._vm.cpu:
            return
        halted = isinstance(action, Resume) and vmexit.reason is ExitReason.HLT
        done = halted or isinstance(action, Emulated)
        if done and not v[f.VM_ENTRY_INTERRUPTION_INFORMATION] & _VALID:
            v[f.VM_ENTRY_INTERRUPTION_INFORMATION] = _MONITOR_TRAP

    def _set_trap(self, *, on: bool) -> None:
        for cpu in self._vm.cpus:
            v = cpu.vmcs.words
            trap = on and (cpu is self._stepper or not self.stepping)
            primary = v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & ~ct.PRIMARY_MONITOR_TRAP_FLAG
            v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] = primary | ct.PRIMARY_MONITOR_TRAP_FLAG * trap

    # Watchpoints: one instruction at a time, with a look at what it is about to access.

    def _note_accesses(self) -> None:
        guest = Operand(self._vm.processor, self._vm.vmcs.cells)
        self._accesses = list(accesses_of(guest, guest.decode()))

    def _watched(self) -> Stopped | None:
        for access in self._accesses:
            for kind, address, length in self.data:
                wanted = (kind in _WRITES and access.write) or (kind in _READS and access.read)
                start = access.linear & _MASK
                if wanted and start < address + length and address < start + access.size:
                    return Stopped(detail=f"{_WATCH_NAMES[kind]}:{address:x};")
        if view_of(self._vm).code_address in self.code:
            return Stopped(detail=_BREAK)
        return None
