"""Which sensitive instructions exit to the VMM (¶42, the redirection map beyond exceptions).

Source: SDM, "Instructions That Cause VM Exits" and "Exit Qualification". A criteria table may
decide otherwise than the controls (`decision.instruction_rules`). Operands come decoded. A
function answers GO_ON (no exit: carry the instruction out, `effects` knows how where that is not
plain), EXITED (the exit is recorded, RIP still at the instruction), or the fault that comes before
the exit: RAISE_UD, RAISE_GP (with error code 0). Faults for a lack of privilege come first (SDM,
"Relative Priority of Faults and VM Exits"); MOV DR is the exception.
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.decision.instruction_rules import exits_by_table
from trapgate.events.exits import vm_exit
from trapgate.operands.mode import privilege_level
from trapgate.paging.memory import load8
from trapgate.paging.walk import REFUSED_GP, read_system
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm import reasons as why
from trapgate.sdm import state as st
from trapgate.sdm.vmx import FIRST_PAUSE, LATEST_PAUSE

GO_ON = 0
EXITED = 1
RAISE_UD = 2
RAISE_GP = 3
RAISE_DB = 4
"""#DB of a general detect (DR6.BD); only `effects` answers it."""
RAISE_PF = 5
"""#PF of an implicit access; only `io_permission` answers it."""
RAISE_SS = 8
"""#SS(0); only VMX instructions answer it."""
RAISE_OPERAND_PF = 11
"""#PF of an operand, as `sdm.vmx` says."""
RAISE_FAULT = 12
"""The fault that `sdm.vmx` says: FAULT_VECTOR, FAULT_ERROR, FAULT_ADDRESS."""

ACCESS_MOV_TO = 0
ACCESS_MOV_FROM = 1
ACCESS_CLTS = 2
ACCESS_LMSW = 3

TASK_BY_CALL = 0
TASK_BY_IRET = 1
TASK_BY_JMP = 2
TASK_BY_GATE = 3

_COUNTERS = 4
"""Performance counters that RDPMC reads. The processor model has so many; here they read 0."""


@core
@inlined
def secondary_controls(v: Cells) -> int:
    """The secondary processor-based controls; all 0 unless they are activated."""
    if (v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & ct.PRIMARY_SECONDARY_CONTROLS) == 0:
        return 0
    return int(v[f.SECONDARY_PROCESSOR_BASED_CONTROLS])


@core
def exit_where(
    v: Cells, usual: bool, reason: int, qualification: int, operand: int, length: int
) -> int:
    """Exit if the criteria table says so, or says nothing and `usual` is true."""
    if not exits_by_table(v, usual, reason, qualification, operand):
        return GO_ON
    vm_exit(v, reason, qualification, length)
    return EXITED


@core
def exit_if(v: Cells, control: int, reason: int, qualification: int, length: int) -> int:
    """Exit if the primary control `control` is 1, unless the criteria table decides."""
    usual = (v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & control) != 0
    return exit_where(v, usual, reason, qualification, 0, length)


@core
def intercept_cpuid(v: Cells, leaf: int, length: int) -> int:
    """CPUID of `leaf` (EAX): always exits, but for a criteria table."""
    return exit_where(v, True, why.REASON_CPUID, 0, leaf, length)


@core
def intercept_invd(v: Cells, length: int) -> int:
    """INVD: always exits from ring 0, but for a criteria table; there are no caches."""
    if privilege_level(v) != 0:
        return RAISE_GP
    return exit_where(v, True, why.REASON_INVD, 0, 0, length)


@core
def intercept_wbinvd(v: Cells, length: int) -> int:
    """WBINVD: "WBINVD exiting"; nothing happens otherwise, there are no caches."""
    if privilege_level(v) != 0:
        return RAISE_GP
    usual = (secondary_controls(v) & ct.SECONDARY_WBINVD_EXITING) != 0
    return exit_where(v, usual, why.REASON_WBINVD, 0, 0, length)


@core
def intercept_xsetbv(v: Cells, index: int, length: int) -> int:
    """XSETBV to register `index` (ECX): exits always, but for a criteria table.

    From ring 0, and with CR4.OSXSAVE.
    """
    if (v[f.GUEST_CR4] & st.CR4_OSXSAVE) == 0:
        return RAISE_UD
    if privilege_level(v) != 0:
        return RAISE_GP
    return exit_where(v, True, why.REASON_XSETBV, 0, index, length)


