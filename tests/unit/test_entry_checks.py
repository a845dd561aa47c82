"""Every check of VM entry, once satisfied and once violated, and against the SDM's text at random.

No engine: the core functions, interpreted, with `sdm_checks` as the oracle.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance.vmx import violations
from tests.conformance.vmx.good import good_fields
from tests.conformance.vmx.sdm_checks import Processor, broken_rules, outcomes
from tests.conformance.vmx.violations import Changes, Row, apply
from trapgate.compiler.dialect import Cells
from trapgate.sdm import checks as ck
from trapgate.sdm import controls as ct
from trapgate.sdm.cells import ENCODINGS, LENGTH
from trapgate.sdm.check_words import CHECKS
from trapgate.sdm.fields import Field
from trapgate.vmcs.explain import explain
from trapgate.vmx.checks.controls import check_controls, check_threshold
from trapgate.vmx.checks.guest_state import check_guest_state, qualification_of
from trapgate.vmx.checks.host_state import check_host_state

MEMORY = 1 << 16
CURRENT, REVISED, SHADOW = 0x7000, 0x8000, 0xA000
"""The current VMCS, another region with the right revision identifier, and a shadow VMCS's."""
REVISION = 0x54524701
DEFAULT_1 = {"pin": 0x16, "primary": 0x04006172, "secondary": 0, "exit": 0x36DFB, "entry": 0x11FB}
"""Bits that must be 1, from the SDM's appendix "VMX Capability Reporting Facility"."""


@cache
def supported(*, long: bool, python: bool) -> Processor:
    """The processor as docs/limits.md describes it."""
    ram = memory()
    pin = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7
    primary = sum(
        1 << n
        for n in (2, 3, 7, 9, 10, 11, 12, 15, 16, 19, 20, 21, 22, 23, 24, 25, 27, 28, 29, 30, 31)
    )
    secondary = sum(1 << n for n in (2, 3, 4, 5, 6, 7, 10, 12)) | (not python) * 0x42_4303
    leave = sum(1 << n for n in (2, 9, 12, 15, 18, 19, 20, 21, 22, 30))
    enter = sum(1 << n for n in (2, 9, 13, 14, 15))
    may = zip(DEFAULT_1.items(), (pin, primary, secondary, leave, enter), strict=True)
    allowed = {name: (must, must | bits) for (name, must), bits in may}
    cr4 = sum(1 << n for n in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 16, 17, 18, 20, 21))

    def read(address: int, size: int) -> int:
        data = bytes(ram.view(np.uint8)[address : address + size])
        return int.from_bytes(data.ljust(size, b"\xff"), "little")

    return Processor(
        pin=allowed["pin"],
        primary=allowed["primary"],
        secondary=allowed["secondary"],
        exit=allowed["exit"],
        entry=allowed["entry"],
        cr0=((1 << 0 | 1 << 31) if python else (1 << 0 | 1 << 5 | 1 << 31), 0xFFFF_FFFF),
        cr4=(0 if python else 1 << 13, cr4),
        width=40,
        revision=REVISION,
        long=long,
        current=-1 if python else CURRENT,
        python=python,
        mtf=True,
        memory=read,
    )


