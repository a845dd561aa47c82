"""A VMM that knows no better: any VMCS fails, enters or is refused in words; it never raises."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance import tiny_guest as tg
from tests.conformance.tiny_guest import Tiny, prepare
from trapgate.errors import TrapgateError, VmcsError
from trapgate.processor.processor import IdleError
from trapgate.processor.vm_exit import VmExit, VmFail
from trapgate.sdm.fields import Field
from trapgate.vmcs.vmcs import Vmcs

WRITABLE = [field for field in Field if not field.read_only]
PIN_ALWAYS = 1 << 6
"""The preemption timer ends what would run for ever."""

_NAMES = st.sampled_from([field.name for field in Field]) | st.text(max_size=12)
_NUMBERS = (
    st.integers(-(1 << 70), 1 << 70)
    | st.integers(0, 64).map(lambda bit: 1 << bit)
    | st.sampled_from([0, 1, 0xFFFF_FFFF, (1 << 64) - 1])
)


def value(field: Field, r: random.Random, old: int) -> int:
    """A value of the field's width: noise, one bit flipped, or something nasty."""
    mask = (1 << field.width) - 1
    kind = r.randrange(4)
    if kind == 0:
        return r.getrandbits(field.width)
    if kind == 1:
        return old ^ 1 << r.randrange(field.width)
    if kind == 2:
        return r.choice((0, 1, mask, mask >> 1, 1 << (field.width - 1), 0xFFF, 0x1000)) & mask
    return old + r.choice((-1, 1, 8, 4096)) & mask


def launched(seed: int, engine: str) -> str:
    """Enter with a spoiled VMCS; what came of it."""
    r = random.Random(seed)
    mode = r.choice(tg.MODES)
    guest = Tiny(mode, 0 if mode == "r16" else r.choice((0, 3)), b"\x90\x0f\x0b")
    processor, vmcs = prepare(guest, engine=engine)
    for _ in range(r.choice((1, 1, 1, 2, 4, 16))):
        field = r.choice(WRITABLE)
        try:
            vmcs[field] = value(field, r, vmcs[field])
        except VmcsError:
            continue
    if r.random() < 0.9:
        vmcs["PIN_BASED_CONTROLS"] |= PIN_ALWAYS
        vmcs["VMX_PREEMPTION_TIMER_VALUE"] = r.choice((0, 1, 5000))
    else:
        processor.init()
    try:
        outcome = processor.vmlaunch(vmcs)
    except IdleError:
        return "idle"
    if isinstance(outcome, VmFail):
        assert outcome.error in (7, 8)
        assert not vmcs.launched
        return f"fail {outcome.error}"
    assert isinstance(outcome, VmExit)
    assert vmcs.launched == (not outcome.entry_failed)
    if outcome.entry_failed:
        assert outcome.reason.name.startswith("ENTRY_FAILURE")
        return "entry failure"
    # It may run on, too.
    vmcs["VM_ENTRY_INTERRUPTION_INFORMATION"] = r.choice((0, 0x80000030, 0x80000B0D, 0x80000202))
    again = processor.vmresume(vmcs)
    assert isinstance(again, VmExit | VmFail)
    return outcome.reason.name


@pytest.mark.parametrize("first", [0, 500, 1000, 1500])
def test_any_vmcs_fails_enters_or_is_refused(first: int) -> None:
    seen = {launched(seed, "auto") for seed in range(first, first + 500)}
    assert {"fail 7", "entry failure", "VMCALL"} <= seen, seen


def test_any_vmcs_on_the_portable_engine() -> None:
    seen = {launched(seed, "portable") for seed in range(5000, 5150)}
    assert {"fail 7", "entry failure", "VMCALL"} <= seen, seen


@settings(max_examples=150)
@given(st.dictionaries(_NAMES, _NUMBERS, max_size=8), st.sampled_from(["extended", "vt-x"]))
def test_any_file_is_a_vmcs_or_refused_in_one_line(fields: dict[str, int], profile: str) -> None:
    lines = [f'profile = "{profile}"', "[fields]"]
    lines += [f"{name.encode().hex() if not name.isidentifier() else name} = {number}"
              for name, number in fields.items()]  # fmt: skip
    text = "\n".join(lines)
    complaint = ""
    try:
        vmcs = Vmcs.from_toml(text)
    except TrapgateError as refused:
        complaint = str(refused)
    if complaint:
        assert "\n" not in complaint
    else:
        assert Vmcs.from_toml(vmcs.to_toml(), profile=vmcs.profile) == vmcs
