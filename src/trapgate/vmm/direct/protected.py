"""Machines under direct paging by a frame map: any guest, its tables as it wrote them (¶70, ¶72).

The processor stops each write to a frame that is a table, whatever entry leads there, with an
error-code bit of its own; so the guest's rights, its large pages and its faults stay its own, and
it cannot notice.
The VMM takes part when paging or CR3 changes to what it has not validated, and in the writes to
tables that no filter completes. `links` holds what it knows; guests start in any mode that the
PC has.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from struct import Struct
from typing import TYPE_CHECKING

from trapgate.decision.decide import Reason
from trapgate.decision.fault_filters import (
    EMPTY_TABLE,
    FILTER_PARAGRAPH_80,
    KNOWN_TABLE,
    NO_LINK,
    OWN_FRAME,
    OWN_TABLE,
)
from trapgate.decision.faults import Interruption
from trapgate.events.journal import COMPLETED
from trapgate.instructions import effects
from trapgate.instructions.intercepts import GO_ON
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.paging.walk import READ, WRITE, pointer_is_legal
from trapgate.processor.logical import signed
from trapgate.processor.operand import Operand, PageFaultError
from trapgate.processor.table_writes import walk_without_map
from trapgate.processor.task_switch import TaskFaultError
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.pagefault import PFEC_MAP, PFEC_U
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.state import (
    CR0_CD,
    CR0_NW,
    CR0_PG,
    CR4_PAE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMEP,
    EFER_LMA,
)
from trapgate.sdm.vectors import GP
from trapgate.vmm.actions import EMULATED, RESUME, Action, End, Inject, Stop
from trapgate.vmm.direct.edits import Edits
from trapgate.vmm.direct.guarded_ram import GuardedRam
from trapgate.vmm.direct.host import SharingMachine
from trapgate.vmm.direct.linking import ADDRESS, P
from trapgate.vmm.direct.links import (
    FOUR_LEVELS,
    PAE,
    TWO_LEVELS,
    UNPAGED,
    Mode,
    Refusal,
    Root,
)
from trapgate.vmm.direct.mapped_memory import FRAMES, GuestRange, ProtectedHost
from trapgate.vmm.direct.refusals import DirectCounts, DirectPagingError, demand_one_processor
from trapgate.vmm.direct.root_prediction import RootPredictor
from trapgate.vmm.direct.snapshot import DirectSnapshot
from trapgate.vmm.direct.writes import instruction_at_rip
from trapgate.vmm.exits import handlers
from trapgate.vmm.exits.vmm import Vmm
from trapgate.vmm.snapshots.snapshot import Snapshot
from trapgate.vmm.summary import Summary, TableWrites

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trapgate.trace import TraceWriter
    from trapgate.vmcs.file import Profile, Settings
    from trapgate.vmm.devices.board import Board
    from trapgate.vmm.exits.handlers import Handler
    from trapgate.vmm.exits.platform import Platform
    from trapgate.vmm.loaders import GuestImage
    from trapgate.vmm.ui.console import Console

_FILTER_REASONS = (
    Reason.FAULT_FILTER_FIGURE_7,
    Reason.FAULT_FILTER_FIGURE_8,
    Reason.FAULT_FILTER_PARAGRAPH_80,
    Reason.CRITERIA_TABLE,
    Reason.OWN_FRAME,
    Reason.NO_LINK,
    Reason.KNOWN_TABLE,
    Reason.OWN_TABLE,
    Reason.EMPTY_TABLE,
)
_LOW = 0xFFFF_FFFF
_PF = 14
_GENERAL_PROTECTION = Inject(Interruption(GP, InterruptionType.HARDWARE_EXCEPTION, 0))
_CR0_OWNED, _CR4_OWNED = CR0_PG, CR4_PAE | CR4_PSE
_CR0_RELOADS, _CR4_RELOADS = CR0_CD | CR0_NW, CR4_PGE | CR4_SMEP
"""Further bits whose change loads the pointers of PAE paging (SDM, "Loading PDPTEs")."""
_OWNED = _CR0_OWNED | _CR0_RELOADS, _CR4_OWNED | _CR4_RELOADS
_MODES = {0: (f.GUEST_CR0, f.CR0_GUEST_HOST_MASK, f.CR0_READ_SHADOW, _OWNED[0]),
          4: (f.GUEST_CR4, f.CR4_GUEST_HOST_MASK, f.CR4_READ_SHADOW, _OWNED[1])}  # fmt: skip
_WITH_MODE = f.GUEST_IA32_EFER, f.VM_ENTRY_CONTROLS
"""What goes with a change of the mode."""
_POINTERS = Struct("<4q")


class ProtectedMachine(SharingMachine):
    """A PC whose guest has `memory` bytes of `host`'s, or a host of its own, and a frame map.

    Fault filter and order are the VMCS's; unless a settings file says otherwise ¶80 and all
    filters by the frame map but known-table are on. The rest is as for `VirtualMachine`. Raises
    DirectPagingError on the portable engine, whose page walk knows no frame map, and for more
    memory than the map describes.
    """

    host: ProtectedHost
    can_be_restored = False

    def __init__(
        self,
        memory: int = 128 << 20,
        *,
        host: ProtectedHost | None = None,
        engine: str = "auto",
        handlers: Mapping[ExitReason, Handler] | None = None,
        console: Console | None = None,
        trace: TraceWriter | None = None,
        seed: int = 0,
        profile: Profile = "extended",
        explain: Callable[[str], None] | None = None,
        board: Board | None = None,
    ) -> None:
        demand_one_processor(board)
        host = host or ProtectedHost([memory], engine=engine, trace=trace)
        base = host.place(memory)
        self.links = host.links_at(base, memory)
        self._prediction = RootPredictor(self.links)
        self._range = GuestRange(host.processor.memory, base, memory)
        self._edits = Edits(host.processor, self.links, self._range)
        self._masters = GuardedRam(self._range, self.links, self.drop_roots_to)
        super().__init__(
            memory,
            host,
            number=len(host.machines) + 1 if base else 0,
            vmm=Vmm({**HANDLERS, **(handlers or {})}),
            console=console,
            seed=seed,
            profile=profile,
            explain=explain,
            board=board,
            ram=self._masters,
        )
        self.base, self.memory = base, memory
        self.cpu.has_windows = False
        self.counts = DirectCounts()
        self.has_paged = False
        self.exits_by_level: Counter[str] = Counter()
        """How many writes to tables exited, by the level of the table or what became of it."""
        vmcs = self.vmcs
        self._own_map()
        vmcs["FAULT_FILTER"] = FILTER_PARAGRAPH_80
        vmcs["FRAME_FILTERS"] = OWN_FRAME | NO_LINK | OWN_TABLE | EMPTY_TABLE
        vmcs["EXCEPTION_BITMAP"] = 1 << _PF
        vmcs["PAGE_FAULT_ERROR_CODE_MASK"] = vmcs["PAGE_FAULT_ERROR_CODE_MATCH"] = PFEC_MAP

    def snapshot(self) -> Snapshot:
        """Everything of the machine at this moment, for `restore`."""
        self.demand_host_for_itself()
        tables, exits = self.links.keep(), self.exits_by_level.copy()
        prediction = self._prediction.keep()

        def back() -> None:
            tables()
            prediction()
            self.exits_by_level = exits.copy()

        return DirectSnapshot(self, self.watch, self._tally, self._planned, self.counts, back)

    def load(self, image: GuestImage) -> None:
        """Put a guest into memory. Raises DirectPagingError if its first tables cannot be used."""
        self.host.enter(self)
        super().load(image)
        self._own()
        refusal = self.follow_mode()
        if refusal is not None:
            raise DirectPagingError(f"{image.description}: {refusal.reason}")

    def apply(self, settings: Settings) -> None:
        """Change the VMCS as a settings file says; what keeps the guest in stays."""
        super().apply(settings)
        self._own()

    def _own(self) -> None:
        """What the VMM must hold on to."""
        vmcs = self.vmcs
        self._own_map()
        vmcs["CR0_GUEST_HOST_MASK"] |= _CR0_OWNED
        vmcs["CR4_GUEST_HOST_MASK"] |= _CR4_OWNED
        vmcs["CR3_TARGET_COUNT"] = 0
        vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= ct.PRIMARY_CR3_LOAD_EXITING

    def _own_map(self) -> None:
        """Say which map is in force, and where the guest's frames lie if not from 0 on."""
        vmcs, base, size = self.vmcs, self.base, self.memory
        vmcs["FRAME_MAP_ADDRESS"], vmcs["FRAME_MAP_LENGTH"] = base + size, FRAMES
        vmcs["ALIAS_BASE"], vmcs["ALIAS_LENGTH"] = base, size if base else 0

    def summary(self) -> Summary:
        """As for `VirtualMachine`, with what each filter saved."""
        completed = {
            Reason(reason).name.lower(): self.completed[reason & COMPLETED - 1]
            for reason in _FILTER_REASONS
        }
        writes = TableWrites(
            {name: count for name, count in completed.items() if count},
            dict(sorted(self.exits_by_level.items())),
        )
        return replace(super().summary(), table_writes=writes)

    @property
    def counts_too_high(self) -> bool:
        """Whether the fault filter lets links go that the VMM does not see (¶80)."""
        v = self.vmcs.words
        if v[f.FRAME_FILTERS] & EMPTY_TABLE:
            return False
        unseen = v[f.FRAME_FILTERS] & KNOWN_TABLE
        return bool(v[f.FAULT_FILTER] == FILTER_PARAGRAPH_80 or unseen)

    def _turn(self, end: int | None, expires: float | None, until: int | None = None) -> None:
        engine = self.processor.engine
        filters = self.vmcs.words[f.FRAME_FILTERS]
        self.links.let_processor_count(bool(filters & EMPTY_TABLE))
        self.links.allow_unseen_links(filters & (KNOWN_TABLE | EMPTY_TABLE) == KNOWN_TABLE)
        refusal = self._masters.refusal
        if self.links.unprotect_last_level(bool(filters & OWN_TABLE)):
            refusal = refusal or self.follow_mode()
        self.links.settle(engine.flush_translations, self._forget_code, _forget_tables)
        if self.links.mode is not UNPAGED and not self.devices.keyboard.a20:
            refusal = Refusal("address line 20 is held low while the guest pages; open the gate")
        if refusal is not None:
            self.stopped = self.refuse(refusal)
            return
        super()._turn(end, expires, until)

    def _forget_code(self, address: int, size: int) -> None:
        self.processor.engine.forget_code(self.base + address, size)

    # What the guest does.

    def refuse(self, refusal: Refusal) -> Stop:
        """Stop a guest that wants of its tables what it may not have."""
        self.counts.refused += 1
        self.counts.last_refusal = refusal.reason
        rip = self.vmcs["GUEST_RIP"]
        return Stop(End.REFUSED, f"at RIP {rip:#x} the VMM refused: {refusal.reason}", 1)

    def follow_mode(self) -> Refusal | None:
        """Learn of the paging mode and of CR3, after they may have changed."""
        v = self.vmcs.cells
        mode = self._mode()
        self.links.set_mode(mode)
        if mode is UNPAGED:
            return None
        if mode.pointers:
            v[f.CR0_GUEST_HOST_MASK] |= _CR0_RELOADS
            v[f.CR4_GUEST_HOST_MASK] |= _CR4_RELOADS
        self.has_paged = True
        return self.follow_cr3(int(v[f.GUEST_CR3]))

    def _mode(self) -> Mode:
        v = self.vmcs.cells
        if not v[f.GUEST_CR0] & CR0_PG:
            return UNPAGED
        if v[f.GUEST_CR4] & CR4_PAE:
            return FOUR_LEVELS if v[f.GUEST_IA32_EFER] & EFER_LMA else PAE
        return TWO_LEVELS._replace(large_pages=bool(v[f.GUEST_CR4] & CR4_PSE))

    def follow_cr3(self, cr3: int) -> Refusal | None:
        """Validate what CR3 is about to lead to; with PAE paging, load the pointers."""
        if not self.links.mode.pointers:
            return self.links.load_root(((cr3 & ADDRESS) >> 12,))
        pointers = self._pointers_at(cr3)
        if pointers is None:
            return Refusal(f"a pointer at {cr3:#x} is not legal, or leads to a foreign frame")
        refusal = self.links.load_root(_root_of(pointers))
        if refusal is None:
            self.vmcs.cells[f.GUEST_PDPTE0 : f.GUEST_PDPTE0 + 4] = pointers
        return refusal

    def _pointers_at(self, cr3: int) -> tuple[int, ...] | None:
        """The four pointers of PAE paging; None if they are not there or one is not legal."""
        address = cr3 & _LOW & ~0x1F
        if address >= self.memory:
            return None
        pointers = _POINTERS.unpack(self._range.read(address, _POINTERS.size))
        return pointers if all(map(pointer_is_legal, pointers)) else None

    def _root(self) -> Root:
        """What CR3 leads to."""
        v = self.vmcs.cells
        if self.links.mode.pointers:
            return _root_of(v[f.GUEST_PDPTE0 : f.GUEST_PDPTE0 + 4].tolist())
        return ((int(v[f.GUEST_CR3]) & ADDRESS) >> 12,)

    def load_cr3(self, value: int) -> Action:
        """MOV to CR3 of what the map does not allow."""
        v = self.vmcs.cells
        value &= ~(1 << 63)
        if not in_64_bit_mode(v):
            value &= _LOW
        if v[f.GUEST_CR0] & CR0_PG:
            if self.links.mode.pointers and self._pointers_at(value) is None:
                return _GENERAL_PROTECTION
            refusal = self.follow_cr3(value)
            if refusal is not None:
                return self.refuse(refusal)
        if effects.write_cr(v, self.processor.registers.cells, 3, signed(value)) != GO_ON:
            return _GENERAL_PROTECTION
        self._prediction.loaded(self._root())
        self.processor.engine.flush_translations()
        return EMULATED

    def take_cr3(self, value: int) -> Stop | None:
        """A task switch loads CR3. Raises TaskFaultError."""
        if self.links.mode.pointers and self._pointers_at(value) is None:
            raise TaskFaultError(GP, 0)
        refusal = self.follow_cr3(value)
        return self.refuse(refusal) if refusal is not None else super().take_cr3(value)

    def string_io(self, port: int, size: int, *, is_in: bool) -> Action:
        """INS may not go to a table, either, nor INS or OUTS to a foreign frame."""
        v = self.vmcs.cells
        user = 1 if privilege_level(v) == 3 else 0
        guest = Operand(self.processor, v)
        name, access = ("INS", WRITE) if is_in else ("OUTS", READ)
        first = int(self.vmcs["GUEST_LINEAR_ADDRESS"])
        for linear in (signed(first), signed(guest.wrap(first + size - 1))):
            _, code = guest.walk(linear, access, user)
            if code < 0 or not code & PFEC_MAP:
                continue
            frame = self._dropped_table(guest, linear, user)
            if frame >= 0:
                reason = f"{name} goes to frame {frame:#x}, a table or foreign"
                return self.refuse(Refusal(reason))
            return RESUME
        return super().string_io(port, size, is_in=is_in)

    def _dropped_table(self, guest: Operand, linear: int, user: int) -> int:
        """Make the table that `linear` leads to data: -1, or the frame that has to stay one."""
        physical, _ = walk_without_map(guest, signed(linear), user)
        frame = physical >> 12
        return -1 if self.links.is_table(frame) and self.drop_roots_to(frame) else frame

    def make_way_for_event(self, vmexit: VmExit) -> Action:
        """The delivery of an event, which goes to a table or needs it changed."""
        guest = Operand(self.processor, vmexit.vmcs.cells)
        address = vmexit.qualification
        if self._dropped_table(guest, address, 0) < 0:
            return RESUME
        reason = f"an event's frame, or its way there, is in a table, at {address:#x}"
        return self.refuse(Refusal(reason))

    def change_mode(self, vmexit: VmExit, number: int) -> Action:
        """MOV to CR0 or CR4: the VMM's bits take effect as the guest wrote them."""
        register, mask, shadow, owned = _MODES[number]
        v = vmexit.vmcs.cells
        before = {cell: int(v[cell]) for cell in (register, shadow, *_WITH_MODE)}
        kept = v[mask]
        v[mask] &= ~owned
        action = handlers.control_register(vmexit, self)
        v[mask] = kept
        v[shadow] = v[shadow] & ~owned | v[register] & owned
        refusal = self.follow_mode()
        if refusal is not None:
            # The guest is before the instruction, on the tables that it had.
            for cell, value in before.items():
                v[cell] = value
            self.follow_mode()
            return self.refuse(refusal)
        self.processor.engine.flush_translations()
        return action

    def carry_out(self, vmexit: VmExit, user: int) -> Action:
        """A write to a table that no filter has completed; `user` is 1 for one of user mode."""
        guest = Operand(self.processor, vmexit.vmcs.cells)
        linear = vmexit.qualification
        physical, fault = walk_without_map(guest, signed(linear), user)
        frame = physical >> 12
        levels = self.links.levels_of(frame) if fault < 0 else frozenset()
        if not levels:
            if fault >= 0 or self.links.is_foreign(frame):
                return self.refuse(Refusal(f"frame {frame:#x} is not the guest's"))
            # The processor has seen its last link go, or another of the guest's accesses did.
            self.exits_by_level["reused"] += 1
            self.processor.engine.flush_translations()
            return RESUME
        self.exits_by_level[f"level {max(levels)}"] += 1
        instruction = instruction_at_rip(guest)
        repeats = instruction.has_rep_prefix or instruction.has_repne_prefix
        # Where filters know frames, an edit of a last level's that none has completed is rare, and
        # perhaps none; where they do not, it is what exits all the time.
        knows_frames = vmexit.vmcs.words[f.FRAME_FILTERS] & OWN_FRAME
        stale = self.counts_too_high and knows_frames and levels == {1}
        if (user or repeats or stale) and self.drop_roots_to(frame):
            self.exits_by_level["reused"] += 1
            return RESUME
        try:
            refusal = self._edits.carry_out(guest, instruction, user, linear, physical)
        except PageFaultError as found:
            if found.error_code & PFEC_MAP:
                return self.refuse(Refusal(f"an operand at {found.address:#x} is not the guest's"))
            self.processor.registers.cr2 = found.address
            return Inject(Interruption(_PF, InterruptionType.HARDWARE_EXCEPTION, found.error_code))
        if refusal is not None:
            # What comes is not an entry: perhaps the guest uses the frame for something else.
            if self.drop_roots_to(frame) or self.links.levels_of(frame) != levels:
                return RESUME
            return self.refuse(refusal)
        self.counts.edits += 1
        return RESUME

    def drop_roots_to(self, frame: int) -> bool:
        """Drop roots that are not loaded and lead to `frame`; is it data now?

        That is always safe, for a root is validated when it is loaded again.
        """
        loaded = self._root()
        self._prediction.reused(frame, loaded)
        return self.links.drop_roots_to(frame, loaded, recount=self.counts_too_high)