@cache
def memory() -> Cells:
    ram = np.zeros(MEMORY // 8, np.int64)
    ram[CURRENT // 8] = ram[REVISED // 8] = REVISION
    ram[SHADOW // 8] = REVISION | 1 << 31
    # Page-directory-pointer-table entries: the first good, one bad in each of the others.
    for n in range(4):
        ram[0x5000 // 8 + n] = 0x6001
        for other in range(4):
            bad = (1 << 1, 1 << 5, 1 << 8, 1 << 40)[n]
            ram[(0x5100 + 0x20 * n) // 8 + other] = 0x6001 | (bad if other == n else 0)
    return ram


def cells(fields: Mapping[str, int]) -> Cells:
    v = np.zeros(LENGTH, np.int64)
    for name, value in fields.items():
        v[Field[name].cell] = value - (1 << 64) if value >> 63 else value
    return v


def complete(fields: Mapping[str, int]) -> dict[str, int]:
    return {**dict.fromkeys(ENCODINGS, 0), **fields}


def check(v: Cells, p: Processor) -> int:
    """What a VM entry finds, in its order."""
    found = check_controls(v, p.current, p.secondary[1]) or check_threshold(v, memory())
    if found == 0 and not p.python:
        found = check_host_state(v, p.long)
    return int(found or check_guest_state(v, memory(), p.current))


def outcome(check: int) -> set[tuple[str, int]]:
    """What the processor does about a failed check."""
    if check == 0:
        return set()
    if check <= ck.LAST_OF_HOST:
        return {("fail", 7 if check <= ck.LAST_OF_CONTROLS else 8)}
    return {("exit", int(qualification_of(check)))}


PAE: Changes = {"GUEST_CR4": violations.on(5), "GUEST_CR3": 0x5000}
NOT_IN_A_VMCS = [
    *(Row(1300 + n, PAE, ({**PAE, "GUEST_CR3": 0x5100 + 0x20 * n},), bits=(32,)) for n in range(4)),
    Row(
        1232,
        {"VMCS_LINK_POINTER": REVISED},
        tuple({"VMCS_LINK_POINTER": address} for address in (0x9000, SHADOW)),
    ),
    Row(
        1232,
        {**violations.SHADOWING, "VMCS_LINK_POINTER": SHADOW},
        ({**violations.SHADOWING, "VMCS_LINK_POINTER": REVISED},),
    ),
    # How many counters there are no dump shows.
    Row(
        409,
        {},
        tuple(
            {violations.EXIT: violations.on(12), violations.HOST_COUNTERS: 1 << n} for n in (0, 32)
        ),
    ),
    Row(
        716,
        {},
        tuple(
            {violations.ENTRY: violations.on(13), violations.GUEST_COUNTERS: 1 << n}
            for n in (0, 32)
        ),
    ),
    Row(1233, {"VMCS_LINK_POINTER": REVISED}, ({"VMCS_LINK_POINTER": CURRENT},)),
]
ROWS = [*violations.ROWS, *violations.EXTENSIONS, *NOT_IN_A_VMCS]
CASES = [
    pytest.param(row, bits, id=f"{row.check}-{bits}-{n}")
    for n, row in enumerate(ROWS)
    for bits in row.bits
]


@pytest.mark.parametrize(("row", "bits"), CASES)
def test_satisfied_and_violated(row: Row, bits: int) -> None:
    p = supported(long=bits == 64, python=False)
    base = complete(good_fields(bits))
    good = apply(base, row.good)
    assert check(cells(good), p) == 0
    assert broken_rules(good, p) == []
    for changes in row.bad:
        bad = apply(base, changes)
        found = check(cells(bad), p)
        assert found == row.check, (changes, found and explain(found, cells(bad)))
        assert outcome(found) == outcomes(bad, p)
        broken = {rule.field for rule in broken_rules(bad, p) if rule.outcome in outcome(found)}
        assert CHECKS[found].fields[0] in broken
        words = explain(found, cells(bad))
        name = CHECKS[found].fields[0]
        assert words.startswith(f"{name} = {bad[name]:#x}: "), words
        assert "\n" not in words


PYTHON: dict[int, dict[str, int]] = {
    207: {"VM_EXIT_MSR_STORE_COUNT": 1},
    208: {"VM_EXIT_MSR_LOAD_COUNT": 1},
    310: {"VM_ENTRY_MSR_LOAD_COUNT": 1},
    702: {"GUEST_CR0": 1 << 31 | 1 << 5},
    705: {"GUEST_CR0": 1 << 0 | 1 << 5, "VM_ENTRY_CONTROLS": 0x13FB, "GUEST_CR4": 1 << 5},
    881: {"GUEST_CS_ACCESS_RIGHTS": 0xC0B3, "GUEST_SS_ACCESS_RIGHTS": 0xC0B3},
    882: {"GUEST_CS_ACCESS_RIGHTS": 0xC0BB, "GUEST_SS_ACCESS_RIGHTS": 0xC0B3, "GUEST_CR0": 0x20},
    1104: {"GUEST_CR0": 0x20, **{k: x if isinstance(x, int) else x(2)
                                 for k, x in violations.V8086.items()}},
}  # fmt: skip


@pytest.mark.parametrize("number", PYTHON)
def test_checks_of_a_vmm_in_python(number: int) -> None:
    p = supported(long=True, python=True)
    base = complete(good_fields(32))
    base["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= 1 << 31
    base["SECONDARY_PROCESSOR_BASED_CONTROLS"] = 1 << 7
    assert check(cells(base), p) == 0
    bad = {**base, **PYTHON[number]}
    assert check(cells(bad), p) == number
    assert outcome(number) == outcomes(bad, p)


def test_every_check_has_been_violated() -> None:
    # What a criteria table holds is violated in tests/unit/test_criteria_table.py.
    table = {ck.TABLE_ADDRESS, *range(ck.TABLE_RULE, ck.TABLE_COMPLETES + 1)}
    violated = {row.check for row in ROWS if row.bad} | set(PYTHON) | table
    assert violated == set(CHECKS)
    satisfied = {row.check for row in ROWS} | set(PYTHON) | table
    assert satisfied == set(CHECKS)


def test_numbers_fields_and_sections_are_in_order() -> None:
    for number, row in CHECKS.items():
        assert number == row.number
        assert row.rule
        assert row.section or ck.EXTENSION_RESERVED <= number <= ck.LAST_OF_CONTROLS
        for name in row.fields:
            assert name in Field.__members__
            assert (Field[name].kind == "host state") <= (400 < number < 700)


_NAMES = [field.name for field in Field if not field.read_only]
_WIDTH = {field.name: field.width for field in Field}


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[int, bool, dict[str, int]]:
    """A good VMCS with some fields flipped, replaced, or changed as a row does."""
    bits = draw(st.sampled_from((32, 64)))
    python = draw(st.booleans())
    fields = complete(good_fields(bits))
    if python and draw(st.booleans()):
        fields["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= 1 << 31
        fields["SECONDARY_PROCESSOR_BASED_CONTROLS"] |= 1 << 7
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.sampled_from(ROWS))
        fields = apply(fields, draw(st.sampled_from((row.good, *row.bad))))
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(_NAMES))
        width = _WIDTH[name]
        if draw(st.booleans()):
            fields[name] ^= 1 << draw(st.integers(0, width - 1))
        else:
            nasty = st.sampled_from((0, 1, (1 << width) - 1, 0x1000))
            fields[name] = draw(nasty | st.integers(0, (1 << width) - 1))
    return bits, python, {name: x & (1 << _WIDTH[name]) - 1 for name, x in fields.items()}


@settings(max_examples=400)
@given(spoiled())
def test_any_vmcs_is_judged_as_the_sdm_does(case: tuple[int, bool, dict[str, int]]) -> None:
    judged_alike(case)


@pytest.mark.slow
@settings(max_examples=20_000)
@given(spoiled())
def test_many_vmcses_are_judged_as_the_sdm_does(case: tuple[int, bool, dict[str, int]]) -> None:
    judged_alike(case)


def judged_alike(case: tuple[int, bool, dict[str, int]]) -> None:
    bits, python, fields = case
    p = supported(long=bits == 64, python=python)
    found = check(cells(fields), p)
    wanted = outcomes(fields, p)
    assert outcome(found) <= wanted
    assert (found == 0) == (not wanted)
    if found:
        broken = {rule.field for rule in broken_rules(fields, p) if rule.outcome in outcome(found)}
        assert CHECKS[found].fields[0] in broken


@settings(max_examples=150)
@given(
    st.binary(min_size=8 * len(ENCODINGS), max_size=8 * len(ENCODINGS)), st.integers(-1, 1 << 41)
)
def test_noise_breaks_nothing(data: bytes, current: int) -> None:
    """Cells that no VMWRITE could have made, too: the checks are total, and so is explain."""
    v = np.resize(np.frombuffer(data, np.int64), LENGTH)
    for found in (
        check_controls(v, current, ct.SECONDARY_WITH_EPT),
        check_host_state(v, current % 2 == 0),
        check_guest_state(v, memory(), current),
    ):
        assert found == 0 or found in CHECKS
        assert explain(int(found), v)
