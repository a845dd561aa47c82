"""CR4.VME and CR4.PVI: what works on VIF, and what VIP forbids (SDM, "Virtual Interrupts")."""

from struct import pack, unpack

import pytest

from tests.conformance.tiny_guest import ABSENT, CODE, DATA, IF, TF, TSS, Run, Tiny, begin, handler
from trapgate.sdm.vectors import DB, GP, PF, SS

pytestmark = pytest.mark.conformance

VME, PVI = 1, 2
IOPL, NT, VM, VIF, VIP, CF = 3 << 12, 1 << 14, 1 << 17, 1 << 19, 1 << 20, 1
SP = 0x8000
EXITING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS")


@pytest.fixture(params=["native", "portable"], name="engine")
def each_engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def virtual_8086(code: str, flags: int, *, stack: int = 0, cr4: int = VME) -> Tiny:
    """A guest in virtual-8086 mode at offset 0 of its segments, `stack` on top of its stack."""
    fields = {
        "GUEST_RFLAGS": 2 | VM | flags,
        "GUEST_RIP": 0,
        "GUEST_RSP": SP,
        "GUEST_CR4": 0x2610 | cr4,
    }
    for name in SEGMENTS:
        fields |= {
            f"GUEST_{name}_LIMIT": 0xFFFF,
            f"GUEST_{name}_ACCESS_RIGHTS": 0xF3,
            f"GUEST_{name}_BASE": CODE,
            f"GUEST_{name}_SELECTOR": CODE >> 4,
        }
    memory = {CODE + SP: pack("<Q", stack)}
    return Tiny("p32", code=bytes.fromhex(code), fields=fields, memory=memory)


def ring_3(code: str, flags: int, *, cr4: int = PVI) -> Tiny:
    fields = {"GUEST_RFLAGS": 2 | flags, "GUEST_CR4": 0x2610 | cr4}
    return Tiny("p32", ring=3, code=bytes.fromhex(code), fields=fields)


def ended(run: Run) -> tuple[int, int]:
    """Vector of the exception that exited, 0 for the VMCALL; and where, from the code's start."""
    event = run.exit.interruption
    base = run.vmcs["GUEST_CS_BASE"]
    assert event is not None or run.exit.reason.name == "VMCALL"
    return event.vector if event else 0, base + run.vmcs["GUEST_RIP"] - CODE


SEEN = VIF | VIP | IF | TF | IOPL | NT | CF

CASES: list[tuple[str, Tiny, tuple[int, int], int, int]] = [
    # What it is, the guest, how it ends, its flags then, and how much it has pushed.
    ("cli", virtual_8086("fa", VIF | IF), (0, 1), IF, 0),
    ("cli, VIP", virtual_8086("fa", VIF | VIP), (0, 1), VIP, 0),
    ("66 cli", virtual_8086("66fa", VIF), (0, 2), 0, 0),
    ("sti", virtual_8086("fb", 0), (0, 1), VIF, 0),
    ("sti, VIP", virtual_8086("fb", VIP), (GP, 0), VIP, 0),
    ("sti, IOPL 3", virtual_8086("fb", VIP | IOPL), (0, 1), VIP | IOPL | IF, 0),
    ("sti, no VME", virtual_8086("fb", 0, cr4=0), (GP, 0), 0, 0),
    ("pushf", virtual_8086("9c", VIF | CF), (0, 1), VIF | CF, 2),
    ("pushfd", virtual_8086("669c", VIF), (GP, 0), VIF, 0),
    ("pushf, no VME", virtual_8086("9c", 0, cr4=PVI), (GP, 0), 0, 0),
    ("popf", virtual_8086("9d", IF, stack=IF | CF | NT), (0, 1), IF | VIF | CF | NT, -2),
    ("popf clears", virtual_8086("9d", IF | VIF | CF, stack=IOPL), (0, 1), IF, -2),
    ("popf, VIP", virtual_8086("9d", VIP, stack=IF), (GP, 0), VIP, 0),
    ("popf, VIP without IF", virtual_8086("9d", VIP | VIF, stack=CF), (0, 1), VIP | CF, -2),
    ("popf sets TF", virtual_8086("9d", 0, stack=TF), (GP, 0), 0, 0),
    ("popfd", virtual_8086("669d", 0), (GP, 0), 0, 0),
    (
        "iret",
        virtual_8086("cf", IF, stack=1 | CODE >> 4 << 16 | (IF | CF) << 32),
        (0, 1),
        IF | VIF | CF,
        -6,
    ),
    ("iret, VIP", virtual_8086("cf", VIP, stack=1 | CODE >> 4 << 16 | IF << 32), (GP, 0), VIP, 0),
    ("iret sets TF", virtual_8086("cf", 0, stack=1 | CODE >> 4 << 16 | TF << 32), (GP, 0), 0, 0),
    ("iretd", virtual_8086("66cf", 0, stack=2), (GP, 0), 0, 0),
    ("lock cli", virtual_8086("f0fa", VIF), (6, 0), VIF, 0),
    ("cli and a trap", virtual_8086("fa90", VIF | TF), (DB, 1), TF, 0),
    ("pushf and a trap", virtual_8086("9c90", TF), (DB, 1), TF, 2),
    ("popf and a trap", virtual_8086("9d90", TF, stack=0), (DB, 1), 0, -2),
    ("hlt", virtual_8086("f4", 0), (GP, 0), 0, 0),
    ("PVI: cli", ring_3("fa", VIF | IF), (0, 1), IF, 0),
    ("PVI: sti", ring_3("fb", 0), (0, 1), VIF, 0),
    ("PVI: sti, VIP", ring_3("fb", VIP), (GP, 0), VIP, 0),
    ("PVI: sti, IOPL 3", ring_3("fb", IOPL), (0, 1), IOPL | IF, 0),
    ("PVI: sti and a trap", ring_3("fb90", TF), (DB, 1), TF | VIF, 0),
    ("PVI: popf leaves VIF", ring_3("6a009d", VIF | IF), (0, 3), VIF | IF, 0),
    ("VME is not PVI", ring_3("fa", VIF, cr4=VME), (GP, 0), VIF, 0),
    ("PVI: hlt", ring_3("f4", 0), (GP, 0), 0, 0),
]


