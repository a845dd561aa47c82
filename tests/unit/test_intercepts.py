"""Which instructions exit, with which qualification; checked against the SDM's tables by hand."""

from collections.abc import Callable

import numpy as np
import pytest

from trapgate.compiler.dialect import Cells, Memory
from trapgate.instructions import intercepts
from trapgate.instructions.intercepts import EXITED, GO_ON, RAISE_GP, RAISE_PF, RAISE_UD
from trapgate.sdm.controls import PrimaryControl, SecondaryControl
from trapgate.vmcs.vmcs import Vmcs

EXIT_REASON = "EXIT_REASON"


def protected(cpl: int = 0) -> Vmcs:
    vmcs = Vmcs()
    vmcs["GUEST_CR0"] = 0x31
    vmcs.set_flat_segments(32, user=cpl == 3)
    vmcs["GUEST_TR_LIMIT"] = 0x67 + 8 + 1
    return vmcs


def with_primary(*bits: PrimaryControl, cpl: int = 0) -> Vmcs:
    vmcs = protected(cpl)
    for bit in bits:
        vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= bit
    return vmcs


def memory() -> Cells:
    return np.zeros(4096, dtype=np.int64)


def poke(mem: Memory, address: int, value: int) -> None:
    mem.view(np.uint8)[address] = value


Simple = Callable[[Cells, int], int]

CONDITIONAL: list[tuple[Simple, PrimaryControl, int, int]] = [
    (intercepts.intercept_hlt, PrimaryControl.HLT_EXITING, 12, RAISE_GP),
    (intercepts.intercept_pause, PrimaryControl.PAUSE_EXITING, 40, GO_ON),
    (intercepts.intercept_monitor, PrimaryControl.MONITOR_EXITING, 39, RAISE_UD),
    (intercepts.intercept_rdtsc, PrimaryControl.RDTSC_EXITING, 16, GO_ON),
]


@pytest.mark.parametrize(("function", "control", "reason", "user"), CONDITIONAL)
def test_conditional(function: Simple, control: PrimaryControl, reason: int, user: int) -> None:
    assert function(protected().cells, 2) == GO_ON
    vmcs = with_primary(control)
    assert function(vmcs.cells, 2) == EXITED
    assert vmcs[EXIT_REASON] == reason
    assert vmcs["EXIT_QUALIFICATION"] == 0
    assert vmcs["VM_EXIT_INSTRUCTION_LENGTH"] == 2
    assert function(protected(3).cells, 2) == user


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda v, length: intercepts.intercept_cpuid(v, 0, length), 10),
        (intercepts.intercept_invd, 13),
    ],
)
def test_unconditional(function: Simple, reason: int) -> None:
    vmcs = protected()
    assert function(vmcs.cells, 2) == EXITED
    assert vmcs[EXIT_REASON] == reason


def test_privilege_comes_before_the_exit() -> None:
    vmcs = with_primary(PrimaryControl.HLT_EXITING, cpl=3)
    assert intercepts.intercept_hlt(vmcs.cells, 1) == RAISE_GP
    assert intercepts.intercept_invd(vmcs.cells, 2) == RAISE_GP
    assert intercepts.intercept_cpuid(vmcs.cells, 0, 2) == EXITED


def test_xsetbv() -> None:
    vmcs = protected()
    assert intercepts.intercept_xsetbv(vmcs.cells, 0, 3) == RAISE_UD
    vmcs["GUEST_CR4"] |= 1 << 18
    assert intercepts.intercept_xsetbv(vmcs.cells, 0, 3) == EXITED
    assert vmcs[EXIT_REASON] == 55


def test_vmx_instructions_exit_at_any_privilege_level() -> None:
    vmcs = protected(3)
    assert intercepts.intercept_vmx(vmcs.cells, 23, -8, 0x123, 4) == EXITED
    assert vmcs[EXIT_REASON] == 23
    assert vmcs["EXIT_QUALIFICATION"] == (1 << 64) - 8
    assert vmcs["VM_EXIT_INSTRUCTION_INFORMATION"] == 0x123
    vmcs["GUEST_CR0"] = 0x30
    assert intercepts.intercept_vmx(vmcs.cells, 23, 0, 0, 4) == RAISE_UD
    assert intercepts.intercept_vmx(vmcs.cells, 18, 0, 0, 3) == EXITED


