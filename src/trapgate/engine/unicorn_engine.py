"""One Unicorn instance as an engine: memory, state, running until something needs Python."""

import ctypes
import os
import weakref
from collections.abc import Collection
from typing import Any

import numpy as np
import unicorn
from unicorn import unicorn_const as uc_const
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import uclib

from trapgate.compiler.dialect import Cells, Rows
from trapgate.compiler.program import bound
from trapgate.compiler.raw import watch
from trapgate.engine import core_calls, hooks, loop, memory_hooks
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.guest import address_spaces
from trapgate.engine.library import layout as at
from trapgate.engine.library import native
from trapgate.engine.memory import audit
from trapgate.engine.memory.device_pages import DevicePages
from trapgate.engine.memory.host_memory import zeros
from trapgate.engine.translator import calibration, memory_regions
from trapgate.engine.translator.translation import translator
from trapgate.engine.vector_registers import VectorRegisters
from trapgate.errors import EngineError
from trapgate.paging.memory import WATCH_PAGES, watch_length
from trapgate.sdm import cells as f
from trapgate.sdm import registers

_FOREVER = 1 << 62
_CODE_BUFFER = 64 << 20
"""The translation buffer, in bytes: the default lets memory grow past a gigabyte."""
_PAGE = 4096
_MASK = (1 << 64) - 1
_SSE_4_2, _XSAVE = 1 << 20, 1 << 26


def _address(array: Cells) -> int:
    return int(array.ctypes.data)


