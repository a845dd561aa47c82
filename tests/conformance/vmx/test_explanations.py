"""What a VMM that is x86 code is told about its failures: field, value, rule, section."""

import json
import subprocess
import sys
from pathlib import Path
from struct import pack

import numpy as np
import pytest

from tests.conformance.tiny_guest import Tiny, prepare
from tests.conformance.vmx import harness as h
from trapgate.processor.vm_exit import VmExit, VmFail
from trapgate.sdm.cells import LENGTH
from trapgate.sdm.reasons import ExitReason, VmInstructionError
from trapgate.sdm.registers import NAMES
from trapgate.vmcs.explain import explain_abort, explain_failure
from trapgate.vmx.msr_areas import first_not_stored, load_msrs, why_not

pytestmark = pytest.mark.conformance


def failing_script(bits: int = 64) -> h.Script:
    """Failures of many kinds, in the order of EXPECTED."""
    guest = Tiny("l64" if bits == 64 else "p32")
    every = h.all_fields(h.guest_fields(bits, guest))
    script = h.Script(bits)
    script.call(script.on_pointer("vmxon", h.VMXON_REGION))
    script.begin()
    h.put_guest(script, guest)
    script.call(script.on_pointer("vmclear", h.VMCS))
    script.call(script.on_pointer("vmptrld", h.AREAS))
    script.launch()
    script.call(script.on_pointer("vmptrld", h.VMCS))
    script.call(script.on_pointer("vmptrld", h.VMXON_REGION))
    script.call(b"\xba\xfe\x6f\x00\x00\x0f\x78\xd1")
    script.call(b"\xba\xfe\x6f\x00\x00\x0f\x79\xd1")
    script.resume()
    for code, kind, low, high in INVALIDATIONS:
        script.poke(h.AREAS, pack("<QQ", low, high))
        script.call(invalidation(bits, code, kind))
    for name, value in (
        ("PIN_BASED_CONTROLS", 0x14),
        ("HOST_CS_SELECTOR", 0x0B),
        ("GUEST_RFLAGS", 0x8000),
        ("VM_ENTRY_MSR_LOAD_COUNT", 1),
    ):
        script.write_all(every)
        script.poke(h.AREAS, pack("<IIQ", 0xC000_0100, 0, 0))
        script.write("VM_ENTRY_MSR_LOAD_ADDRESS", h.AREAS)
        script.write(name, value)
        script.launch()
    return script


INVEPT, INVVPID = 0x80, 0x81
INVALIDATIONS = [
    (INVVPID, 7, 1, 0),
    (INVVPID, 0, 0, 0),
    (INVVPID, 1, 0x10001, 0),
    (INVVPID, 0, 1, 1 << 50),
]
"""Opcode, type and descriptor of what fails on every engine."""


def invalidation(bits: int, code: int, kind: int) -> bytes:
    """Mov ecx, kind; mov edx, AREAS; INVEPT or INVVPID of RCX, [RDX]."""
    return (
        b"\xb9" + pack("<I", kind) + b"\xba" + pack("<I", h.AREAS) + b"\x66\x0f\x38"
        + bytes((code,)) + b"\x0a"
    )  # fmt: skip


EXPECTED = [
    ("VMXON of 0x300000: VMfailInvalid", "0x54524701"),
    ("VMPTRLD of 0x304000: VMfailInvalid", "incorrect VMCS revision identifier"),
    ("VMLAUNCH: VMfailInvalid", "no current VMCS"),
    ("VMPTRLD of 0x300000: VMfailValid(10)", "VMXON pointer"),
    ("VMREAD of field 0x6ffe: VMfailValid(12)", "no field of this processor"),
    ("VMWRITE of field 0x6ffe: VMfailValid(12)", "no field of this processor"),
    ("VMRESUME: VMfailValid(5)", "use VMLAUNCH"),
    ("INVVPID: VMfailValid(28)", "its type is 0x7, and must be 0 (individual-address)"),
    ("INVVPID: VMfailValid(28)", "VPID 0 is the VMM's own"),
    ("INVVPID: VMfailValid(28)", "bits 63:16 of its descriptor must be 0"),
    ("INVVPID: VMfailValid(28)", "linear address 0x4000000000000 is not canonical"),
    ("PIN_BASED_CONTROLS = 0x14", "bit 1 must be 1"),
    ("HOST_CS_SELECTOR = 0xb", "RPL and TI (bits 2:0) must be 0"),
    ("GUEST_RFLAGS = 0x8000", "bits 63:22, 15, 5 and 3 must be 0 and bit 1 must be 1"),
    (
        "exit reason 0x80000022 (MSR loading, entry 1)",
        "entry 1 at 304000H is MSR C0000100H, value 0H: the bases of FS and GS are in fields",
    ),
]


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("bits", [32, 64])
def test_every_failure_is_told_once_and_in_order(bits: int, engine: str) -> None:
    told: list[str] = []
    h.run(failing_script(bits), engine=engine, explain=told.append)
    assert len(told) == len(EXPECTED), told
    for words, parts in zip(told, EXPECTED, strict=True):
        assert words.startswith("RIP 0x10"), words
        assert "SDM, " in words
        for part in parts:
            assert part in words, words
        assert "\n" not in words


