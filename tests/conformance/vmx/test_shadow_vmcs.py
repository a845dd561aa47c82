"""VMCS shadowing: the VMREADs and VMWRITEs of a guest that do not exit.

SDM, "VMCS Shadowing", and the instruction reference of VMREAD and VMWRITE.
"""

from struct import pack

import pytest

from tests.conformance.x86_vmm import (
    CPUID,
    EXITED,
    FELL_THROUGH,
    MODES,
    OTHER_VMCS,
    POINTERS,
    Assembler,
    X86Vmm,
)
from trapgate.sdm import controls as ct
from trapgate.sdm import vmx
from trapgate.sdm.fields import Field
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

READ_BITMAP, WRITE_BITMAP = 0x60000, 0x61000
RIP, REASON = Field.GUEST_RIP, Field.EXIT_REASON
SHADOW = OTHER_VMCS
NO_LINK = (1 << 64) - 1
OK, INVALID, VALID = 0, 1, 0x40
UNSUPPORTED = 0x6FFE


def bitmap(*exiting: int) -> bytes:
    """A bitmap with 1 for these encodings."""
    bits = bytearray(4096)
    for encoding in exiting:
        bits[encoding >> 3] |= 1 << (encoding & 7)
    return bytes(bits)


def vmm(
    mode: str,
    guest: bytes,
    *,
    engine: str = "auto",
    link: int = SHADOW,
    exits: tuple[int, ...] = (),
) -> X86Vmm:
    """A VMM whose guest has a shadow VMCS; `exits` are the encodings that exit."""
    return X86Vmm(
        mode,
        guest=guest,
        engine=engine,
        fields={
            "PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_ALLOWED_0 | 1 << 31,
            "SECONDARY_PROCESSOR_BASED_CONTROLS": 1 << 14,
            "VMREAD_BITMAP_ADDRESS": READ_BITMAP,
            "VMWRITE_BITMAP_ADDRESS": WRITE_BITMAP,
            "VMCS_LINK_POINTER": link,
        },
        memory={
            READ_BITMAP: bitmap(*exits),
            WRITE_BITMAP: bitmap(*exits),
            SHADOW: pack("<I", vmx.REVISION | 1 << 31) + bytes(4092),
        },
    )


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("mode", MODES)
def test_fields_of_the_shadow_vmcs(mode: str, engine: str) -> None:
    """What is written is read again, exit information too, and the current VMCS is untouched."""
    a = Assembler(mode == "l64")
    guest = a.vmwrite(int(RIP), 0x1234) + a.vmwrite(int(REASON), 7)
    guest += a.vmread(int(RIP)) + b"\x89\xc3" + a.vmread(int(REASON)) + CPUID  # mov ebx, eax
    done = vmm(mode, guest, engine=engine)
    assert (done.run(), done.reason) == (EXITED, ExitReason.CPUID)
    assert done.processor.registers.rbx == 0x1234
    assert done.processor.registers.rax == 7
    assert done["GUEST_RIP"] != 0x1234
    assert done["GUEST_RFLAGS"] & 0x41 == OK


def test_what_exits(mode: str) -> None:
    """A bit in its bitmap, and an encoding with a bit above 14."""
    a = Assembler(mode == "l64")
    for code, reason, exits in (
        (a.vmread(int(RIP)), ExitReason.VMREAD, (int(RIP),)),
        (a.vmwrite(int(RIP), 1), ExitReason.VMWRITE, (int(RIP),)),
        (a.vmread(1 << 15 | int(RIP)), ExitReason.VMREAD, ()),
        (a.vmwrite(1 << 31 | int(RIP), 1), ExitReason.VMWRITE, ()),
    ):
        done = vmm(mode, code + CPUID, exits=exits)
        assert (done.run(), done.reason) == (EXITED, reason)


def test_what_fails(mode: str) -> None:
    """VMfailInvalid without a shadow VMCS, VMfailValid(12) of a field that is none."""
    a = Assembler(mode == "l64")
    for link, encoding, flags, error in (
        (NO_LINK, int(RIP), INVALID, 0),
        (NO_LINK, UNSUPPORTED, INVALID, 0),
        (SHADOW, UNSUPPORTED, VALID, 12),
    ):
        for code in (a.vmread(encoding), a.vmwrite(encoding, 1)):
            done = vmm(mode, code + CPUID, link=link)
            assert (done.run(), done.reason) == (EXITED, ExitReason.CPUID)
            assert done["GUEST_RFLAGS"] & 0x41 == flags
            assert done["VM_INSTRUCTION_ERROR"] == error


def test_a_shadow_vmcs_is_not_entered(mode: str) -> None:
    """It can be current, read and written; VMLAUNCH is VMfailInvalid."""
    a = Assembler(mode == "l64")
    other = POINTERS + 16
    program = a.vmxon() + a.vmclear(other) + a.vmptrld(other)
    program += a.vmwrite(int(RIP), 0x4321) + a.vmread(int(RIP)) + a.vmlaunch
    done = X86Vmm(
        mode, program=program, memory={SHADOW: pack("<I", vmx.REVISION | 1 << 31) + bytes(4092)}
    )
    assert (done.run(), done.flags) == (FELL_THROUGH, INVALID)
    assert done.processor.registers.rax == 0x4321


def test_vmxon_takes_no_shadow_vmcs(mode: str) -> None:
    a = Assembler(mode == "l64")
    done = X86Vmm(
        mode, program=a.vmxon(POINTERS + 16), memory={SHADOW: pack("<I", 1 << 31 | vmx.REVISION)}
    )
    assert (done.run(), done.flags) == (FELL_THROUGH, INVALID)


def test_other_instructions_exit(mode: str) -> None:
    done = vmm(mode, Assembler(mode == "l64").vmxon() + CPUID)
    assert (done.run(), done.reason) == (EXITED, ExitReason.VMXON)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)
