"""Whatever prints a VMCS, and however it was pasted: the fields are read as they were printed."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance.vmx.good import good_fields
from tests.debug import foreign_dumps as fd
from trapgate.debug.doctor import DumpedVmcs, examine, read_capabilities, read_dump
from trapgate.debug.doctor.fields import FIELDS
from trapgate.debug.doctor.names import field_called
from trapgate.debug.doctor.template import KINDS, as_lines, template

SPREAD = {
    "GUEST_CR3": 0x1A02F000,
    "GUEST_RIP": 0xFFFFFFFF81234560,
    "GUEST_RSP": 0xFFFFC90000123F50,
    "GUEST_GS_BASE": 0xFFFF88003F400000,
    "GUEST_RFLAGS": 0x246,
    "HOST_RIP": 0xFFFFFFFFC0AB0620,
    "HOST_GS_BASE": 0xFFFF8D799F980000,
    "CR4_GUEST_HOST_MASK": 0xFFFFFFFFFFFFE871,
    "TSC_OFFSET": 0xFFFFBE0284927B21,
    "VIRTUAL_PROCESSOR_IDENTIFIER": 0x5A02,
}


LINE_FORMS = ("virtualbox", "names", "haxm", "columns", "commented", "hyperdbg")
"""Assignments a line each are no more that when their lines are broken."""
TABLE_WRAPPED = ("sregs table", "wrapped")
"""Nor are rows of a table; and a decimal number of any length cannot be mended if it is broken."""


def fields() -> dict[str, int]:
    return {**dict.fromkeys(FIELDS, 0), **good_fields(64), **SPREAD}


@pytest.mark.parametrize(
    ("form", "pasted"),
    [
        (form, pasted)
        for form in fd.FORMS
        for pasted in fd.PASTED
        if form not in LINE_FORMS or pasted not in ("wrapped", "terminal")
    ],
)
def test_a_vmcs_is_read_as_printed(form: str, pasted: str) -> None:
    printed = fields()
    text = fd.PASTED[pasted](fd.FORMS[form](printed))
    (dumped,) = read_dump(f"some words before\n{text}\nand after\n")
    read = dict(dumped.values)
    for made_up in ("EXIT_REASON", "VM_EXIT_INSTRUCTION_LENGTH"):
        if form.startswith(("kvm", "xen")):
            del read[made_up]
    assert len(read) > 60
    assert read == {name: printed[name] for name in read}
    assert examine(dumped).passes


@pytest.mark.parametrize(
    ("form", "pasted"),
    [
        (form, pasted)
        for form in fd.REGISTERS
        for pasted in fd.PASTED
        if not (pasted == "terminal" and form != "qemu") and (form, pasted) != TABLE_WRAPPED
    ],
)
def test_registers_are_read_as_printed(form: str, pasted: str) -> None:
    printed = fields()
    (dumped,) = read_dump(fd.PASTED[pasted](fd.REGISTERS[form](printed)))
    read = {n: v for n, v in dumped.values.items() if n not in dumped.assumed}
    assert len(read) > 35
    assert read == {name: printed[name] for name in read}
    assert dumped.assumed == {
        "VM_ENTRY_CONTROLS",
        "PRIMARY_PROCESSOR_BASED_CONTROLS",
        "SECONDARY_PROCESSOR_BASED_CONTROLS",
    }
    assert examine(dumped).passes


def test_a_dump_whose_beginning_was_not_copied_is_read() -> None:
    printed = {**fields(), "GUEST_CS_ACCESS_RIGHTS": 0xAF9B}
    for form in (fd.FORMS["kvm 6"], fd.xen):
        lines = form(printed)
        begin = next(n for n, line in enumerate(lines) if line.startswith("CR4"))
        (dumped,) = read_dump(fd.dmesg(lines[begin:]))
        assert dumped["GUEST_CS_ACCESS_RIGHTS"] == 0xAF9B
        assert dumped["HOST_RIP"] == printed["HOST_RIP"]


def test_two_dumps_in_one_log_are_two_answers() -> None:
    first, second = fields(), {**fields(), "GUEST_RFLAGS": 0}
    text = fd.dmesg(fd.kvm(first, new=True) + fd.kvm(second, new=True) + fd.kvm(second, new=True))
    assert [p["GUEST_RFLAGS"] for p in read_dump(text)] == [0x246, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_vmcs_reads_back_and_passes(kind: str) -> None:
    (dumped,) = read_dump("\n".join(as_lines(template(kind))))
    assert {n: v for n, v in template(kind).values.items() if n in dumped} == dumped.values
    assert examine(dumped).passes
    assert not examine(dumped).unchecked


NAMES = {
    "GUEST_CS_AR_BYTES": "GUEST_CS_ACCESS_RIGHTS",
    "VMX_VMCS32_GUEST_CS_ACCESS_RIGHTS": "GUEST_CS_ACCESS_RIGHTS",
    "VMCS_32BIT_GUEST_CS_ACCESS_RIGHTS": "GUEST_CS_ACCESS_RIGHTS",
    "kGuestTrAccessRights": "GUEST_TR_ACCESS_RIGHTS",
    "VMCS_CTRL_PIN_BASED_VM_EXECUTION_CONTROLS": "PIN_BASED_CONTROLS",
    "VMX_VMCS32_CTRL_PROC_EXEC2": "SECONDARY_PROCESSOR_BASED_CONTROLS",
    "VMCS_32BIT_CONTROL_SECONDARY_VMEXEC_CONTROLS": "SECONDARY_PROCESSOR_BASED_CONTROLS",
    "VM_ENTRY_INTR_INFO_FIELD": "VM_ENTRY_INTERRUPTION_INFORMATION",
    "VM_EXIT_INTR_INFO": "VM_EXIT_INTERRUPTION_INFORMATION",
    "VMX_VMCS64_GUEST_VMCS_LINK_PTR_FULL": "VMCS_LINK_POINTER",
    "GUEST_PDPTR3": "GUEST_PDPTE3",
    "POSTED_INTR_DESC_ADDR": "POSTED_INTERRUPT_DESCRIPTOR_ADDRESS",
    "TERTIARY_VM_EXEC_CONTROL": "TERTIARY_PROCESSOR_BASED_CONTROLS",
    "0x681e": "GUEST_RIP",
    "00006820": "GUEST_RFLAGS",
    "2800": "VMCS_LINK_POINTER",
}


@pytest.mark.parametrize("name", NAMES)
def test_fields_are_known_by_the_names_that_others_give_them(name: str) -> None:
    assert field_called(name) == NAMES[name]


def test_every_field_is_known_by_its_own_name_in_any_spelling() -> None:
    for name in FIELDS:
        assert field_called(name) == name
        assert field_called(f"vmcs.{name.lower()}") == name
        assert field_called(" ".join(re.split("_", name)).title()) == name


@pytest.mark.parametrize("word", ["", "x", "hello world", "CR", "0x", "ffff", "a" * 100_000])
def test_other_words_are_no_fields(word: str) -> None:
    assert field_called(word) is None


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda b: b.decode("latin-1")))
@settings(max_examples=150)
def test_any_text_is_read_or_not(text: str) -> None:
    for dumped in read_dump(text):
        examine(dumped)


@given(st.data())
@settings(max_examples=60)
def test_spoiled_dumps_are_read_as_far_as_they_go(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from([*fd.FORMS.values(), *fd.REGISTERS.values()]))
    text = fd.dmesg(form(fields()))
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    kept = text[:start] + data.draw(st.text(max_size=20)) + text[end:]
    for dumped in read_dump(kept):
        assert all(0 <= value < 1 << 64 for value in dumped.values.values())
        examine(dumped)


def test_hostile_lengths_are_read_in_time() -> None:
    for noise in ("CR0: actual=" * 20_000, "ES = " * 50_000, "(" * 100_000, "cs base " * 20_000,
                  "GUEST_CR0 = " + "0" * 200_000, "*** Guest State ***\n" * 5_000):  # fmt: skip
        assert isinstance(read_dump(noise), list)


CAPABILITIES = """
0x480: 0x00da040000000004
rdmsr -p 0 0x481 = 7f00000016
MSR_IA32_VMX_TRUE_PROCBASED_CTLS  = 0xfff9fffe04006172
IA32_VMX_CR4_FIXED1 (0x489): 0x00000000003727ff
   0x80000008 0x00: eax=0x00003027 ebx=0x00000000
"""


def test_capabilities_are_read_from_what_tools_print() -> None:
    cpu = read_capabilities(CAPABILITIES)
    assert cpu.physical == 39
    assert cpu.linear == 48
    assert cpu.msrs == {
        0x480: 0x00DA040000000004,
        0x481: 0x7F00000016,
        0x48E: 0xFFF9FFFE04006172,
        0x489: 0x3727FF,
    }
    cpuinfo = read_capabilities("address sizes\t: 46 bits physical, 57 bits virtual")
    assert (cpuinfo.physical, cpuinfo.linear) == (46, 57)
    assert read_capabilities("nothing of the kind").msrs == {}


def test_bits_of_a_processor_unknown_here_are_allowed_unless_it_says_otherwise() -> None:
    values = {**template("long-mode").values, "GUEST_CR4": 0x2020 | 1 << 40}
    diagnosis = examine(DumpedVmcs(values))
    assert diagnosis.passes
    assert "unknown here and not judged" in " ".join(diagnosis.notes)
    told = examine(DumpedVmcs(values), read_capabilities(CAPABILITIES))
    assert [f.rule.name for f in told.findings] == ["guest-cr4-may-be-1"]
