"""What sensitive instructions do when they do not exit."""

import numpy as np
import pytest

from trapgate.compiler.dialect import Cells
from trapgate.instructions import effects, msrs
from trapgate.instructions.intercepts import GO_ON, RAISE_DB, RAISE_GP, RAISE_UD
from trapgate.sdm import registers
from trapgate.vmcs.vmcs import Vmcs

LONG_MODE = 1 << 8
ACTIVE = 1 << 10


def protected() -> Vmcs:
    vmcs = Vmcs()
    vmcs["GUEST_CR0"] = 0x31
    vmcs.set_flat_segments(32)
    return vmcs


def file() -> Cells:
    return np.zeros(len(registers.NAMES), dtype=np.int64)


def test_the_guest_sees_shadows_where_the_host_owns() -> None:
    vmcs = protected()
    vmcs["CR0_GUEST_HOST_MASK"] = 1 << 31 | 1 << 3
    vmcs["CR0_READ_SHADOW"] = 1 << 3 | 1 << 16
    assert effects.cr0_seen(vmcs.cells) == 0x31 | 1 << 3
    vmcs["GUEST_CR4"] = 0x2030
    assert effects.cr4_seen(vmcs.cells) == 0x30  # VMXE is hidden in a new VMCS


def test_mov_to_cr0_keeps_the_hosts_bits() -> None:
    vmcs = protected()
    vmcs["CR0_GUEST_HOST_MASK"] = 1 << 3
    assert effects.write_cr0(vmcs.cells, 0x10031 | 1 << 3) == GO_ON
    assert vmcs["GUEST_CR0"] == 0x10031


@pytest.mark.parametrize(
    "value",
    [
        1 << 32 | 0x31,
        0x31 | 1 << 29,  # NW without CD
        0x80000030,  # PG without PE
        0x11,  # NE is fixed to 1
    ],
)
def test_what_cr0_cannot_hold(value: int) -> None:
    vmcs = protected()
    assert effects.write_cr0(vmcs.cells, value) == RAISE_GP
    assert vmcs["GUEST_CR0"] == 0x31


def test_without_unrestricted_guest_paging_stays_on() -> None:
    vmcs = protected()
    vmcs["GUEST_CR0"] = 0x80000031
    vmcs["SECONDARY_PROCESSOR_BASED_CONTROLS"] = 0
    assert effects.write_cr0(vmcs.cells, 0x31) == RAISE_GP
    vmcs["SECONDARY_PROCESSOR_BASED_CONTROLS"] = 1 << 7
    assert effects.write_cr0(vmcs.cells, 0x31) == GO_ON


def test_paging_turns_long_mode_on_and_off() -> None:
    vmcs = protected()
    vmcs["GUEST_IA32_EFER"] = LONG_MODE
    assert effects.write_cr0(vmcs.cells, 0x80000031) == RAISE_GP  # no PAE
    vmcs["GUEST_CR4"] |= 1 << 5
    assert effects.write_cr0(vmcs.cells, 0x80000031) == GO_ON
    assert vmcs["GUEST_IA32_EFER"] == LONG_MODE | ACTIVE
    assert effects.write_cr4(vmcs.cells, 0x2000) == RAISE_GP  # PAE stays
    assert effects.write_cr0(vmcs.cells, 0x31) == GO_ON
    assert vmcs["GUEST_IA32_EFER"] == LONG_MODE
    vmcs["GUEST_CR0"] = 0x80000031
    vmcs["GUEST_IA32_EFER"] = LONG_MODE | ACTIVE
    vmcs.set_flat_segments(64)
    assert effects.write_cr0(vmcs.cells, 0x31) == RAISE_GP  # from 64-bit code


def test_pcids_are_for_ia32e_mode_and_begin_with_none() -> None:
    vmcs = Vmcs()
    vmcs.set_flat_segments(64)
    before = vmcs["GUEST_CR4"] | 1 << 13 | 1 << 5
    with_pcids = before | 1 << 17
    vmcs["GUEST_CR0"], vmcs["GUEST_CR4"], vmcs["GUEST_CR3"] = 0x80000031, before, 0x5001
    assert effects.write_cr4(vmcs.cells, with_pcids) == RAISE_GP
    vmcs["GUEST_CR3"] = 0x5000
    vmcs["GUEST_IA32_EFER"] = 0
    assert effects.write_cr4(vmcs.cells, with_pcids) == RAISE_GP
    vmcs["GUEST_IA32_EFER"] = 0x500
    assert effects.write_cr4(vmcs.cells, with_pcids) == GO_ON
    assert effects.write_cr3(vmcs.cells, 0x5001) == GO_ON
    # Only turning them on looks at CR3, and paging cannot be left with them.
    assert effects.write_cr4(vmcs.cells, with_pcids) == GO_ON
    vmcs["GUEST_CS_ACCESS_RIGHTS"] = 0xC09B
    assert effects.write_cr0(vmcs.cells, 0x31) == RAISE_GP
    assert effects.write_cr4(vmcs.cells, before) == GO_ON
    assert effects.write_cr0(vmcs.cells, 0x31) == GO_ON