@core
def intercept_vmx(v: Cells, reason: int, displacement: int, information: int, length: int) -> int:
    """A VMX instruction, or RSM or GETSEC: always exits, whatever the privilege level.

    If a criteria table leaves it to the guest, it is undefined there.

    `reason` is the instruction's exit reason. `displacement` (the qualification) and
    `information` (VM-exit instruction information) are those of its memory operand, 0
    without one. VMCALL, RSM and GETSEC exit in every mode; the others are #UD outside
    protected mode, in virtual-8086 mode and in compatibility mode.
    """
    if reason > why.REASON_VMCALL and vmx_undefined(v):
        return RAISE_UD
    if not exits_by_table(v, True, reason, displacement, 0):
        return RAISE_UD
    vm_exit(v, reason, displacement, length)
    v[f.VM_EXIT_INSTRUCTION_INFORMATION] = information
    return EXITED


@core
@inlined
def vmx_undefined(v: Cells) -> bool:
    """Whether the mode has no VMX instructions."""
    if (v[f.GUEST_CR0] & st.CR0_PE) == 0 or (v[f.GUEST_RFLAGS] & st.RFLAGS_VM) != 0:
        return True
    in_ia32e = (v[f.GUEST_IA32_EFER] & st.EFER_LMA) != 0
    return bool(in_ia32e and (v[f.GUEST_CS_ACCESS_RIGHTS] & st.AR_L) == 0)


@core
def intercept_hlt(v: Cells, length: int) -> int:
    """HLT: "HLT exiting"."""
    if privilege_level(v) != 0:
        return RAISE_GP
    return exit_if(v, ct.PRIMARY_HLT_EXITING, why.REASON_HLT, 0, length)


@core
def intercept_pause(v: Cells, length: int) -> int:
    """PAUSE: "PAUSE exiting"."""
    return exit_if(v, ct.PRIMARY_PAUSE_EXITING, why.REASON_PAUSE, 0, length)


@core
def intercept_pause_loop(v: Cells, x: Cells, now: int, length: int) -> int:
    """PAUSE: "PAUSE-loop exiting", at CPL 0; `now` is the time-stamp counter, without its offset.

    SDM, "Instructions That Cause VM Exits Conditionally": a PAUSE that comes more than PLE_GAP
    after the last one begins a loop, and one more than PLE_WINDOW after that beginning exits.
    Entries by the VMM in Python begin none: they come when something outside wants to look.
    """
    if (secondary_controls(v) & ct.SECONDARY_PAUSE_LOOP_EXITING) == 0 or privilege_level(v) != 0:
        return GO_ON
    begins = now - x[LATEST_PAUSE] > v[f.PLE_GAP]
    x[LATEST_PAUSE] = now
    if begins:
        x[FIRST_PAUSE] = now
    if now - x[FIRST_PAUSE] <= v[f.PLE_WINDOW]:
        return GO_ON
    return exit_where(v, True, why.REASON_PAUSE, 0, 0, length)


@core
def intercept_monitor(v: Cells, length: int) -> int:
    """MONITOR: "MONITOR exiting"; #UD above ring 0."""
    if privilege_level(v) != 0:
        return RAISE_UD
    return exit_if(v, ct.PRIMARY_MONITOR_EXITING, why.REASON_MONITOR, 0, length)


@core
def intercept_mwait(v: Cells, armed: int, length: int) -> int:
    """MWAIT: "MWAIT exiting"; `armed` 1 if the address-range monitor is set."""
    if privilege_level(v) != 0:
        return RAISE_UD
    return exit_if(v, ct.PRIMARY_MWAIT_EXITING, why.REASON_MWAIT, armed, length)


@core
def intercept_invlpg(v: Cells, linear: int, length: int) -> int:
    """INVLPG of the linear address: "INVLPG exiting"."""
    if privilege_level(v) != 0:
        return RAISE_GP
    return exit_if(v, ct.PRIMARY_INVLPG_EXITING, why.REASON_INVLPG, linear, length)


