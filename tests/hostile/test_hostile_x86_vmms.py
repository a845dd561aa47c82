"""VMMs of x86 code that mean no good: what they do ends as a value, soon, and inside the machine.

Random fields in an otherwise good VMCS, random regions, random VMX instructions at random
places. Nothing may raise, hang or touch the host; what comes out is a VM exit to the VMM in
Python, or `IdleError` for a guest that sleeps for ever.
"""

import random
from struct import pack

import pytest

from tests.conformance import tiny_guest as tiny
from tests.conformance.x86_vmm import (
    AREA,
    GUEST_CODE,
    HOST_CODE,
    MODES,
    OTHER_VMCS,
    POINTERS,
    VMCS_REGION,
    VMXON_REGION,
    Assembler,
    X86Vmm,
)
from trapgate.processor.processor import IdleError
from trapgate.processor.vm_exit import VmExit, VmFail
from trapgate.sdm import vmx
from trapgate.sdm.fields import Field

ROUNDS = 12
FIELDS = [int(field) for field in Field]
ENGINES = ("native", "portable")


def value(rng: random.Random) -> int:
    """A number that a field may trip over."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.getrandbits(64)
    if kind == 1:
        return 1 << rng.randrange(64)
    if kind == 2:
        return (1 << 64) - 1 ^ 1 << rng.randrange(64)
    if kind == 3:
        return rng.choice((GUEST_CODE, HOST_CODE, AREA, tiny.TABLES, VMCS_REGION, tiny.ABSENT))
    return rng.randrange(256)


def instruction(rng: random.Random, a: Assembler) -> bytes:
    """A VMX instruction, or something that exits, on operands of all kinds."""
    pointer = rng.choice((POINTERS, POINTERS + 8, POINTERS + 16, POINTERS + 24, tiny.ABSENT))
    encoding = rng.choice((*FIELDS, rng.getrandbits(16), rng.getrandbits(32)))
    return rng.choice(
        (
            a.vmxon(pointer),
            a.vmclear(pointer),
            a.vmptrld(pointer),
            a.vmptrst(pointer),
            a.vmread(encoding),
            a.load(2, encoding) + a.load(0, value(rng)) + b"\x0f\x79\xd0",
            a.vmlaunch,
            a.vmresume,
            a.vmcall,
            a.vmxoff if rng.random() < 0.2 else a.vmresume,
            b"\x0f\xa2",
            b"\x66\x0f\x38\x81" + a.absolute(0, AREA),
            b"\xfb",
            b"\xfa",
            b"\x8e\xd0",
            b"\x0f\x20\xc0\x0f\x22\xc0",
            rng.randbytes(3),
        )
    )


def hostile(seed: int, mode: str, engine: str) -> X86Vmm:
    """A VMM that is made of `seed`."""
    rng = random.Random(seed)
    a = Assembler(mode == "l64")
    fields = {}
    for _ in range(rng.choice((0, 1, 1, 2, 4, 16))):
        field = Field(rng.choice(FIELDS))
        fields[field.name] = value(rng) & (1 << field.width) - 1
    memory = {POINTERS + 24: pack("<Q", value(rng)), AREA: rng.randbytes(4096)}
    if rng.random() < 0.4:
        region = rng.choice((VMCS_REGION, OTHER_VMCS, VMXON_REGION))
        memory[region] = pack("<I", vmx.REVISION) + rng.randbytes(4092)
    soup = [instruction(rng, a) for _ in range(40)]
    return X86Vmm(
        mode,
        engine=engine,
        guest=b"".join(instruction(rng, a) for _ in range(12)) + b"\xeb\xfe",
        fields=fields,
        handler=b"".join(soup[:20]) + a.vmresume,
        memory=memory
        | ({tiny.CODE: a.vmxon() + a.vmptrld() + b"".join(soup)} if rng.random() < 0.3 else {}),
        extended=rng.random() < 0.5,
    )


def survive(vmm: X86Vmm) -> int:
    """How many VM exits to the VMM in Python came of it."""
    vmm.vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 20_000
    for count in range(ROUNDS):
        enter = vmm.processor.vmresume if vmm.vmcs.launched else vmm.processor.vmlaunch
        try:
            outcome = enter(vmm.vmcs)
        except IdleError:
            return count + 1
        assert isinstance(outcome, VmExit | VmFail)
        if isinstance(outcome, VmFail):
            return count + 1
        assert 0 <= vmm.processor.x86_vmm.state[vmx.MODE] <= vmx.MODE_NON_ROOT
        vmm.vmcs["GUEST_RIP"] = (vmm.vmcs["GUEST_RIP"] + outcome.instruction_length) & (
            (1 << 64) - 1
        )
    return ROUNDS


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_hostile_vmms(mode: str, engine: str) -> None:
    exits = sum(survive(hostile(seed, mode, engine)) for seed in range(40))
    assert exits >= 40


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_many_hostile_vmms(mode: str, engine: str) -> None:
    exits = sum(survive(hostile(seed, mode, engine)) for seed in range(1000, 3000))
    assert exits >= 2000