def test_cr3_and_cr4_refuse_reserved_bits() -> None:
    vmcs = protected()
    assert effects.write_cr3(vmcs.cells, 1 << 40) == RAISE_GP
    assert effects.write_cr3(vmcs.cells, -(1 << 63)) == RAISE_GP
    assert effects.write_cr3(vmcs.cells, 0xFF_FFFF_F018) == GO_ON
    assert effects.write_cr4(vmcs.cells, 1 << 12) == RAISE_GP
    vmcs["CR4_GUEST_HOST_MASK"] = 0
    assert effects.write_cr4(vmcs.cells, 0x10) == RAISE_GP  # VMXE is fixed to 1
    assert effects.write_cr4(vmcs.cells, 0x2010) == GO_ON


def test_reading_and_writing_by_number() -> None:
    vmcs, r = protected(), file()
    for number, value in ((2, -4096), (3, 0x5000), (8, 9), (0, 0x33), (4, 0x10)):
        assert effects.write_cr(vmcs.cells, r, number, value) == GO_ON
        assert effects.read_cr(vmcs.cells, r, number) == value
    assert effects.write_cr(vmcs.cells, r, 8, 16) == RAISE_GP


def test_clts_and_lmsw() -> None:
    vmcs = protected()
    vmcs["GUEST_CR0"] |= 1 << 3
    effects.clear_task_switched(vmcs.cells)
    assert vmcs["GUEST_CR0"] == 0x31
    effects.load_machine_status(vmcs.cells, 0xFFFE)
    assert vmcs["GUEST_CR0"] == 0x3F  # PE is not cleared, ET and NE not touched
    vmcs["CR0_GUEST_HOST_MASK"] = 1 << 3
    effects.clear_task_switched(vmcs.cells)
    effects.load_machine_status(vmcs.cells, 0)
    assert vmcs["GUEST_CR0"] == 0x39
    real = Vmcs()
    effects.load_machine_status(real.cells, 1)
    assert real["GUEST_CR0"] & 1


def test_debug_registers() -> None:
    vmcs, r = protected(), file()
    assert effects.write_dr(vmcs.cells, r, 0, -1) == GO_ON
    assert effects.read_dr(vmcs.cells, r, 0) == (GO_ON, -1)
    assert effects.write_dr(vmcs.cells, r, 7, 0xFFFF_FFFF & ~(1 << 13)) == GO_ON
    assert vmcs["GUEST_DR7"] == 0xFFFF07FF
    assert effects.write_dr(vmcs.cells, r, 4, 0) == GO_ON  # an alias of DR6
    assert effects.read_dr(vmcs.cells, r, 6) == (GO_ON, 0xFFFF0FF0)
    assert effects.write_dr(vmcs.cells, r, 6, 1 << 32) == RAISE_GP
    assert effects.write_dr(vmcs.cells, r, 8, 0) == RAISE_UD
    vmcs["GUEST_CR4"] |= 1 << 3
    assert effects.read_dr(vmcs.cells, r, 5) == (RAISE_UD, 0)
    vmcs["GUEST_DR7"] = 0x2400
    assert effects.read_dr(vmcs.cells, r, 7) == (RAISE_DB, 0)
    vmcs.set_flat_segments(32, user=True)
    assert effects.read_dr(vmcs.cells, r, 7) == (RAISE_GP, 0)


def test_general_detect_can_be_armed_by_the_guest() -> None:
    vmcs, r = protected(), file()
    assert effects.write_dr(vmcs.cells, r, 7, 1 << 13) == GO_ON
    assert effects.write_dr(vmcs.cells, r, 7, 0) == RAISE_DB


