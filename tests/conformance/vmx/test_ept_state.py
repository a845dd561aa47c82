"""EPT beyond single accesses: flags, cached translations, what the processor reports and lends."""

from struct import pack, unpack

import pytest

from tests.conformance import tiny_guest as tiny
from tests.conformance.vmx import ept_guests as eg
from tests.conformance.vmx.ept_guests import Entries
from tests.conformance.x86_vmm import (
    CPUID,
    EXITED,
    FELL_THROUGH,
    GUEST_CODE,
    HOST_CODE,
    MODES,
    Assembler,
    X86Vmm,
    out,
)
from trapgate.processor.processor import Processor
from trapgate.sdm import controls as ct
from trapgate.sdm.fields import Field
from trapgate.sdm.reasons import ExitReason

pytestmark = [pytest.mark.conformance, pytest.mark.native]

PRIMARY, SECONDARY = "PRIMARY_PROCESSOR_BASED_CONTROLS", "SECONDARY_PROCESSOR_BASED_CONTROLS"
ACCESSED, DIRTY = 1 << 8, 1 << 9
OTHER = 0x12000
"""A page whose contents stand in for those of tiny.DATA."""
VPID = {"VIRTUAL_PROCESSOR_IDENTIFIER": 1}
NATIVE_48C = sum(1 << n for n in (0, 6, 8, 14, 16, 17, 20, 21, 25, 26, 32, 40, 41, 42, 43))
"""Execute-only, four levels, UC, WB, 2-MByte and 1-GByte pages, INVEPT and its two types, flags;
INVVPID and its four types."""


def vmm(
    mode: str,
    guest: bytes,
    entries: Entries | None = None,
    *,
    pointer: int = eg.POINTER,
    secondary: int = 0,
    more: dict[str, int] | None = None,
    memory: dict[int, bytes] | None = None,
    engine: str = "native",
) -> X86Vmm:
    """A VMM with EPT and its guest, before it runs."""
    fields = {
        PRIMARY: ct.PRIMARY_ALLOWED_0 | 1 << 31,
        SECONDARY: 1 << 1 | secondary,
        "EPT_POINTER": pointer,
        "GUEST_PDPTE0": tiny.TABLES + 0x2000 | 1,
    }
    structures = (entries or Entries()).memory()
    return X86Vmm(
        mode,
        guest=guest,
        fields=fields | (more or {}),
        memory=structures | (memory or {}),
        engine=engine,
    )


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def entry(vmm: X86Vmm, at: int) -> int:
    (found,) = unpack("<Q", vmm.processor.memory.read(at, 8))
    return int(found)


def flags_of(vmm: X86Vmm, page: int) -> int:
    """Accessed and dirty flag of a page's last entry."""
    return entry(vmm, eg.PT + 8 * (page >> 12)) & (ACCESSED | DIRTY)


@pytest.mark.parametrize("flags", [0, eg.FLAGS])
def test_accessed_and_dirty_flags(mode: str, flags: int) -> None:
    read, written, both, fresh = 0x13000, 0x14000, 0x15000, 0x16000
    long = mode == "l64"
    guest = b"".join(
        eg.instruction(access, page, long)
        for access, page in (("read", read), ("write", written), ("read", both), ("write", both))
    )
    done = vmm(mode, guest + CPUID, pointer=eg.POINTER | flags)
    assert (done.run(), done.reason) == (EXITED, ExitReason.CPUID)
    wanted = {
        read: ACCESSED,
        written: ACCESSED | DIRTY,
        both: ACCESSED | DIRTY,
        fresh: 0,
        GUEST_CODE: ACCESSED,
        # The guest's own tables: walking them counts as writing.
        eg.tables_of(mode)[-1]: ACCESSED | DIRTY,
    }
    for page, marks in wanted.items():
        assert flags_of(done, page) == (marks if flags else 0), hex(page)
    for at in (eg.PML4, eg.PDPT, eg.PD):
        assert entry(done, at) & (ACCESSED | DIRTY) == (ACCESSED if flags else 0)