@core
def intercept_rdtsc(v: Cells, length: int) -> int:
    """RDTSC: "RDTSC exiting"; #GP above ring 0 with CR4.TSD."""
    if privilege_level(v) != 0 and (v[f.GUEST_CR4] & st.CR4_TSD) != 0:
        return RAISE_GP
    return exit_if(v, ct.PRIMARY_RDTSC_EXITING, why.REASON_RDTSC, 0, length)


@core
def intercept_rdtscp(v: Cells, length: int) -> int:
    """RDTSCP: #UD unless "enable RDTSCP" is 1; then as RDTSC."""
    if (secondary_controls(v) & ct.SECONDARY_RDTSCP) == 0:
        return RAISE_UD
    if privilege_level(v) != 0 and (v[f.GUEST_CR4] & st.CR4_TSD) != 0:
        return RAISE_GP
    return exit_if(v, ct.PRIMARY_RDTSC_EXITING, why.REASON_RDTSCP, 0, length)


@core
def intercept_rdpmc(v: Cells, counter: int, length: int) -> int:
    """RDPMC: "RDPMC exiting"; else #GP if there is no such counter. Those there are stand still."""
    if privilege_level(v) != 0 and (v[f.GUEST_CR4] & st.CR4_PCE) == 0:
        return RAISE_GP
    if exit_if(v, ct.PRIMARY_RDPMC_EXITING, why.REASON_RDPMC, 0, length) == EXITED:
        return EXITED
    return GO_ON if 0 <= counter < _COUNTERS else RAISE_GP


@core
def control_register_exit(v: Cells, usual: bool, qualification: int, length: int) -> int:
    """A control-register access, which exits if `usual` is true."""
    return exit_where(v, usual, why.REASON_CONTROL_REGISTER_ACCESS, qualification, 0, length)


@core
def intercept_mov_to_cr(v: Cells, number: int, register: int, value: int, length: int) -> int:
    """MOV to CR0, CR2, CR3, CR4 or CR8 of `value`, from the general register `register`.

    CR0 and CR4: a bit that the host owns (mask) would differ from its shadow. CR3:
    "CR3-load exiting", unless `value` is a CR3-target value. CR8: "CR8-load exiting".
    CR2: never. #UD for other control registers.
    """
    if number not in (0, 2, 3, 4, 8):
        return RAISE_UD
    if privilege_level(v) != 0:
        return RAISE_GP
    primary = v[f.PRIMARY_PROCESSOR_BASED_CONTROLS]
    exits = False
    if number == 0:
        exits = (v[f.CR0_GUEST_HOST_MASK] & (value ^ v[f.CR0_READ_SHADOW])) != 0
    elif number == 4:
        exits = (v[f.CR4_GUEST_HOST_MASK] & (value ^ v[f.CR4_READ_SHADOW])) != 0
    elif number == 3:
        exits = (primary & ct.PRIMARY_CR3_LOAD_EXITING) != 0
        for n in range(min(v[f.CR3_TARGET_COUNT], 4)):
            if v[f.CR3_TARGET_VALUE_0 + n] == value:
                exits = False
    elif number == 8:
        exits = (primary & ct.PRIMARY_CR8_LOAD_EXITING) != 0
    return control_register_exit(v, exits, number | ACCESS_MOV_TO << 4 | register << 8, length)


@core
def intercept_mov_from_cr(v: Cells, number: int, register: int, length: int) -> int:
    """MOV from a control register into `register`: "CR3-store exiting", "CR8-store exiting"."""
    if number not in (0, 2, 3, 4, 8):
        return RAISE_UD
    if privilege_level(v) != 0:
        return RAISE_GP
    control = 0
    if number == 3:
        control = ct.PRIMARY_CR3_STORE_EXITING
    elif number == 8:
        control = ct.PRIMARY_CR8_STORE_EXITING
    usual = (v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & control) != 0
    return control_register_exit(v, usual, number | ACCESS_MOV_FROM << 4 | register << 8, length)


@core
def intercept_clts(v: Cells, length: int) -> int:
    """CLTS: exits if CR0.TS is the host's and its shadow is 1."""
    if privilege_level(v) != 0:
        return RAISE_GP
    usual = (v[f.CR0_GUEST_HOST_MASK] & v[f.CR0_READ_SHADOW] & st.CR0_TS) != 0
    return control_register_exit(v, usual, ACCESS_CLTS << 4, length)