def test_instructions_that_work_on_vif(engine: str) -> None:
    for name, guest, end, flags, pushed in CASES:
        run = begin(guest, EXITING, engine=engine)
        assert (name, ended(run)) == (name, end)
        assert (name, run.vmcs["GUEST_RFLAGS"] & SEEN) == (name, flags)
        start = guest.state()["GUEST_RSP"]
        assert (name, start - run.vmcs["GUEST_RSP"]) == (name, pushed)


@pytest.mark.parametrize(("flags", "pushed"), [(VIF, IF), (IF, 0), (VIF | VIP, IF), (0, 0)])
def test_int_n_below_iopl_3_is_redirected(engine: str, flags: int, pushed: int) -> None:
    """SDM, "Class 3 - Software Interrupt Handling in Virtual-8086 Mode", method 5."""
    guest = virtual_8086("90cd50", flags)
    guest.memory |= {4 * 0x50: pack("<HH", 0x900, CODE >> 4), CODE + 0x900: b"\x0f\x01\xc1"}
    # The bitmap lies below the I/O map, and is all zeros.
    guest.memory |= {TSS + 0x66: pack("<H", 0x88) + bytes(32)}
    guest.fields["GUEST_TR_LIMIT"] = 0xFF
    run = begin(guest, EXITING, engine=engine)
    assert ended(run) == (0, 0x900)
    assert run.vmcs["GUEST_RFLAGS"] & SEEN == flags & ~VIF
    frame = unpack("<HHH", run.processor.memory.read(CODE + SP - 6, 6))
    assert frame == (3, CODE >> 4, 2 | IOPL | pushed)


def test_int_n_below_iopl_3_that_is_not_redirected(engine: str) -> None:
    """A 1 in the bitmap, a bitmap beyond the TSS, no VME: #GP(0)."""
    for bitmap, limit, cr4 in ((b"\xff", 0xFF, VME), (b"\0", 0x67, VME), (b"\0", 0xFF, 0)):
        guest = virtual_8086("cd50", VIF, cr4=cr4)
        guest.memory |= {TSS + 0x66: pack("<H", 0x88) + bitmap * 32}
        guest.fields["GUEST_TR_LIMIT"] = limit
        run = begin(guest, EXITING, engine=engine)
        assert ended(run) == (GP, 0)
        assert run.exit.interruption is not None
        assert run.exit.interruption.error_code == 0


@pytest.mark.parametrize("flags", [VIF, IOPL])
def test_the_redirection_bitmap_is_not_present(engine: str, flags: int) -> None:
    guest = virtual_8086("cd50", flags)
    base = ABSENT - 0x1000
    guest.memory |= {base + 0x66: pack("<H", 0x1020)}
    guest.fields |= {"GUEST_TR_BASE": base, "GUEST_TR_LIMIT": 0x1FFF}
    run = begin(guest, EXITING, engine=engine)
    assert ended(run) == (PF, 0)
    assert run.exit.qualification == ABSENT + 10


def test_an_8086_program_sees_vif_as_if(engine: str) -> None:
    """Sti; pushf; cli; pushf; popf; popf; pushf."""
    run = begin(virtual_8086("fb9cfa9c9d9d9c", CF), EXITING, engine=engine)
    assert ended(run) == (0, 7)
    words = unpack("<HH", run.processor.memory.read(CODE + SP - 4, 4))
    assert words == (2 | CF | IOPL, 2 | CF | IOPL | IF)
    assert run.vmcs["GUEST_RFLAGS"] & SEEN == VIF | CF


def test_faults_of_the_stack(engine: str) -> None:
    for code, sp, expected in (
        ("9c", 1, SS),
        ("9d", 0xFFFF, SS),
        ("9c", 0x1000, PF),
        ("9d", 0x1000, PF),
    ):
        guest = virtual_8086(code, VIF)
        guest.fields |= {"GUEST_RSP": sp, "GUEST_SS_BASE": DATA, "GUEST_SS_SELECTOR": DATA >> 4}
        guest.memory |= {0x4000 + 0x3000 + 4 * (DATA + 0x1000 >> 12): pack("<I", 0)}
        guest.memory |= {0x4000 + 0x3000 + 4 * (DATA >> 12): pack("<I", 0)}
        run = begin(guest, EXITING, engine=engine)
        assert (code, sp, ended(run)) == (code, sp, (expected, 0))
        assert run.vmcs["GUEST_RSP"] == sp


def test_a_handler_in_ring_0_sees_if_itself(engine: str) -> None:
    """The frame of an event has IF as it is, and what #GP(0) interrupts is told by VIP."""
    run = begin(virtual_8086("fb", VIP), engine=engine)
    assert run.vmcs["GUEST_RIP"] == handler(GP)
    _, _, _, rflags = unpack("<IIII", run.processor.memory.read(run.vmcs["GUEST_RSP"], 16))
    assert rflags & SEEN == VIP
