"""The vocabulary agrees with itself, and with numbers looked up in the SDM by hand."""

import re
from enum import IntEnum, IntFlag
from types import ModuleType

import pytest

from trapgate.sdm import cells, controls, interruption, pagefault, reasons, state, vectors
from trapgate.sdm.cells import ENCODINGS
from trapgate.sdm.fields import EXTENSION_FIELDS, Field
from trapgate.sdm.vectors import ROWS, TABLE, FaultClass, Vector


def test_cells_follow_the_encodings_one_by_one() -> None:
    for cell, name in enumerate(ENCODINGS):
        assert getattr(cells, name) == cell, name
        assert Field[name].cell == cell


def test_encodings_ascend_before_the_extensions_and_never_collide() -> None:
    shipped = [field.value for field in Field if not field.extension]
    assert shipped == sorted(shipped)
    assert len(set(ENCODINGS.values())) == len(ENCODINGS)
    last = max(Field[name].cell for name in ENCODINGS if not Field[name].extension)
    assert all(field.cell > last for field in EXTENSION_FIELDS)


@pytest.mark.parametrize(
    ("name", "encoding", "width", "kind"),
    [
        ("GUEST_CS_SELECTOR", 0x0802, 16, "guest state"),
        ("MSR_BITMAP_ADDRESS", 0x2004, 64, "control"),
        ("GUEST_PHYSICAL_ADDRESS", 0x2400, 64, "exit information"),
        ("EXCEPTION_BITMAP", 0x4004, 32, "control"),
        ("EXIT_REASON", 0x4402, 32, "exit information"),
        ("HOST_IA32_SYSENTER_CS", 0x4C00, 32, "host state"),
        ("EXIT_QUALIFICATION", 0x6400, 64, "exit information"),
        ("GUEST_RIP", 0x681E, 64, "guest state"),
        ("HOST_RIP", 0x6C16, 64, "host state"),
        ("ANY_BIT_MASK", 0x430C, 32, "control"),
        ("PTBASE", 0x6300, 64, "control"),
    ],
)
def test_fields(name: str, encoding: int, width: int, kind: str) -> None:
    field = Field[name]
    assert (field.value, field.width, field.kind) == (encoding, width, kind)
    assert field.read_only == (kind == "exit information")


def test_only_64_bit_fields_have_a_high_half() -> None:
    assert Field.TSC_OFFSET.high == 0x2011
    assert Field.GUEST_RIP.high is None
    assert Field.EXCEPTION_BITMAP.high is None


READ_ONLY_EXTENSIONS = {
    "APIC_ACCESS_PAGE_IN_FORCE",
    "CRITERIA_TABLE_INSTRUCTIONS",
    "EPT_POINTER_IN_FORCE",
    "FAILED_CHECK",
    "FAILED_RULE",
    "PML_ADDRESS_IN_FORCE",
}


def test_extension_fields_are_controls_beyond_the_sdms_indexes() -> None:
    for field in EXTENSION_FIELDS:
        assert field.kind == (
            "exit information" if field.name in READ_ONLY_EXTENSIONS else "control"
        )
        assert not field & 1
        assert field >> 12 & 1 == 0
        assert field >> 15 == 0


def test_the_vector_table() -> None:
    assert [row.vector for row in TABLE] == sorted(ROWS)
    assert vectors.VECTORS_WITH_ERROR_CODE == (8, 10, 11, 12, 13, 14, 17, 21)
    assert sum(1 << n for n in (8, 10, 11, 12, 13, 14, 17, 21)) == vectors.ERROR_CODE_VECTORS
    assert vectors.CONTRIBUTORY_VECTORS == 0x00203C01
    assert vectors.PAGE_FAULT_VECTORS == 1 << 14 | 1 << 20
    assert ROWS[8].fault_class is FaultClass.DOUBLE_FAULT
    for vector in Vector:
        assert getattr(vectors, vector.name) == vector.value


@pytest.mark.parametrize(
    ("module", "enum", "prefix"),
    [
        (reasons, reasons.ExitReason, "REASON"),
        (interruption, interruption.InterruptionType, "TYPE"),
        (pagefault, pagefault.PageFaultCode, "PFEC"),
        (controls, controls.PinControl, "PIN"),
        (controls, controls.PrimaryControl, "PRIMARY"),
        (controls, controls.SecondaryControl, "SECONDARY"),
        (controls, controls.ExitControl, "EXIT"),
        (controls, controls.EntryControl, "ENTRY"),
    ],
)
def test_plain_integers_are_the_enumerations(
    module: ModuleType, enum: type[IntEnum | IntFlag], prefix: str
) -> None:
    for name, member in enum.__members__.items():
        plain = getattr(module, f"{prefix}_{name}")
        assert type(plain) is int
        assert plain == member.value, name


def test_vm_instruction_errors() -> None:
    plain = {n: v for n, v in vars(reasons).items() if re.match(r"ERROR_", n)}
    assert plain
    for name, number in plain.items():
        assert reasons.VmInstructionError[name.removeprefix("ERROR_")] == number


def test_bits_looked_up_by_hand() -> None:
    assert controls.PrimaryControl.HLT_EXITING == 1 << 7
    assert controls.PrimaryControl.USE_MSR_BITMAPS == 1 << 28
    assert controls.ExitControl.SAVE_PREEMPTION_TIMER == 1 << 22
    assert controls.EntryControl.IA32E_MODE_GUEST == 1 << 9
    assert state.CR4_SMAP == 1 << 21
    assert state.RFLAGS_VM == 1 << 17
    assert pagefault.PageFaultCode.SGX == 1 << 15
    assert reasons.ExitReason(52).name == "PREEMPTION_TIMER"
    assert reasons.ExitReason(55).name == "XSETBV"


@pytest.mark.parametrize("group", ["PIN", "PRIMARY", "SECONDARY", "EXIT", "ENTRY"])
def test_what_must_be_1_may_be_1(group: str) -> None:
    must = getattr(controls, f"{group}_ALLOWED_0")
    may = getattr(controls, f"{group}_ALLOWED_1")
    assert must & ~may == 0
