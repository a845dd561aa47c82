import pickle
from pathlib import Path

import pytest

from trapgate.decision.criteria_rules import Action
from trapgate.errors import (
    ExtensionError,
    FieldValueError,
    ReadOnlyFieldError,
    TrapgateError,
    UnknownFieldError,
    VmcsError,
    VmcsFileError,
)
from trapgate.sdm.fields import EXTENSION_FIELDS, Field
from trapgate.vmcs.capabilities import capabilities
from trapgate.vmcs.file import parse_settings
from trapgate.vmcs.vmcs import Vmcs


def test_names_members_and_encodings_are_the_same_field() -> None:
    vmcs = Vmcs()
    vmcs["GUEST_CR3"] = 0x1000
    assert vmcs[Field.GUEST_CR3] == vmcs.read(0x6802) == 0x1000
    vmcs.write(0x6802, 0x2000)
    assert vmcs["GUEST_CR3"] == 0x2000


def test_values_are_unsigned_and_cells_are_signed() -> None:
    vmcs = Vmcs()
    vmcs["GUEST_RIP"] = 0xFFFF800000000000
    assert vmcs["GUEST_RIP"] == 0xFFFF800000000000
    assert vmcs.cells[Field.GUEST_RIP.cell] == -(1 << 47)
    vmcs["EXCEPTION_BITMAP"] = 0xFFFFFFFF
    assert vmcs.cells[Field.EXCEPTION_BITMAP.cell] == 0xFFFFFFFF


def test_the_high_half_of_a_64_bit_field() -> None:
    vmcs = Vmcs()
    vmcs["TSC_OFFSET"] = 0x11111111_22222222
    vmcs.write(0x2011, 0x33333333)
    assert vmcs["TSC_OFFSET"] == 0x33333333_22222222
    assert vmcs.read(0x2011) == 0x33333333
    with pytest.raises(FieldValueError):
        vmcs.write(0x2011, 1 << 32)
    for encoding in (0x6803, 0x4005, 0x7000, 0x1_0000):
        with pytest.raises(UnknownFieldError, match="encoding"):
            vmcs.read(encoding)


def test_the_initial_guest_is_at_the_reset_vector() -> None:
    vmcs = Vmcs()
    assert vmcs["GUEST_CS_BASE"] + vmcs["GUEST_RIP"] == 0xFFFFFFF0
    assert vmcs["GUEST_RFLAGS"] == 2
    assert vmcs["VMCS_LINK_POINTER"] == 0xFFFFFFFFFFFFFFFF
    vmcs["GUEST_RIP"] = 5
    vmcs.launched = True
    vmcs.reset()
    assert vmcs == Vmcs()
    assert vmcs.launched is False


def test_a_copy_is_independent() -> None:
    vmcs = Vmcs("vt-x")
    twin = vmcs.copy()
    assert twin == vmcs
    twin["GUEST_RSP"] = 8
    assert twin != vmcs
    assert vmcs != "a VMCS"
    assert "vt-x" in repr(vmcs)


@pytest.mark.parametrize(("name", "value"), [("GUEST_CS_SELECTOR", 1 << 16), ("GUEST_RIP", -1)])
def test_a_value_must_fit(name: str, value: int) -> None:
    with pytest.raises(FieldValueError, match=rf"^{name}: .* unsigned number of"):
        Vmcs()[name] = value


def test_exit_information_is_the_processors() -> None:
    with pytest.raises(ReadOnlyFieldError, match=r"^EXIT_REASON: "):
        Vmcs()["EXIT_REASON"] = 0


def test_an_unknown_field_and_the_nearest_name() -> None:
    with pytest.raises(UnknownFieldError, match="did you mean GUEST_RFLAGS"):
        Vmcs()["GUEST_RFLAG"]
    with pytest.raises(KeyError):
        Vmcs()["xyzzy"]


def test_vt_x_has_no_extensions() -> None:
    vmcs = Vmcs("vt-x")
    for field in EXTENSION_FIELDS:
        with pytest.raises(ExtensionError, match="extended"):
            vmcs[field] = 0
        with pytest.raises(ExtensionError):
            vmcs.read(field)
    assert not set(vmcs) & EXTENSION_FIELDS
    assert set(Vmcs()) == set(Field)
    with pytest.raises(ExtensionError, match="not a profile"):
        Vmcs("amd-v")  # type: ignore[arg-type]