def _forget_tables() -> None:
    """The native engine caches translations, and nothing of the paging structures above."""


def _root_of(pointers: Sequence[int]) -> Root:
    """The page directories that the four pointers of PAE paging lead to."""
    return tuple((pointer & ADDRESS) >> 12 for pointer in pointers if pointer & P)


# Handlers.


def exception(vmexit: VmExit, vm: Platform) -> Action:
    """A page fault of the map's is the VMM's; all else is the guest's."""
    assert isinstance(vm, ProtectedMachine)
    event = vmexit.interruption
    code = 0 if event is None or event.vector != _PF else event.error_code or 0
    if not code & PFEC_MAP:
        return handlers.reflect(vmexit, vm)
    if vmexit.idt_vectoring is not None:
        return vm.make_way_for_event(vmexit)
    return vm.carry_out(vmexit, 1 if code & PFEC_U else 0)


def control_register(vmexit: VmExit, vm: Platform) -> Action:
    """MOV to CR3 of a root that is not validated; MOV to CR0 or CR4 that changes the mode."""
    assert isinstance(vm, ProtectedMachine)
    qualification = vmexit.qualification
    number, access = qualification & 0xF, qualification >> 4 & 3
    if number == 3 and access == 0:
        return vm.load_cr3(vm.general(qualification >> 8 & 0xF))
    if number in _MODES and access in (0, 3):
        return vm.change_mode(vmexit, number)
    return handlers.control_register(vmexit, vm)


HANDLERS: Mapping[ExitReason, Handler] = {
    ExitReason.EXCEPTION_OR_NMI: exception,
    ExitReason.CONTROL_REGISTER_ACCESS: control_register,
}
"""What a VMM does otherwise under a frame map."""