@pytest.mark.parametrize("secondary", [0, 1 << 5])
def test_another_pointer_means_other_translations(mode: str, secondary: int) -> None:
    """With and without VPID, and back to none at all."""
    a = Assembler(mode == "l64")
    other = Entries({tiny.DATA: OTHER | eg.PAGE}).memory()
    # The second set of structures, 30000H bytes further on.
    moved = {}
    for at, table in other.items():
        words = unpack(f"<{len(table) // 8}Q", table)
        if at != eg.PT:
            words = tuple(word + 0x30000 for word in words)
        moved[at + 0x30000] = pack(f"<{len(words)}Q", *words)
    resumes = [
        a.vmwrite(Field.GUEST_RIP, GUEST_CODE)
        + a.vmwrite(Field.EPT_POINTER, pointer)
        + a.vmwrite(Field[SECONDARY], secondary | (2 if pointer else 0))
        + a.vmresume
        for pointer in (eg.POINTER + 0x30000, eg.POINTER, 0)
    ]
    code = b""
    for resume in resumes:
        # Each exit goes on behind the OUT that reported the one before.
        code += out(EXITED)
        following = HOST_CODE + len(code) + len(a.vmwrite(Field.HOST_RIP, 0) + resume)
        code += a.vmwrite(Field.HOST_RIP, following) + resume
    code += out(EXITED)
    data = {tiny.DATA: pack("<I", 1), OTHER: pack("<I", 2)}
    done = vmm(
        mode,
        eg.instruction("read", tiny.DATA, mode == "l64") + CPUID,
        secondary=secondary,
        more=VPID,
        memory=moved | data | {HOST_CODE: code},
    )
    seen = []
    for _ in range(4):
        assert (done.run(), done.reason) == (EXITED, ExitReason.CPUID)
        seen.append(done.processor.registers.rax & 0xFFFF_FFFF)
    assert seen == [1, 2, 1, 1]


def test_invept_makes_an_edit_seen(mode: str) -> None:
    a = Assembler(mode == "l64")
    at = eg.PT + 8 * (tiny.DATA >> 12)
    descriptor = 0x43100
    store = a.load(0, OTHER | eg.PAGE) + b"\x89" + a.absolute(0, at)
    invept = a.load(1, 1) + b"\x66\x0f\x38\x80" + a.absolute(1, descriptor)
    resume = a.vmwrite(Field.GUEST_RIP, GUEST_CODE) + a.vmresume
    done = vmm(
        mode,
        eg.instruction("read", tiny.DATA, mode == "l64") + CPUID,
        secondary=1 << 5,
        more=VPID,
        memory={
            tiny.DATA: pack("<I", 1),
            OTHER: pack("<I", 2),
            descriptor: pack("<QQ", eg.POINTER, 0),
            HOST_CODE: out(EXITED) + store + invept + resume,
        },
    )
    for wanted in (1, 2):
        assert (done.run(), done.reason) == (EXITED, ExitReason.CPUID)
        assert done.processor.registers.rax & 0xFFFF_FFFF == wanted


def test_mov_cr3_of_the_same_value_flushes(mode: str) -> None:
    """The guest changes its own table, and reloads CR3."""
    size = eg.entry_size(mode)
    at = tiny.TABLES + 0x3000 + (tiny.DATA >> 12) * size
    long = mode == "l64"
    edit = (b"\xc7\x04\x25" if long else b"\xc7\x05") + pack("<II", at, OTHER | 7)
    read = eg.instruction("read", tiny.DATA, long)
    done = vmm(
        mode,
        read + edit + b"\x0f\x20\xd8\x0f\x22\xd8" + read + CPUID,
        memory={tiny.DATA: pack("<I", 1), OTHER: pack("<I", 2)},
    )
    assert (done.run(), done.reason) == (EXITED, ExitReason.CPUID)
    assert done.processor.registers.rax & 0xFFFF_FFFF == 2


def test_pointers_are_saved() -> None:
    table = 0x33000
    good = tiny.TABLES + 0x2000 | 1
    load_cr3 = b"\xb8" + pack("<I", table) + b"\x0f\x22\xd8"
    four = pack("<QQQQ", good, 0, good, 0x5000)
    done = vmm("pae", load_cr3 + CPUID, memory={table: four})
    assert (done.run(), done.reason) == (EXITED, ExitReason.CPUID)
    assert [done[f"GUEST_PDPTE{n}"] for n in range(4)] == [good, 0, good, 0x5000]
    # A failed load changes nothing, CR3 neither.
    bad = pack("<QQQQ", good, good, good, good | 1 << 40)
    done = vmm("pae", load_cr3, memory={table: bad}, more={"EXCEPTION_BITMAP": 1 << 13})
    assert (done.run(), done.reason) == (EXITED, ExitReason.EXCEPTION_OR_NMI)
    assert [done[f"GUEST_PDPTE{n}"] for n in range(4)] == [good, 0, 0, 0]
    assert done["GUEST_CR3"] == tiny.TABLES