def test_capabilities() -> None:
    extended, shipped = capabilities("extended"), capabilities("vt-x")
    assert extended.has(Field.ANY_BIT_MASK)
    assert extended.has("figure-5")
    assert extended.has("ANY_BIT_MASK")
    assert extended.has("PTBASE")
    assert extended.has("figure-8")
    assert extended.has("EXIT_THROUGH_IDT")
    assert not shipped.has("figure-8")
    assert shipped.has("figure-3")
    assert not shipped.has("figure-4")
    assert not shipped.has(Field.ANY_BIT_MASK)
    with pytest.raises(ExtensionError):
        capabilities("svm")  # type: ignore[arg-type]


@pytest.mark.parametrize(("bits", "code"), [(32, 0xC09B), (64, 0xA09B)])
def test_flat_segments(bits: int, code: int) -> None:
    vmcs = Vmcs()
    vmcs.set_flat_segments(bits)  # type: ignore[arg-type]
    assert vmcs["GUEST_CS_ACCESS_RIGHTS"] == code
    assert vmcs["GUEST_SS_ACCESS_RIGHTS"] == 0xC093
    assert (vmcs["GUEST_CS_SELECTOR"], vmcs["GUEST_DS_SELECTOR"]) == (8, 16)
    assert bool(vmcs["VM_ENTRY_CONTROLS"] & 1 << 9) == (bits == 64)
    vmcs.set_flat_segments(32, user=True)
    assert vmcs["GUEST_CS_ACCESS_RIGHTS"] == 0xC0FB
    assert (vmcs["GUEST_CS_SELECTOR"], vmcs["GUEST_SS_SELECTOR"]) == (0x1B, 0x23)


POLICY = """
profile = "vt-x"
[controls]
pin = ["NMI_EXITING"]
primary = ["HLT_EXITING", "-SECONDARY_CONTROLS"]
exceptions = ["PF", "GP"]
[fields]
PAGE_FAULT_ERROR_CODE_MASK = 0x9
PAGE_FAULT_ERROR_CODE_MATCH = "0x1"
GUEST_CR3 = "0xFFFF800000000000"
"""


def test_a_file_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    vmcs = Vmcs.load(path)
    assert vmcs.profile == "vt-x"
    assert vmcs["PIN_BASED_CONTROLS"] == 0x16 | 8
    assert vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] == 0x04006172 | 1 << 7
    assert vmcs["EXCEPTION_BITMAP"] == 1 << 14 | 1 << 13
    assert vmcs["PAGE_FAULT_ERROR_CODE_MASK"] == 9
    assert vmcs["PAGE_FAULT_ERROR_CODE_MATCH"] == 1
    assert vmcs["GUEST_CR3"] == 0xFFFF800000000000
    assert Vmcs.from_toml(vmcs.to_toml()) == vmcs


def test_applied_settings_leave_the_rest_alone() -> None:
    vmcs = Vmcs()
    vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= 1 << 24
    vmcs["EXCEPTION_BITMAP"] = 1
    vmcs.apply(parse_settings('[controls]\nprimary = ["HLT_EXITING"]\nexceptions = ["PF"]'))
    assert vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] >> 24 & 1
    assert vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] >> 7 & 1
    assert vmcs["EXCEPTION_BITMAP"] == 1 | 1 << 14


def test_settings_apply_as_a_whole_or_not_at_all() -> None:
    vmcs = Vmcs()
    with pytest.raises(ReadOnlyFieldError):
        vmcs.apply(parse_settings("[fields]\nGUEST_RIP = 1\nEXIT_REASON = 1"))
    assert vmcs == Vmcs()


def test_fault_filters_by_name() -> None:
    text = """
    [fields]
    FAULT_FILTER = "figure-8"
    FAULT_FILTER_ORDER = "paragraph-67"
    PTBASE = 0xC0000000
    """
    vmcs = Vmcs.from_toml(text)
    assert vmcs["FAULT_FILTER"] == 2
    assert vmcs["FAULT_FILTER_ORDER"] == 3
    assert vmcs["PTBASE"] == 0xC0000000
    assert Vmcs.from_toml(vmcs.to_toml()) == vmcs