def test_nobody_is_told_who_did_not_ask() -> None:
    """And the results are the same."""
    script = failing_script()
    told: list[str] = []
    assert h.run(script).words == h.run(script, explain=told.append).words


def test_the_command_line_tells(tmp_path: Path) -> None:
    image = tmp_path / "vmm.img"
    image.write_bytes(failing_script().image())
    ran = command_line(image, "--explain", "--json")
    assert ran.returncode == 0
    failures = json.loads(ran.stdout)["failures"]
    assert [failure["count"] for failure in failures] == [1] * len(EXPECTED)
    for failure, parts in zip(failures, EXPECTED, strict=True):
        assert all(part in failure["explanation"] for part in parts)
        assert f"trapgate: {failure['explanation']}\n" in ran.stderr
    assert (
        f"{len(EXPECTED)} VMX instructions or VM entries failed; --explain says why"
        in command_line(image).stderr
    )


def command_line(image: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trapgate", "run", str(image), "--memory", "16M", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_vmm_in_python_is_told() -> None:
    processor, vmcs = prepare(Tiny("p32"))
    again = processor.vmresume(vmcs)
    assert isinstance(again, VmFail)
    assert (again.error, "use VMLAUNCH" in again.explanation) == (5, True)
    vmcs["CR3_TARGET_COUNT"] = 5
    refused = processor.vmlaunch(vmcs)
    assert isinstance(refused, VmFail)
    assert "CR3_TARGET_COUNT = 0x5: must not be greater than 4" in refused.explanation
    vmcs["CR3_TARGET_COUNT"], vmcs["GUEST_DR7"] = 4, 1 << 32
    failed = processor.vmlaunch(vmcs)
    assert isinstance(failed, VmExit)
    assert failed.entry_failed
    assert "GUEST_DR7 = 0x100000000: bits 63:32 must be 0" in failed.explanation
    assert vmcs["FAILED_CHECK"] == 708
    vmcs["GUEST_DR7"] = 0x400
    left = processor.vmlaunch(vmcs)
    assert isinstance(left, VmExit)
    assert (left.entry_failed, left.explanation) == (False, "")


def test_every_number_has_words() -> None:
    entry_errors = (VmInstructionError.ENTRY_CONTROL_FIELDS, VmInstructionError.ENTRY_HOST_STATE)
    for error in VmInstructionError:
        # 6 comes only of VMXOFF and VMXON between, which make the launch state clear here.
        if error is not VmInstructionError.VMRESUME_AFTER_VMXOFF and error not in entry_errors:
            words = explain_failure(ExitReason.VMCLEAR, error, np.zeros(0, np.int64))
            assert "see the SDM" not in words, error
    assert all("no such abort" not in explain_abort(code) for code in range(1, 7))
    assert "no such abort" in explain_abort(99)


@pytest.mark.parametrize(
    ("descriptor", "words"),
    [
        ((0, 0, 0), "its type is 0x0, and must be 1 (single-context) or 2 (all-context)"),
        ((1, 0x1003, 0), "its EPT pointer 0x1003 would fail VM entry"),
    ],
)
def test_what_is_wrong_with_an_invept(descriptor: tuple[int, int, int], words: str) -> None:
    error = VmInstructionError.INVALID_INVEPT_INVVPID_OPERAND
    told = explain_failure(ExitReason.INVEPT, error, np.zeros(0, np.int64), descriptor=descriptor)
    assert told.startswith("INVEPT: VMfailValid(28), Invalid operand to INVEPT/INVVPID: ")
    assert words in told


@pytest.mark.parametrize(
    ("entry", "stored", "words"),
    [
        (pack("<IIQ", 0x277, 1, 0), False, "bits 63:32 of the entry are 1H and must be 0"),
        (pack("<IIQ", 0x808, 0, 0), True, "MSRs of the x2APIC"),
        (pack("<IIQ", 0x1234, 0, 0), False, "WRMSR faults, since there is no such MSR here"),
        (pack("<IIQ", 0x1234, 0, 0), True, "RDMSR faults, since there is no such MSR here"),
        (pack("<IIQ", 0xC0000082, 0, 1 << 60), False, "the address is not canonical"),
        (pack("<IIQ", 0x277, 0, 2), False, "MSR 277H, value 2H: WRMSR of the value faults"),
    ],
)
def test_which_msr_was_not_loaded_or_stored(entry: bytes, stored: bool, words: str) -> None:
    good = pack("<IIQ", 0xC0000082, 0, 0x1000)
    memory = np.frombuffer(bytes(4096) + good + entry, np.int64).copy()
    fields, registers = np.zeros(LENGTH, np.int64), np.zeros(len(NAMES), np.int64)
    find = first_not_stored if stored else load_msrs
    assert find(fields, registers, memory, 4096, 2) == 2
    told = why_not(memory, 4096, 2, stored=stored)
    assert told.startswith("entry 2 at 1010H is MSR ")
    assert words in told
    assert "at most 512" in why_not(memory, 4096, 513)


def test_a_vmx_abort_names_the_msr() -> None:
    assert ": entry 1 at 1000H [SDM" in explain_abort(4, "entry 1 at 1000H")