@core
def intercept_lmsw(v: Cells, source: int, is_memory: int, linear: int, length: int) -> int:
    """LMSW of `source` (16 bits): exits if it would change bits 3:0 that the host owns.

    LMSW can set PE but not clear it, so PE counts only if it is to be set. `linear` is
    the address of a memory operand (`is_memory` 1), 0 otherwise.
    """
    if privilege_level(v) != 0:
        return RAISE_GP
    mask = v[f.CR0_GUEST_HOST_MASK]
    shadow = v[f.CR0_READ_SHADOW]
    exits = (mask & (source ^ shadow) & 0xE) != 0 or (mask & source & ~shadow & 1) != 0
    qualification = ACCESS_LMSW << 4 | is_memory << 6 | (source & 0xFFFF) << 16
    if control_register_exit(v, exits, qualification, length) == GO_ON:
        return GO_ON
    if is_memory != 0:
        v[f.GUEST_LINEAR_ADDRESS] = linear
    return EXITED


@core
def intercept_mov_dr(v: Cells, number: int, is_read: int, register: int, length: int) -> int:
    """MOV DR: "MOV-DR exiting", before the checks of privilege and CR4.DE.

    `is_read` is 1 for a MOV from the debug register. DR8 to DR15 are not registers. What else
    may go wrong is `effects.read_dr`'s and `effects.write_dr`'s.
    """
    if number > 7:
        return RAISE_UD
    qualification = (number & 7) | is_read << 4 | register << 8
    return exit_if(v, ct.PRIMARY_MOV_DR_EXITING, why.REASON_MOV_DR, qualification, length)


@core
def msr_exits(v: Cells, mem: Memory, index: int, is_write: int) -> bool:
    """Whether an access to MSR `index` exits: no bitmaps, out of their range, or its bit is 1."""
    if (v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & ct.PRIMARY_USE_MSR_BITMAPS) == 0:
        return True
    offset = 0
    if 0xC0000000 <= index <= 0xC0001FFF:
        offset = 1024
    elif index > 0x1FFF:
        return True
    bit = index & 0x1FFF
    byte = load8(mem, v[f.MSR_BITMAP_ADDRESS] + is_write * 2048 + offset + (bit >> 3))
    return ((byte >> (bit & 7)) & 1) != 0


@core
def intercept_rdmsr(v: Cells, mem: Memory, index: int, length: int) -> int:
    """RDMSR of `index` (ECX, unsigned)."""
    if privilege_level(v) != 0:
        return RAISE_GP
    return exit_where(v, msr_exits(v, mem, index, 0), why.REASON_RDMSR, 0, index, length)


@core
def intercept_wrmsr(v: Cells, mem: Memory, index: int, length: int) -> int:
    """WRMSR to `index` (ECX, unsigned)."""
    if privilege_level(v) != 0:
        return RAISE_GP
    return exit_where(v, msr_exits(v, mem, index, 1), why.REASON_WRMSR, 0, index, length)


@core
def io_permission(v: Cells, mem: Memory, port: int, size: int) -> tuple[int, int, int]:
    """Whether the guest may use ports: IOPL, then the TSS's bitmap (SDM, "I/O Protection").

    Returns (GO_ON, 0, 0), (RAISE_GP, 0, 0), or (RAISE_PF, error code, linear address)
    if the TSS cannot be read.
    """
    if (v[f.GUEST_CR0] & st.CR0_PE) == 0:
        return GO_ON, 0, 0
    virtual_8086 = (v[f.GUEST_RFLAGS] & st.RFLAGS_VM) != 0
    if not virtual_8086 and privilege_level(v) <= ((v[f.GUEST_RFLAGS] >> st.RFLAGS_IOPL_SHIFT) & 3):
        return GO_ON, 0, 0
    limit = v[f.GUEST_TR_LIMIT]
    if (v[f.GUEST_TR_ACCESS_RIGHTS] & st.AR_TYPE) != 11 or limit < 103:
        return RAISE_GP, 0, 0
    start, error, address = read_system(v, mem, v[f.GUEST_TR_BASE] + 102, 2, REFUSED_GP)
    if error >= 0:
        return RAISE_PF, error, address
    # The processor reads two bytes always, and both have to lie within the limit.
    if start + (port >> 3) + 1 > limit:
        return RAISE_GP, 0, 0
    bits, error, address = read_system(
        v, mem, v[f.GUEST_TR_BASE] + start + (port >> 3), 2, REFUSED_GP
    )
    if error >= 0:
        return RAISE_PF, error, address
    if ((bits >> (port & 7)) & ((1 << size) - 1)) != 0:
        return RAISE_GP, 0, 0
    return GO_ON, 0, 0