BAD = [
    ("= 1", VmcsFileError, "is not TOML"),
    ("[fields]\nGUEST_RIPP = 1", UnknownFieldError, "did you mean GUEST_RIP"),
    ("[fields]\nGUEST_RIP = true", FieldValueError, "not an integer"),
    ("[fields]\nGUEST_RIP = 1.5", FieldValueError, "not an integer"),
    ("[fields]\nGUEST_RIP = 'many'", FieldValueError, "not an integer"),
    ("[fields]\nGUEST_CS_SELECTOR = 0x10000", FieldValueError, "16 bits"),
    ("[fields]\nGUEST_RIP = -1", FieldValueError, "unsigned"),
    ("[fields]\nEXIT_REASON = 1", ReadOnlyFieldError, "leave it out"),
    ("[fields]\nFAULT_FILTER = 4", FieldValueError, "use one of none, figure-7"),
    ("[fields]\nFAULT_FILTER = 'figure-9'", FieldValueError, "unknown; use one of none"),
    ("[fields]\nFAULT_FILTER_ORDER = -1", FieldValueError, "use one of figure-6"),
    ("[fields]\nPTBASE = 0xC0001000", FieldValueError, "4 MB aligned"),
    ("profile = 'vt-x'\n[fields]\nFAULT_FILTER = 'figure-8'", ExtensionError, "profile"),
    ("profile = 'vt-x'\n[fields]\nANY_BIT_MASK = 1", ExtensionError, "profile"),
    ("profile = 'svm'", VmcsFileError, "not a profile"),
    ("profile = ['seed']", VmcsFileError, "not a profile"),
    ("field = 1", VmcsFileError, "unknown key"),
    ("fields = 1", VmcsFileError, r"write \[fields\]"),
    ("[controls]\nping = []", UnknownFieldError, "group of controls"),
    ("[controls]\npin = 3", VmcsFileError, "list of names"),
    ("[controls]\npin = [3]", VmcsFileError, "list of names"),
    ("[controls]\npin = ['NMI_EXITIN']", UnknownFieldError, "did you mean NMI_EXITING"),
    ("[controls]\nexceptions = ['PG']", UnknownFieldError, "no control 'PG'"),
    ("[controls]\npin = ['NMI_EXITING', '-NMI_EXITING']", FieldValueError, "both on and off"),
]


@pytest.mark.parametrize(("text", "error", "says"), BAD)
def test_bad_files_say_on_one_line_what_and_where(
    tmp_path: Path, text: str, error: type[VmcsError], says: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(error, match=says) as caught:
        Vmcs.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert isinstance(caught.value, TrapgateError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(VmcsFileError, match="No such file"):
        Vmcs.load(tmp_path / "absent.toml")
    with pytest.raises(VmcsFileError, match="cannot be read"):
        Vmcs.load(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(VmcsFileError, match="not UTF-8"):
        Vmcs.load(binary)


def test_a_seed_file_does_not_apply_to_a_vt_x_vmcs() -> None:
    with pytest.raises(VmcsFileError, match='asks for "extended"'):
        Vmcs("vt-x").apply(parse_settings('profile = "extended"'))


RULES = """
[[rules]]
when = "vector == PF and cpl == 3 and below_stack <= 64"
then = "deliver"

[[rules]]
when = "write and (not user or page in bitmap('mine'))"
then = "exit"

[[rules]]
then = "next"

[bitmaps]
mine = [0x100, 0x101, 0x108]
"""


def test_rules_in_files() -> None:
    made = Vmcs.from_toml(RULES)
    actions = [rule.action for rule in made.criteria_table]
    assert actions == [Action.DELIVER, Action.EXIT, Action.EXIT, Action.NEXT]
    assert [len(rule.clauses) for rule in made.criteria_table] == [3, 2, 2, 0]
    assert Vmcs.from_toml(made.to_toml()) == made
    assert "numbers_0 = [256, 257, 264]" in made.to_toml()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rules = 3", "write [[rules]]"),
        ('[[rules]]\nwhen = "cpl == 3"', "rules[0].then"),
        ('[[rules]]\nthen = "exits"', "rules[0].then: 'exits': did you mean exit?"),
        ('[[rules]]\nwhen = 3\nthen = "exit"', "rules[0].when: 3 is not a condition in quotes"),
        ('[[rules]]\nif = "all"\nthen = "exit"', "unknown key"),
        (
            '[[rules]]\nthen = "next"\n[[rules]]\nwhen = "cpl == 4"\nthen = "exit"',
            "rules[1].when: column 8: 0x4 is too wide",
        ),
        ("[bitmaps]\nmine = [-1]", "bitmaps.mine: must be a list of integers"),
        ('profile = "vt-x"\n[[rules]]\nthen = "exit"', 'use profile "extended"'),
        ('[[rules]]\nthen = "exit"\n' * 65, "at most 64 fit"),
    ],
)
def test_rules_that_are_wrong(text: str, words: str) -> None:
    with pytest.raises(VmcsError) as caught:
        Vmcs.from_toml(text, path="t.toml")
    assert words in str(caught.value)
    assert "t.toml" in str(caught.value)