def test_the_time_stamp_has_its_offset() -> None:
    vmcs = protected()
    vmcs["TSC_OFFSET"] = (1 << 64) - 100
    assert effects.time_stamp(vmcs.cells, 1000) == 1000
    vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= 1 << 3
    assert effects.time_stamp(vmcs.cells, 1000) == 900
    assert msrs.read_msr(vmcs.cells, file(), 0x10, 1000) == (GO_ON, 900)
    assert msrs.write_msr(vmcs.cells, file(), 0x10, 0) == RAISE_GP


def test_hlt_is_an_activity_state() -> None:
    vmcs = protected()
    effects.halt(vmcs.cells)
    assert vmcs["GUEST_ACTIVITY_STATE"] == 1


MSRS = {
    0x174: "GUEST_IA32_SYSENTER_CS",
    0x175: "GUEST_IA32_SYSENTER_ESP",
    0x176: "GUEST_IA32_SYSENTER_EIP",
    0x1D9: "GUEST_IA32_DEBUGCTL",
    0x277: "GUEST_IA32_PAT",
    0xC0000080: "GUEST_IA32_EFER",
    0xC0000100: "GUEST_FS_BASE",
    0xC0000101: "GUEST_GS_BASE",
}


@pytest.mark.parametrize("index", MSRS)
def test_msrs_in_the_vmcs(index: int) -> None:
    vmcs, r = protected(), file()
    assert msrs.write_msr(vmcs.cells, r, index, 1) == GO_ON
    assert vmcs[MSRS[index]] == 1
    assert msrs.read_msr(vmcs.cells, r, index, 0) == (GO_ON, 1)


@pytest.mark.parametrize("index", [*range(0xC0000081, 0xC0000085), 0xC0000102, 0xC0000103])
def test_msrs_in_the_register_file(index: int) -> None:
    vmcs, r = protected(), file()
    assert msrs.write_msr(vmcs.cells, r, index, 0x1234) == GO_ON
    assert msrs.read_msr(vmcs.cells, r, index, 0) == (GO_ON, 0x1234)
    assert np.count_nonzero(r) == 1


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0xC0000100, 1 << 47),
        (0xC0000082, 1 << 62),
        (0x277, 2),
        (0x277, 8),
        (0x277, 3 << 56),
        (0x1D9, 4),
        (0xC0000103, 1 << 32),
        (0xC0000080, 1 << 1),
        (0x1B, 0),
        (0xC0010000, 0),
    ],
)
def test_what_msrs_refuse(index: int, value: int) -> None:
    vmcs, r = protected(), file()
    before = vmcs.copy()
    assert msrs.write_msr(vmcs.cells, r, index, value) == RAISE_GP
    assert vmcs == before


def test_the_upper_half_of_fmask_masks_nothing() -> None:
    """SDM, figure "MSRs Used by SYSCALL and SYSRET": bits 63:32 are reserved, for RFLAGS has none
    to mask. Hedron writes all ones, on processors of which none faults; Bochs reads EDX as 0."""
    vmcs, r = protected(), file()
    assert msrs.write_msr(vmcs.cells, r, 0xC0000084, -1) == GO_ON
    assert msrs.read_msr(vmcs.cells, r, 0xC0000084, 0) == (GO_ON, 0xFFFFFFFF)


def test_upper_half_addresses_are_canonical() -> None:
    vmcs, r = protected(), file()
    assert msrs.write_msr(vmcs.cells, r, 0xC0000101, -(1 << 47)) == GO_ON
    assert vmcs["GUEST_GS_BASE"] == 0xFFFF800000000000


def test_efer() -> None:
    vmcs, r = protected(), file()
    assert msrs.write_msr(vmcs.cells, r, 0xC0000080, LONG_MODE | ACTIVE) == GO_ON
    assert vmcs["GUEST_IA32_EFER"] == LONG_MODE  # LMA is the processor's
    vmcs["GUEST_CR0"] |= 1 << 31
    assert msrs.write_msr(vmcs.cells, r, 0xC0000080, 0) == RAISE_GP
    assert msrs.write_msr(vmcs.cells, r, 0xC0000080, LONG_MODE | 1) == GO_ON
    assert msrs.read_msr(vmcs.cells, r, 0x1B, 0) == (RAISE_GP, 0)


def test_sysenter_cs_is_a_field_of_32_bits() -> None:
    vmcs, r = protected(), file()
    assert msrs.write_msr(vmcs.cells, r, 0x174, 5 << 32 | 8) == GO_ON
    assert vmcs["GUEST_IA32_SYSENTER_CS"] == 8