def test_violation_says_resume(mode: str) -> None:
    """RF is set in what is saved, and RIP is the instruction's."""
    read = eg.instruction("read", tiny.DATA, mode == "l64")
    done = vmm(mode, b"\x90" + read, Entries({tiny.DATA: 0}))
    assert (done.run(), done.reason) == (EXITED, ExitReason.EPT_VIOLATION)
    assert done["GUEST_RIP"] == GUEST_CODE + 1
    assert done["GUEST_RFLAGS"] & 1 << 16


def test_iret_unblocks_nmis_before_its_violation() -> None:
    """Bit 12 of the qualification, and no blocking in what is saved."""
    stack = 0x15000
    done = vmm(
        "p32",
        b"\xcf",
        Entries({stack: 0}),
        more={
            "GUEST_RSP": stack,
            "GUEST_INTERRUPTIBILITY_STATE": 8,
            "PIN_BASED_CONTROLS": ct.PIN_ALLOWED_0 | 1 << 3 | 1 << 5,
        },
    )
    assert (done.run(), done.reason) == (EXITED, ExitReason.EPT_VIOLATION)
    assert done["EXIT_QUALIFICATION"] == 1 << 12 | eg.LINEAR_VALID | eg.TRANSLATED | 1
    assert done["GUEST_INTERRUPTIBILITY_STATE"] & 8 == 0


@pytest.mark.parametrize("rights", [0, 7])
def test_string_input_from_a_port_of_the_machine(mode: str, rights: int) -> None:
    """The VMM lets the port through: what EPT says of the buffer is still its own business."""
    buffer = 0x15000
    ins = b"\xbf" + pack("<I", buffer) + b"\xba\x80\x00\x00\x00" + b"\x6c"
    # To the guest the VMM's code is not where the VMM finds it.
    entries = Entries({buffer: OTHER | eg.WB | rights, HOST_CODE: OTHER | eg.PAGE})
    done = vmm(mode, ins + CPUID, entries)
    # To the VMM in Python every port exits.
    if rights:
        assert done.run() == 0x80
        assert done.vmcs["EXIT_REASON"] == ExitReason.IO_INSTRUCTION
        assert done.processor.x86_vmm.guest_is_in_vmcs0
        assert done.vmcs["EPT_POINTER_IN_FORCE"] == eg.POINTER
    assert (done.run(), done.reason) == (
        (EXITED, ExitReason.CPUID) if rights else (EXITED, ExitReason.EPT_VIOLATION)
    )
    if not rights:
        assert done["GUEST_PHYSICAL_ADDRESS"] == buffer
        assert done["EXIT_QUALIFICATION"] == eg.LINEAR_VALID | eg.TRANSLATED | 2
        assert not done.processor.x86_vmm.guest_is_in_vmcs0


def test_code_is_fetched_where_ept_says(mode: str) -> None:
    """Execute-only code at another physical address; what Python decodes is found there too."""
    code, other = GUEST_CODE, 0x55000
    entries = Entries({code: other | eg.WB | eg.EXECUTE})
    # SMSW to memory is decoded in Python, LMSW and CPUID in the core.
    smsw = (b"\x0f\x01\x24\x25" if mode == "l64" else b"\x0f\x01\x25") + pack("<I", tiny.DATA)
    done = vmm(mode, b"\x0f\x0b", entries, memory={other: smsw + CPUID})
    assert (done.run(), done.reason) == (EXITED, ExitReason.CPUID)
    assert done["GUEST_RIP"] == code + len(smsw)


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_what_is_reported(engine: str) -> None:
    processor = Processor(1 << 20, engine=engine)
    processor.x86_vmm.offer_vmx(extended=True)
    native = engine == "native"
    msrs = processor.x86_vmm.msrs()
    assert msrs[0x48C] == (NATIVE_48C if native else NATIVE_48C & ~0xFFFF_FFFF)
    assert msrs[0x48B] >> 32 & 0x82 == (0x82 if native else 0)


def test_the_portable_engine_refuses_the_controls(mode: str) -> None:
    for secondary in (0, eg.UNRESTRICTED):
        done = vmm(mode, CPUID, engine="portable", secondary=secondary)
        assert (done.run(), done["VM_INSTRUCTION_ERROR"]) == (FELL_THROUGH, 7)
        assert done["FAILED_CHECK"] == 103