def test_vmx_instructions_in_compatibility_and_virtual_8086_mode() -> None:
    vmcs = protected()
    vmcs["GUEST_IA32_EFER"] = 1 << 10
    assert intercepts.intercept_vmx(vmcs.cells, 20, 0, 0, 3) == RAISE_UD
    vmcs.set_flat_segments(64)
    assert intercepts.intercept_vmx(vmcs.cells, 20, 0, 0, 3) == EXITED
    vmcs = protected()
    vmcs["GUEST_RFLAGS"] |= 1 << 17
    assert intercepts.intercept_vmx(vmcs.cells, 20, 0, 0, 3) == RAISE_UD


def test_invlpg_and_mwait_qualify() -> None:
    vmcs = with_primary(PrimaryControl.INVLPG_EXITING, PrimaryControl.MWAIT_EXITING)
    assert intercepts.intercept_invlpg(vmcs.cells, -4096, 3) == EXITED
    assert vmcs["EXIT_QUALIFICATION"] == 0xFFFFFFFFFFFFF000
    assert intercepts.intercept_mwait(vmcs.cells, 1, 3) == EXITED
    assert (vmcs[EXIT_REASON], vmcs["EXIT_QUALIFICATION"]) == (36, 1)


def test_time_stamps_are_privileged_by_tsd() -> None:
    vmcs = with_primary(PrimaryControl.RDTSC_EXITING, cpl=3)
    assert intercepts.intercept_rdtsc(vmcs.cells, 2) == EXITED
    vmcs["GUEST_CR4"] |= 1 << 2
    assert intercepts.intercept_rdtsc(vmcs.cells, 2) == RAISE_GP


def test_rdtscp_must_be_enabled() -> None:
    vmcs = protected()
    assert intercepts.intercept_rdtscp(vmcs.cells, 3) == RAISE_UD
    vmcs["SECONDARY_PROCESSOR_BASED_CONTROLS"] |= SecondaryControl.RDTSCP
    assert intercepts.intercept_rdtscp(vmcs.cells, 3) == GO_ON
    vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= PrimaryControl.RDTSC_EXITING
    assert intercepts.intercept_rdtscp(vmcs.cells, 3) == EXITED
    assert vmcs[EXIT_REASON] == 51
    vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] &= ~(1 << 31)
    assert intercepts.intercept_rdtscp(vmcs.cells, 3) == RAISE_UD


def test_rdpmc_finds_four_counters() -> None:
    counters = [0, 3, 4, 0x4000_0000, 0xFFFF_FFFF]
    outcomes = [intercepts.intercept_rdpmc(protected().cells, n, 2) for n in counters]
    assert outcomes == [GO_ON, GO_ON, RAISE_GP, RAISE_GP, RAISE_GP]
    vmcs = with_primary(PrimaryControl.RDPMC_EXITING)
    assert intercepts.intercept_rdpmc(vmcs.cells, 4, 2) == EXITED
    user = with_primary(PrimaryControl.RDPMC_EXITING, cpl=3)
    assert intercepts.intercept_rdpmc(user.cells, 0, 2) == RAISE_GP


def test_wbinvd_by_its_secondary_control() -> None:
    vmcs = protected()
    assert intercepts.intercept_wbinvd(vmcs.cells, 2) == GO_ON
    vmcs["SECONDARY_PROCESSOR_BASED_CONTROLS"] |= SecondaryControl.WBINVD_EXITING
    assert intercepts.intercept_wbinvd(vmcs.cells, 2) == EXITED
    assert vmcs[EXIT_REASON] == 54


def test_mov_to_cr0_exits_for_a_bit_of_the_hosts_that_differs_from_its_shadow() -> None:
    vmcs = protected()
    vmcs["CR0_GUEST_HOST_MASK"] = 1 << 3
    vmcs["CR0_READ_SHADOW"] = 1 << 3
    assert intercepts.intercept_mov_to_cr(vmcs.cells, 0, 5, 0x39, 3) == GO_ON
    assert intercepts.intercept_mov_to_cr(vmcs.cells, 0, 5, 0x31, 3) == EXITED
    assert vmcs[EXIT_REASON] == 28
    assert vmcs["EXIT_QUALIFICATION"] == 5 << 8


def test_mov_to_cr4() -> None:
    vmcs = protected()
    vmcs["CR4_GUEST_HOST_MASK"] = 1 << 13
    assert intercepts.intercept_mov_to_cr(vmcs.cells, 4, 0, 0x20, 3) == GO_ON
    assert intercepts.intercept_mov_to_cr(vmcs.cells, 4, 2, 0x2020, 3) == EXITED
    assert vmcs["EXIT_QUALIFICATION"] == 4 | 2 << 8