@core
def io_exits(v: Cells, mem: Memory, port: int, size: int) -> bool:
    """Whether an access of `size` bytes to `port` exits (controls and bitmaps)."""
    primary = v[f.PRIMARY_PROCESSOR_BASED_CONTROLS]
    if (primary & ct.PRIMARY_USE_IO_BITMAPS) == 0:
        return bool((primary & ct.PRIMARY_UNCONDITIONAL_IO_EXITING) != 0)
    if port + size > 0x10000:
        return True
    for one in range(port, port + size):
        bitmap = v[f.IO_BITMAP_A_ADDRESS]
        if one >= 0x8000:
            bitmap = v[f.IO_BITMAP_B_ADDRESS]
        if ((load8(mem, bitmap + ((one & 0x7FFF) >> 3)) >> (one & 7)) & 1) != 0:
            return True
    return False


@core
def intercept_io(
    v: Cells,
    mem: Memory,
    port: int,
    size: int,
    is_in: int,
    string: int,
    rep: int,
    immediate: int,
    length: int,
) -> int:
    """IN, OUT, INS, OUTS: `size` 1, 2 or 4 bytes; the flags are 0 or 1.

    `io_permission` comes before. An exiting INS or OUTS also calls `record_string_io`.
    """
    qualification = (
        (size - 1) | is_in << 3 | string << 4 | rep << 5 | immediate << 6 | (port & 0xFFFF) << 16
    )
    usual = io_exits(v, mem, port, size)
    return exit_where(v, usual, why.REASON_IO_INSTRUCTION, qualification, 0, length)


@core
def record_string_io(v: Cells, linear: int, address_size: int, segment: int) -> None:
    """Complete the exit of an INS or OUTS: its first linear address and how it is formed.

    `address_size` is 0 (16 bits), 1 (32) or 2 (64), `segment` 0-5 for ES CS SS DS FS GS.
    """
    v[f.GUEST_LINEAR_ADDRESS] = linear
    v[f.VM_EXIT_INSTRUCTION_INFORMATION] = address_size << 7 | segment << 15


@core
def intercept_task_switch(v: Cells, selector: int, source: int, length: int) -> int:
    """A task switch to the TSS `selector`; `source` is one of TASK_BY_*.

    It always exits. A criteria table may take that back (`processor.task_switch`).
    """
    vm_exit(v, why.REASON_TASK_SWITCH, (selector & 0xFFFF) | source << 30, length)
    return EXITED


@core
def window_exit(v: Cells) -> int:
    """Before an instruction: the exit of an open interrupt or NMI window, if one is awaited.

    The NMI window comes first. Blocking by STI or by MOV SS holds back both.
    """
    primary = v[f.PRIMARY_PROCESSOR_BASED_CONTROLS]
    blocking = v[f.GUEST_INTERRUPTIBILITY_STATE]
    if (primary & ct.PRIMARY_NMI_WINDOW_EXITING) != 0 and (
        blocking & (st.BLOCKING_BY_NMI | st.BLOCKING_BY_MOV_SS | st.BLOCKING_BY_STI)
    ) == 0:
        vm_exit(v, why.REASON_NMI_WINDOW, 0, 0)
        return EXITED
    if (
        (primary & ct.PRIMARY_INTERRUPT_WINDOW_EXITING) != 0
        and (v[f.GUEST_RFLAGS] & st.RFLAGS_IF) != 0
        and (blocking & (st.BLOCKING_BY_MOV_SS | st.BLOCKING_BY_STI)) == 0
    ):
        vm_exit(v, why.REASON_INTERRUPT_WINDOW, 0, 0)
        return EXITED
    return GO_ON


@core
def platform_exit(v: Cells, usual: bool, reason: int, qualification: int) -> int:
    """INIT or an SMI (¶27), which exits if the criteria table says so, else if `usual` is true."""
    return exit_where(v, usual, reason, qualification, 0, 0)