class UnicornEngine:
    """A processor core with `memory_bytes` of RAM from physical address 0.

    `native` asks for the live CPU state (Linux only). Arrays handed in
    through `attach` are used in place, so their owner keeps them alive.
    Raises EngineError where Unicorn is not the version that was calibrated.
    """

    def __init__(self, memory_bytes: int, *, native_path: bool) -> None:
        calibration.check_version()
        self.uc = unicorn.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
        self.uc.ctl_set_cpu_model(x86_const.UC_CPU_X86_NEHALEM)
        self.uc.ctl_set_tcg_buffer_size(_CODE_BUFFER)
        self.uc.ctl_exits_enabled(True)
        self.uc.ctl_set_exits([])
        # As FNINIT and a reset leave them; the engine starts with zeros.
        self.uc.reg_write(x86_const.UC_X86_REG_FPCW, 0x37F)
        self.uc.reg_write(x86_const.UC_X86_REG_MXCSR, 0x1F80)
        self.cells: Cells = np.zeros(mc.CELLS, np.int64)
        self._machine = _address(self.cells)
        self.words = memoryview(self.cells.data)
        """The same as plain integers, quicker to reach."""
        self.vectors = VectorRegisters(self.uc, self.cells)
        """The x87, MMX and SSE registers."""
        self._keep: list[object] = []
        self.why_not_native = "" if native_path else "it was requested"
        """Why this is the portable engine; empty if it is the native one."""
        self._breakpoints: dict[int, ctypes.c_size_t | None] = {}
        self._breakpoints_of: dict[str, frozenset[int]] = {}
        self.has_xsave = False
        """Whether guests may use XSAVE and XRSTOR, of x87 and SSE state."""
        self.patience: dict[int, int] = {}
        """Instructions checked so far, by the shape of the segments (`processor.stepping`)."""
        self._map_memory(memory_bytes)
        start = self._symbol("uc_emu_start")
        self.enter_and_run = bound(loop.enter_and_run, self._machine, start)
        """VM entry and the guest until the engine stops; cells STOP and STOP_CODE say why."""
        self.run_until_stopped = bound(loop.run_until_stopped, self._machine, start)
        """Continue with the guest after an assist."""
        self.step_over = bound(core_calls.step_over_here, self._machine)
        """Move VMCS 0 past an instruction of so many bytes that was carried out there."""
        self.end_emulated_instruction = bound(
            core_calls.end_emulated_instruction_here, self._machine
        )
        """End an instruction in VMCS 0 whose RIP has moved, or stays; see `decode.emulated`."""
        self._step = bound(loop.step, self._machine, start)
        self._shape_now = bound(loop.shape_now, self._machine)
        c = self.cells
        c[mc.UC] = self.uc._uch.value
        c[mc.SELF] = self._machine
        c[mc.RAISE_EVENT] = core_calls.raise_event_c.address
        c[mc.EXECUTE] = core_calls.execute_c.address
        c[mc.VM_ENTER] = core_calls.enter_from_here_c.address
        c[mc.VM_LEAVE] = core_calls.leave_here_c.address
        c[mc.NESTED_TIMER_END] = _FOREVER
        c[mc.EMU_STOP] = self._symbol("uc_emu_stop")
        c[mc.REG_READ] = self._symbol("uc_reg_read")
        c[mc.REG_WRITE] = self._symbol("uc_reg_write")
        c[mc.CONTEXT_SAVE] = self._symbol("uc_context_save")
        c[mc.CONTEXT_RESTORE] = self._symbol("uc_context_restore")
        blocks = np.zeros(2 * mc.BLOCK_SLOTS, np.int64)
        self._keep += [blocks]
        c[mc.BLOCKS] = _address(blocks)
        if native_path:
            self._open_internals()
        else:
            self._open_context()
        if os.environ.get("TRAPGATE_AUDIT") == "1" and (c[mc.NATIVE] or c[mc.LIVE]):
            slots = np.zeros(audit.SLOTS * audit.WIDTH, np.int64)
            self._keep.append(slots)
            c[mc.AUDIT] = _address(slots)
        self._add_hooks()

    def _map_memory(self, size: int) -> None:
        if size <= 0 or size % _PAGE:
            raise EngineError(f"memory of {size} bytes is not a multiple of {_PAGE}")
        self.memory: Cells = zeros(size)
        self.uc.mem_map_ptr(0, size, uc_const.UC_PROT_ALL, _address(self.memory))
        self.scratch: Cells = zeros(at.VMCB_PAGES * _PAGE)
        self.uc.mem_map_ptr(
            at.VMCB, at.VMCB_PAGES * _PAGE, uc_const.UC_PROT_ALL, _address(self.scratch)
        )
        # Devices lie below the engine's own pages.
        apic_page = memory_hooks.on_apic_page_read, memory_hooks.on_apic_page_write
        absent = memory_hooks.on_absent_read, memory_hooks.on_absent_write
        stores = memory_hooks.on_absent_read, memory_hooks.on_intercepted_store
        video = memory_hooks.on_video_read, memory_hooks.on_video_write
        own = self._machine
        for start, end, reader, (load, store), writer in (
            (size, at.VMCB, own, absent, own),
            (at.STORES, at.NOWHERE, None, stores, own),
            (at.NOWHERE, at.APIC_ACCESSES, None, absent, None),
            (at.APIC_ACCESSES, at.APIC_ACCESSES + _PAGE, own, apic_page, own),
            (at.VIDEO, at.VIDEO + at.VIDEO_SIZE, own, video, own),
            (at.VIDEO + at.VIDEO_SIZE, 1 << 52, None, absent, None),
        ):
            self._check(
                uclib.uc_mmio_map(
                    self.uc._uch,
                    ctypes.c_uint64(start),
                    ctypes.c_size_t(end - start),
                    ctypes.c_void_p(load.address),
                    ctypes.c_void_p(reader),
                    ctypes.c_void_p(store.address),
                    ctypes.c_void_p(writer),
                )
            )
        c = self.cells
        c[mc.MEM] = _address(self.memory)
        c[mc.MEM_CELLS] = size // 8
        c[mc.SCRATCH] = _address(self.scratch)
        pages = size // _PAGE
        watch_cells = np.zeros(watch_length(pages), np.int64)
        watch(self.memory, watch_cells)
        self.devices = DevicePages(c, watch_cells)
        self.watch_cells = watch_cells
        """What memory's stores are watched by, and the log of pages that were written."""
        self.page_cells = watch_cells[WATCH_PAGES : WATCH_PAGES + pages]
        """A cell a page of memory: bits of `coherence`, WRITTEN_PAGE among them."""
        c[mc.WATCH] = _address(watch_cells)
        # Every MSR is intercepted: its bitmap, in the scratch pages, is all ones.
        self.scratch[512:] = -1
        self.scratch[at.VMCB_MSRPM_BASE // 8] = at.VMCB + _PAGE

    def _offer_xsave(self, env: int) -> None:
        """Make the translator accept XSAVE, which its processor model does not have."""
        features = ctypes.c_uint32.from_address(env + at.FEATURES_1_ECX)
        if features.value & (_SSE_4_2 | _XSAVE) != _SSE_4_2:
            raise EngineError("the translator's features are not where they should be")
        features.value |= _XSAVE
        self.has_xsave = True

    def _open_internals(self) -> None:
        inside = native.find(self.uc)
        translator()
        self._offer_xsave(inside.env)
        calibration.check_native(self.uc, inside.cpu, inside.env)
        c = self.cells
        c[mc.NATIVE] = 1
        c[mc.ENV] = inside.env
        self._guard_translator(inside)
        ctypes.c_uint64.from_address(inside.tlb_fill).value = memory_hooks.on_tlb_fill.address
        ctypes.c_uint64.from_address(inside.debug).value = hooks.on_breakpoint.address

    def _guard_translator(self, inside: native.Internals) -> None:
        """Tell our functions in the translator about this engine."""
        c = self.cells
        c[mc.CPU] = inside.cpu
        c[mc.EXCEPTION_INDEX] = inside.exception_index
        for cell, name in (
            (mc.CC_COMPUTE_ALL, "cpu_cc_compute_all"),
            (mc.CPU_LOOP_EXIT, "cpu_loop_exit"),
            (mc.CPU_LOOP_EXIT_RESTORE, "cpu_loop_exit_restore"),
            (mc.CPU_RESTORE_STATE, "cpu_restore_state"),
            (mc.UPDATE_DR7, "cpu_x86_update_dr7"),
            (mc.TB_INVALIDATE, "tb_invalidate_phys_range"),
            (mc.TLB_FLUSH, "tlb_flush"),
            (mc.TLB_FLUSH_PAGE, "tlb_flush_page"),
            (mc.TLB_INIT, "tlb_init"),
            (mc.TLB_RESET_DIRTY, "tlb_reset_dirty"),
            (mc.TLB_SET_PAGE, "tlb_set_page"),
            (mc.TLB_HOST, "tlb_vaddr_to_host"),
        ):
            c[cell] = inside.symbols[name]
        ours = translator()
        memory_regions.remember(c, inside.cpu, native.handle_of(self.uc))
        c[mc.TRANSLATOR] = ours.address
        c[mc.REQUEST] = inside.cpu + ours.request
        weakref.finalize(self, _free_parked_tables, c)
        # The engine may have set some before.
        c[mc.ENTRIES] = mc.ENTRIES_MOST + 1
        c[mc.CHECK_EXIT], c[mc.LOOK_UP], c[mc.SINGLE_STEP] = (
            ours.cells[cell] for cell in (em.CHECK_EXIT, em.LOOK_UP, em.SINGLE_STEP)
        )
        ctypes.c_uint64.from_address(inside.env + at.MACHINE).value = self._machine

    def _open_context(self) -> None:
        """The portable path: the state is a copy, saved and restored at every event."""
        # Where the translator can be guarded from code that would end the process, and helpers of
        # the engine's replaced, they are.
        self.cells[mc.SHADOW] = -1
        try:
            inside = native.find(self.uc)
            translator()
            self._offer_xsave(inside.env)
        except EngineError:
            # With such a hook the engine looks for stale code at every store, and not without.
            self._hook(uc_const.UC_HOOK_MEM_WRITE, memory_hooks.on_any_store)
        else:
            self._guard_translator(inside)
            self.cells[mc.LIVE] = inside.env
            self.cells[mc.EXCEPTION_INDEX] = inside.exception_index
            self.cells[mc.CPU_LOOP_EXIT_RESTORE] = inside.symbols["cpu_loop_exit_restore"]
            self.cells[mc.SHADOW] = 0
        seen = np.zeros(mc.BLOCK_SLOTS, np.int64)
        context = ctypes.c_void_p()
        self._check(uclib.uc_context_alloc(self.uc._uch, ctypes.byref(context)))
        assert context.value is not None
        self._keep.append(seen)
        c = self.cells
        c[mc.SEEN] = _address(seen)
        c[mc.CONTEXT] = context.value
        c[mc.ENV] = context.value + calibration.context_data(self.uc, context.value)
        c[mc.UC_CTL] = self._symbol("uc_ctl")
        self._ports: dict[int, ctypes.c_size_t] = {}
        self._check(uclib.uc_context_save(self.uc._uch, context))

    @property
    def kind(self) -> str:
        """The way into the engine: "native" or "portable"."""
        return "native" if self.cells[mc.NATIVE] else "portable"

    def watch_port(self, address: int, block: int, size: int) -> None:
        """Stop before the instruction of input or output at linear `address` (portable only).

        It is part of a block of `size` bytes that was translated already.
        """
        if address & _MASK in self._ports:
            # The block was translated with the stop in it. To drop it would be to meet it again as
            # new, for ever if it is now whole and now cut where time is up.
            return
        self._ports[address & _MASK] = self._hook(
            uc_const.UC_HOOK_CODE, hooks.on_port, begin=address, end=address
        )
        self.uc.ctl_remove_cache(block & _MASK, (block + size) & _MASK)

    def forget_port(self) -> None:
        """Where `watch_port` has stopped the run there is something else now."""
        address = int(self.cells[mc.STOP_INFO]) & _MASK
        self._check(uclib.uc_hook_del(self.uc._uch, self._ports.pop(address)))
        self.uc.ctl_flush_tb()

    def set_breakpoints(self, addresses: Collection[int], *, of: str = "debugger") -> None:
        """Stop before the instructions at these linear addresses; others' breakpoints stay.

        Memory and debug registers stay the guest's own; code without breakpoints is as fast as
        ever. `breakpoint_hit` says which one stopped the run, which the VMM sees as an exit of
        the preemption timer.
        """
        self._breakpoints_of[of] = frozenset(addresses)
        wanted = frozenset().union(*self._breakpoints_of.values())
        if wanted == self._breakpoints.keys():
            return
        if self.cells[mc.NATIVE]:
            self._breakpoints = dict.fromkeys(wanted)
            unsigned = np.array(sorted(wanted), np.uint64)
            self._addresses: Cells = unsigned.astype(np.int64)
            self.cells[mc.BREAKPOINTS] = _address(self._addresses)
            self.cells[mc.BREAKPOINTS_COUNT] = len(wanted)
        else:
            for address in self._breakpoints.keys() - wanted:
                self._check(uclib.uc_hook_del(self.uc._uch, self._breakpoints.pop(address)))
            for address in wanted - self._breakpoints.keys():
                self._breakpoints[address] = self._hook(
                    uc_const.UC_HOOK_CODE, hooks.on_debugger_breakpoint, begin=address, end=address
                )
        self.uc.ctl_flush_tb()

    @property
    def has_stuck_bits(self) -> bool:
        """Whether `stick` works here: on the native engine."""
        return bool(self.cells[mc.NATIVE])

    def stick(self, register: int, mask: int, value: int) -> None:
        """Force bits `mask` of a general register to those of `value` before each instruction.

        `register` is its encoding, 0 to 15. Until `unstick`; translated code is dropped each time.
        """
        self.cells[mc.STUCK_MASK] = np.uint64(mask).astype(np.int64)
        self.cells[mc.STUCK_VALUE] = np.uint64(value & mask).astype(np.int64)
        self.cells[mc.STUCK] = register + 1
        self.uc.ctl_flush_tb()

    def unstick(self) -> None:
        """End all stuck bits: registers hold what the guest writes."""
        self.cells[mc.STUCK] = 0
        self.uc.ctl_flush_tb()

    def breakpoint_hit(self) -> int | None:
        """The linear address of the breakpoint that stopped the run, once; None if none did."""
        hit = int(self.cells[mc.DEBUG_HIT])
        self.cells[mc.DEBUG_HIT] = 0
        return (hit - 1) & _MASK if hit else None

    def take_breakpoint(self, of: str) -> int | None:
        """The same for one of several who set breakpoints; it is passed over once then.

        If others have set it too, they learn of it as well.
        """
        hit = int(self.cells[mc.DEBUG_HIT])
        address = (hit - 1) & _MASK
        if not hit or address not in self._breakpoints_of.get(of, ()):
            return None
        self.pass_breakpoint(address)
        if sum(address in addresses for addresses in self._breakpoints_of.values()) == 1:
            self.cells[mc.DEBUG_HIT] = 0
        return address

    @property
    def has_breakpoints(self) -> bool:
        """Whether a debugger has set any."""
        return bool(self._breakpoints)

    def meets_breakpoint(self, address: int) -> bool:
        """Whether the run has to stop before the instruction at that linear address.

        For who executes instructions one at a time, where the engine does not look.
        """
        if address & _MASK not in self._breakpoints:
            return False
        signed = (address & _MASK) - (1 << 64) if address >> 63 & 1 else address
        passed = self.cells[mc.DEBUG_SKIP] == signed + 1
        self.cells[mc.DEBUG_SKIP] = 0
        if not passed:
            self.cells[mc.DEBUG_HIT] = signed + 1
        return not passed

    def pass_breakpoint(self, address: int) -> None:
        """Execute the instruction at that linear address once in spite of a breakpoint."""
        signed = address - (1 << 64) if address >> 63 else address
        self.cells[mc.DEBUG_SKIP] = signed + 1

    def _add_hooks(self) -> None:
        self._hook(uc_const.UC_HOOK_INTR, hooks.on_interrupt)
        if not self.cells[mc.NATIVE]:
            self._hook(uc_const.UC_HOOK_BLOCK, hooks.on_block)
            self._hook(uc_const.UC_HOOK_EDGE_GENERATED, hooks.on_new_block)
        by_instruction = {
            x86_const.UC_X86_INS_IN: hooks.on_in,
            x86_const.UC_X86_INS_OUT: hooks.on_out,
        }
        if not self.cells[mc.NATIVE]:
            by_instruction |= {
                x86_const.UC_X86_INS_SYSCALL: hooks.on_syscall_hook,
                x86_const.UC_X86_INS_SYSENTER: hooks.on_sysenter_hook,
            }
        for instruction, hook in by_instruction.items():
            self._hook(uc_const.UC_HOOK_INSN, hook, instruction)

    def _hook(
        self, kind: int, function: Any, *instruction: int, begin: int = 1, end: int = 0
    ) -> ctypes.c_size_t:
        handle = ctypes.c_size_t()
        self._check(
            uclib.uc_hook_add(
                self.uc._uch,
                ctypes.byref(handle),
                kind,
                ctypes.c_void_p(function.address),
                ctypes.c_void_p(self._machine),
                ctypes.c_uint64(begin),
                ctypes.c_uint64(end),
                *(ctypes.c_int(number) for number in instruction),
            )
        )
        return handle

    @staticmethod
    def _symbol(name: str) -> int:
        address = ctypes.cast(getattr(uclib, name), ctypes.c_void_p).value
        assert address is not None
        return address

    @staticmethod
    def _check(error: int) -> None:
        if error != uc_const.UC_ERR_OK:
            raise EngineError(f"Unicorn: {unicorn.UcError(error)}")

    def offer_vmx(self, x: Cells, n: Cells) -> None:
        """Use `x` as the VMX state of the processor, `n` as its copy of an x86 VMM's VMCS."""
        self._vmx = (x, n)
        self.cells[mc.X] = _address(x)
        self.cells[mc.N] = _address(n)

    def move_to_vmcs0(self) -> None:
        """Lend the state of the x86 VMM's guest to VMCS 0."""
        loop.move_state_to_vmcs0(self._machine)

    def move_from_vmcs0(self) -> None:
        """Undo `move_to_vmcs0`."""
        loop.move_state_from_vmcs0(self._machine)

    def set_clock(self) -> None:
        """Arm the preemption timer of VMCS 0, and say when the engine has to stop and look."""
        loop.set_clock_now(self._machine)

    def look_ahead(self) -> None:
        """Say when the engine has to stop and look, from the VMCS in force and the pins."""
        loop.look_ahead_now(self._machine)

    def attach(self, v: Cells, r: Cells, rows: Rows, head: Cells) -> None:
        """Put `v` in force as VMCS 0; `r` is the register file, `rows` and `head` the journal."""
        self._arrays = (v, r, rows, head)
        self.cells[mc.HOST] = _address(v)
        c = self.cells
        for (where, count), array in zip(
            ((mc.V, mc.V_CELLS), (mc.R, mc.R_CELLS), (mc.ROWS, None), (mc.HEAD, mc.HEAD_CELLS)),
            self._arrays,
            strict=True,
        ):
            c[where] = _address(array)
            if count is not None:
                c[count] = len(array)
        c[mc.ROWS_CAPACITY] = len(rows)
        assert len(r) == len(registers.NAMES)

    def exchange(self, v: Cells, r: Cells, places: tuple[int, int, int, int]) -> None:
        """`attach` and `offer_vmx` for another logical processor of the same machine.

        `places` are the addresses of `v`, `r` and its VMX state's two arrays, by `places_of`.
        """
        self._arrays = (v, r, *self._arrays[2:])
        c = self.words
        c[mc.V] = c[mc.HOST] = places[0]
        c[mc.R], c[mc.X], c[mc.N] = places[1:]
        c[mc.SWITCHED] |= mc.SWITCHED_VMCS | mc.SWITCHED_TRANSLATIONS

    @staticmethod
    def places_of(v: Cells, r: Cells, x: Cells, n: Cells) -> tuple[int, int, int, int]:
        """Where these arrays lie; their owner keeps them alive."""
        return _address(v), _address(r), _address(x), _address(n)

    def step(self) -> bool:
        """Execute one instruction; False if an event was dealt with instead of it.

        Cell STOP is STEPPED, or why else the engine stopped.
        """
        return bool(self._step())

    def segment_shape(self) -> int:
        """A number for the limits of ES, SS and DS; 0 where none of them can be exceeded."""
        return self._shape_now()

    def forget_code(self, start: int, size: int) -> None:
        """Drop translations of the code in [start, start + size) after a store from outside."""
        if size <= 0:
            return
        loop.invalidate_code(self._machine, start, start + size)

    def walk(self, v: Cells, rflags: int, linear: int, access: int, user: int) -> tuple[int, int]:
        """The physical address of a linear one, and the error code or -1; see `paging.walk`."""
        found = core_calls.walk_here(self._machine, v, rflags, linear, access, user)
        return found[0], found[1]

    def entry_written(self, v: Cells, linear: int, user: int) -> tuple[int, int]:
        """The kind of table entry that a write means, and where; see `frame_filters`."""
        rflags = int(v[f.GUEST_RFLAGS])
        found = core_calls.entry_written_here(self._machine, v, rflags, linear, user)
        return found[0], found[1]

    def raise_event(self, vector: int, kind: int, error_code: int, address: int) -> int:
        """Arbitrate an event at GUEST_RIP; not 0 if it exited. See `delivery.raise_event`."""
        event = (self._machine, vector, kind, error_code, address, 0)
        return int(core_calls.raise_here(*event))

    def deliver_virtual_interrupt(self) -> bool:
        """Deliver the one that is recognized at GUEST_RIP; whether that exits."""
        return bool(core_calls.deliver_virtual_interrupt_here(self._machine))

    def post_interrupts(self) -> None:
        """Move what is posted to the x86 VMM's guest into its virtual-APIC page."""
        core_calls.post_interrupts_here(self._machine)

    def protect_firmware(self, segments: int) -> None:
        """Drop stores to these sixteenths of C0000H-FFFFFH, a bit each (native path only)."""
        self.cells[mc.READ_ONLY] = segments
        self.flush_translations()

    def open_window(self, number: int, start: int, size: int, target: int) -> None:
        """From now on `size` bytes at physical `start` show those at `target` (native path only).

        `number` is 0 or 1; a window of no size is closed. Pages each.
        """
        c = self.cells
        first = (mc.WINDOW_0_START, mc.WINDOW_1_START)[number]
        c[first : first + 3] = start, size, target
        c[mc.WINDOWS] = int(c[mc.WINDOW_0_SIZE] != 0 or c[mc.WINDOW_1_SIZE] != 0)
        self.flush_translations()

    def open_planes(self) -> None:
        """Map the window to a VGA's planes to devices, as window 0 (native path only)."""
        self.open_window(0, at.VIDEO_WINDOW, at.VIDEO_SIZE, at.VIDEO)

    def hold_a20(self, *, low: bool) -> None:
        """Hold address line 20 low, or let it through (native path only)."""
        self.cells[mc.ADDRESS_OFF] = 1 << 20 if low else 0
        self.flush_translations()

    def flush_translations(self) -> None:
        """Forget cached translations of linear addresses, as a VM entry without VPID does."""
        if self.cells[mc.NATIVE]:
            loop.flush(self._machine)
        else:
            self.uc.ctl(uc_const.UC_CTL_TLB_FLUSH, uc_const.UC_CTL_IO_WRITE)

    @property
    def fetched_nothing(self) -> bool:
        """Did the engine stop because code was to be fetched where there is no RAM (portable)?"""
        return bool(self.cells[mc.STOP_INFO] == uc_const.UC_ERR_FETCH_PROT)

    def explain_break(self) -> None:
        """Raise EngineError about an engine that stopped for no reason that it should."""
        code, error = int(self.cells[mc.STOP_CODE]), int(self.cells[mc.STOP_INFO])
        rip = int(self._arrays[0][f.GUEST_RIP]) & _MASK
        if self.cells[mc.STOP] == mc.STALE:
            raise EngineError(
                f"translated code at {error & _MASK:#x} is not what memory holds there; "
                "report this guest"
            )
        if self.cells[mc.STOP] == mc.UNDROPPED:
            raise EngineError("not all cached translations were dropped; report this guest")
        raise EngineError(
            f"the engine stopped by itself at RIP {rip:#x} (last event {code:#x}, "
            f"error {error}); report this guest"
        )


def _free_parked_tables(c: Cells) -> None:
    """The engine frees those that it uses."""
    free = ctypes.CDLL(None).free
    for place in address_spaces.ALLOCATED:
        free(ctypes.c_void_p(int(c[mc.PARKED_TABLES + place])))


def open_engine(memory_bytes: int, kind: str) -> UnicornEngine:
    """An engine of `kind` "native", "portable" or "auto" (native where it checks out)."""
    if kind not in ("native", "portable", "auto"):
        raise EngineError(f"no engine {kind!r}; ask for native, portable or auto")
    if kind == "portable":
        return UnicornEngine(memory_bytes, native_path=False)
    try:
        return UnicornEngine(memory_bytes, native_path=True)
    except EngineError as reason:
        if kind == "native":
            raise
        engine = UnicornEngine(memory_bytes, native_path=False)
        engine.why_not_native = str(reason)
        return engine