def test_mov_to_cr3_but_for_target_values() -> None:
    vmcs = protected()
    assert intercepts.intercept_mov_to_cr(vmcs.cells, 3, 0, 0x5000, 3) == GO_ON
    vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= PrimaryControl.CR3_LOAD_EXITING
    vmcs["CR3_TARGET_VALUE_1"] = 0x5000
    vmcs["CR3_TARGET_COUNT"] = 1
    assert intercepts.intercept_mov_to_cr(vmcs.cells, 3, 1, 0x5000, 3) == EXITED
    assert vmcs["EXIT_QUALIFICATION"] == 3 | 1 << 8
    vmcs["CR3_TARGET_COUNT"] = 2
    assert intercepts.intercept_mov_to_cr(vmcs.cells, 3, 1, 0x5000, 3) == GO_ON


def test_moves_from_control_registers() -> None:
    vmcs = protected()
    assert intercepts.intercept_mov_from_cr(vmcs.cells, 3, 0, 3) == GO_ON
    vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= PrimaryControl.CR3_STORE_EXITING
    assert intercepts.intercept_mov_from_cr(vmcs.cells, 3, 7, 3) == EXITED
    assert vmcs["EXIT_QUALIFICATION"] == 3 | 1 << 4 | 7 << 8
    assert intercepts.intercept_mov_from_cr(vmcs.cells, 0, 7, 3) == GO_ON
    vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= PrimaryControl.CR8_STORE_EXITING
    assert intercepts.intercept_mov_from_cr(vmcs.cells, 8, 9, 4) == EXITED
    assert vmcs["EXIT_QUALIFICATION"] == 8 | 1 << 4 | 9 << 8


@pytest.mark.parametrize("number", [1, 5, 6, 7, 9, 15])
def test_no_such_control_register(number: int) -> None:
    vmcs = protected()
    assert intercepts.intercept_mov_to_cr(vmcs.cells, number, 0, 0, 3) == RAISE_UD
    assert intercepts.intercept_mov_from_cr(vmcs.cells, number, 0, 3) == RAISE_UD


def test_cr2_never_exits_and_cr8_by_its_control() -> None:
    vmcs = with_primary(PrimaryControl.CR8_LOAD_EXITING)
    assert intercepts.intercept_mov_to_cr(vmcs.cells, 2, 0, 5, 3) == GO_ON
    assert intercepts.intercept_mov_to_cr(vmcs.cells, 8, 0, 5, 3) == EXITED
    user = protected(3)
    assert intercepts.intercept_mov_to_cr(user.cells, 0, 0, 0, 3) == RAISE_GP
    assert intercepts.intercept_mov_from_cr(user.cells, 0, 0, 3) == RAISE_GP


def test_clts_exits_if_the_guest_sees_ts_set_and_it_is_the_hosts() -> None:
    vmcs = protected()
    assert intercepts.intercept_clts(vmcs.cells, 2) == GO_ON
    vmcs["CR0_GUEST_HOST_MASK"] = 1 << 3
    assert intercepts.intercept_clts(vmcs.cells, 2) == GO_ON
    vmcs["CR0_READ_SHADOW"] = 1 << 3
    assert intercepts.intercept_clts(vmcs.cells, 2) == EXITED
    assert vmcs["EXIT_QUALIFICATION"] == 2 << 4


def test_lmsw() -> None:
    vmcs = protected()
    vmcs["CR0_GUEST_HOST_MASK"] = 0b0011
    vmcs["CR0_READ_SHADOW"] = 0b0001
    assert intercepts.intercept_lmsw(vmcs.cells, 0b1101, 0, 0, 3) == GO_ON
    # LMSW cannot clear PE.
    assert intercepts.intercept_lmsw(vmcs.cells, 0b1100, 0, 0, 3) == GO_ON
    assert intercepts.intercept_lmsw(vmcs.cells, 0b0010, 1, 0x1234, 3) == EXITED
    assert vmcs["EXIT_QUALIFICATION"] == 3 << 4 | 1 << 6 | 0b0010 << 16
    assert vmcs["GUEST_LINEAR_ADDRESS"] == 0x1234
    vmcs["CR0_READ_SHADOW"] = 0
    assert intercepts.intercept_lmsw(vmcs.cells, 0b0001, 0, 0, 3) == EXITED
    assert vmcs["GUEST_LINEAR_ADDRESS"] == 0


def test_mov_dr_exits_before_the_privilege_check() -> None:
    vmcs = with_primary(PrimaryControl.MOV_DR_EXITING, cpl=3)
    assert intercepts.intercept_mov_dr(vmcs.cells, 7, 1, 3, 3) == EXITED
    assert vmcs[EXIT_REASON] == 29
    assert vmcs["EXIT_QUALIFICATION"] == 7 | 1 << 4 | 3 << 8


@pytest.mark.parametrize(
    ("index", "is_write", "byte", "bit"),
    [
        (0x10, 0, 0x2, 0),
        (0x174, 1, 2048 + 0x2E, 4),
        (0xC0000080, 0, 1024 + 0x10, 0),
        (0xC0000102, 1, 3072 + 0x20, 2),
    ],
)
def test_msr_bitmaps(index: int, is_write: int, byte: int, bit: int) -> None:
    vmcs, mem = protected(), memory()
    function = intercepts.intercept_wrmsr if is_write else intercepts.intercept_rdmsr
    assert function(vmcs.cells, mem, index, 2) == EXITED  # without bitmaps all exit
    vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= PrimaryControl.USE_MSR_BITMAPS
    vmcs["MSR_BITMAP_ADDRESS"] = 0x1000
    assert function(vmcs.cells, mem, index, 2) == GO_ON
    poke(mem, 0x1000 + byte, 1 << bit)
    assert function(vmcs.cells, mem, index, 2) == EXITED
    assert vmcs[EXIT_REASON] == 31 + is_write


def test_msrs_out_of_the_bitmaps_range_exit() -> None:
    vmcs = with_primary(PrimaryControl.USE_MSR_BITMAPS)
    vmcs["MSR_BITMAP_ADDRESS"] = 0x1000
    for index in (0x2000, 0xC0002000, 0xBFFFFFFF, 0xFFFFFFFF):
        assert intercepts.intercept_rdmsr(vmcs.cells, memory(), index, 2) == EXITED
    for index in (0x1FFF, 0xC0001FFF):
        assert intercepts.intercept_rdmsr(vmcs.cells, memory(), index, 2) == GO_ON


def test_msrs_are_privileged() -> None:
    vmcs = protected(3)
    assert intercepts.intercept_rdmsr(vmcs.cells, memory(), 0x10, 2) == RAISE_GP
    assert intercepts.intercept_wrmsr(vmcs.cells, memory(), 0x10, 2) == RAISE_GP


def io(vmcs: Vmcs, mem: Memory, port: int, size: int = 1, **flags: int) -> int:
    on = flags.get
    return intercepts.intercept_io(
        vmcs.cells,
        mem,
        port,
        size,
        on("is_in", 0),
        on("string", 0),
        on("rep", 0),
        on("immediate", 0),
        2,
    )


def test_unconditional_io() -> None:
    vmcs = with_primary(PrimaryControl.UNCONDITIONAL_IO_EXITING)
    assert io(vmcs, memory(), 0x3F8, 1, is_in=1) == EXITED
    assert vmcs[EXIT_REASON] == 30
    assert vmcs["EXIT_QUALIFICATION"] == 0x3F8 << 16 | 1 << 3
    assert io(vmcs, memory(), 0x1F0, 4, string=1, rep=1) == EXITED
    assert vmcs["EXIT_QUALIFICATION"] == 0x1F0 << 16 | 3 | 1 << 4 | 1 << 5
    intercepts.record_string_io(vmcs.cells, 0x8000, 1, 3)
    assert vmcs["GUEST_LINEAR_ADDRESS"] == 0x8000
    assert vmcs["VM_EXIT_INSTRUCTION_INFORMATION"] == 1 << 7 | 3 << 15
    assert io(vmcs, memory(), 0x70, 2, immediate=1) == EXITED
    assert vmcs["EXIT_QUALIFICATION"] == 0x70 << 16 | 1 | 1 << 6
    assert io(protected(), memory(), 0x3F8) == GO_ON


def test_io_bitmaps_override_unconditional_exiting() -> None:
    vmcs = with_primary(PrimaryControl.UNCONDITIONAL_IO_EXITING, PrimaryControl.USE_IO_BITMAPS)
    vmcs["IO_BITMAP_A_ADDRESS"] = 0x1000
    vmcs["IO_BITMAP_B_ADDRESS"] = 0x2000
    mem = memory()
    poke(mem, 0x1000 + (0x61 >> 3), 1 << 1)
    poke(mem, 0x2000 + 0xFFF, 0x80)
    assert io(vmcs, mem, 0x60) == GO_ON
    assert io(vmcs, mem, 0x61) == EXITED
    assert io(vmcs, mem, 0x60, 2) == EXITED
    assert io(vmcs, mem, 0x5E, 4) == EXITED
    assert io(vmcs, mem, 0x7FFF, 2) == GO_ON
    assert io(vmcs, mem, 0xFFFF) == EXITED
    poke(mem, 0x2000 + 0xFFF, 0)
    assert io(vmcs, mem, 0xFFFF) == GO_ON
    assert io(vmcs, mem, 0xFFFF, 2) == EXITED  # it wraps around


def test_io_permission_by_iopl_and_by_the_tss() -> None:
    mem = memory()
    vmcs = protected()
    allowed = (GO_ON, 0, 0)
    assert intercepts.io_permission(vmcs.cells, mem, 0x80, 1) == allowed
    vmcs = protected(3)
    vmcs["GUEST_TR_BASE"] = 0x4000
    vmcs["GUEST_TR_LIMIT"] = 0x68 + 0x10
    poke(mem, 0x4000 + 102, 0x68)
    poke(mem, 0x4000 + 0x68 + 1, 0b1000)
    assert intercepts.io_permission(vmcs.cells, mem, 0x8, 1) == allowed
    assert intercepts.io_permission(vmcs.cells, mem, 0xB, 1) == (RAISE_GP, 0, 0)
    assert intercepts.io_permission(vmcs.cells, mem, 0x8, 4) == (RAISE_GP, 0, 0)
    # Both bytes that are read have to lie within the limit.
    assert intercepts.io_permission(vmcs.cells, mem, 0x78, 1) == allowed
    assert intercepts.io_permission(vmcs.cells, mem, 0x80, 1) == (RAISE_GP, 0, 0)
    vmcs["GUEST_TR_LIMIT"] = 102
    assert intercepts.io_permission(vmcs.cells, mem, 0x8, 1) == (RAISE_GP, 0, 0)
    vmcs["GUEST_RFLAGS"] |= 3 << 12
    assert intercepts.io_permission(vmcs.cells, mem, 0xB, 1) == allowed
    vmcs["GUEST_RFLAGS"] |= 1 << 17  # virtual-8086 mode does not ask for IOPL
    assert intercepts.io_permission(vmcs.cells, mem, 0xB, 1) == (RAISE_GP, 0, 0)


def test_a_tss_that_is_not_there_is_a_page_fault() -> None:
    vmcs = protected(3)
    vmcs["GUEST_CR0"] = 0x80000031
    vmcs["GUEST_TR_BASE"] = 0x4000
    mem = memory()
    assert intercepts.io_permission(vmcs.cells, mem, 8, 1) == (RAISE_PF, 0, 0x4000 + 102)


def test_real_mode_may_use_all_ports() -> None:
    assert intercepts.io_permission(Vmcs().cells, memory(), 0xFFFF, 4) == (GO_ON, 0, 0)


def test_task_switches_and_platform_events() -> None:
    vmcs = protected()
    assert intercepts.intercept_task_switch(vmcs.cells, 0x28, intercepts.TASK_BY_GATE, 2) == EXITED
    assert vmcs[EXIT_REASON] == 9
    assert vmcs["EXIT_QUALIFICATION"] == 0x28 | 3 << 30
    assert intercepts.platform_exit(vmcs.cells, True, 3, 0) == EXITED
    assert vmcs[EXIT_REASON] == 3
    assert intercepts.platform_exit(vmcs.cells, False, 6, 0) == GO_ON
    assert vmcs[EXIT_REASON] == 3


def test_windows() -> None:
    vmcs = with_primary(PrimaryControl.INTERRUPT_WINDOW_EXITING)
    assert intercepts.window_exit(vmcs.cells) == GO_ON
    vmcs["GUEST_RFLAGS"] |= 1 << 9
    vmcs["GUEST_INTERRUPTIBILITY_STATE"] = 1
    assert intercepts.window_exit(vmcs.cells) == GO_ON
    vmcs["GUEST_INTERRUPTIBILITY_STATE"] = 0
    assert intercepts.window_exit(vmcs.cells) == EXITED
    assert vmcs[EXIT_REASON] == 7
    vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= PrimaryControl.NMI_WINDOW_EXITING
    assert intercepts.window_exit(vmcs.cells) == EXITED
    assert vmcs[EXIT_REASON] == 8
    vmcs["GUEST_INTERRUPTIBILITY_STATE"] = 8
    assert intercepts.window_exit(vmcs.cells) == EXITED
    assert vmcs[EXIT_REASON] == 7
