"""What VM entries and VM exits keep of cached translations, and what nobody may rely on.

SDM, "Caching Translation Information": with "enable VPID" transitions need not invalidate
anything, without it they do; INVVPID and INVEPT do.
"""

from collections.abc import Mapping
from struct import pack

import pytest

from tests.conformance import tiny_guest as tg
from tests.conformance import x86_vmm as xv
from tests.conformance.vmx import ept_guests as eg
from trapgate.sdm import controls as ct
from trapgate.sdm.fields import Field

ENGINES = ("native", "portable")
TABLE = tg.TABLES + 0x3000
PLACE, OTHER, FUNCTION = 0x65000, 0x66000, 0x67000
NEXT, DESCRIPTOR = 0x63000, 0x63010
PIECE = 0x100
PIECES = 0x68000
A = xv.Assembler(long=False)
LOAD = b"\xa1" + pack("<I", PLACE)  # mov eax, [PLACE]
CALL = A.load(0, FUNCTION) + b"\xff\xd0"
VPID = 5


def store(address: int, value: int) -> bytes:
    return b"\xc7" + A.absolute(0, address) + pack("<I", value & 0xFFFFFFFF)


def run(
    guest: list[bytes],
    vmm: list[bytes],
    *,
    vpid: int,
    engine: str,
    fields: Mapping[str, int] | None = None,
    memory: Mapping[int, bytes] | None = None,
    ept: bool = False,
) -> xv.X86Vmm:
    """Pieces of the guest's code, each up to a VM exit, and of its VMM's behind each of those.

    They share tables. The VMM's first piece is what it does before the first VM entry. What exits
    elsewhere than at the end of a piece of the guest's ends that, too.
    """
    code, handlers = bytearray(), {}
    for n, (ours, others) in enumerate(zip(guest, vmm[1:], strict=True)):
        code += ours + tg.VMCALL
        last = n == len(guest) - 1
        handlers[PIECES + n * PIECE] = (
            b"\x89\x05" + pack("<I", NEXT + 8)  # mov [NEXT + 8], eax
            + store(NEXT, PIECES + (n + 1) * PIECE)
            + others
            + (xv.out(xv.EXITED) if last
               else A.vmwrite(int(Field.GUEST_RIP), xv.GUEST_CODE + len(code)) + A.vmresume)
        )  # fmt: skip
    wanted = dict(fields or {})
    if vpid:
        wanted |= {
            "PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_ALLOWED_0 | 1 << 31,
            "SECONDARY_PROCESSOR_BASED_CONTROLS": ct.SECONDARY_VPID
            | (ct.SECONDARY_EPT if ept else 0),
            "VIRTUAL_PROCESSOR_IDENTIFIER": vpid,
        }
    machine = xv.X86Vmm(
        "p32",
        engine=engine,
        guest=bytes(code),
        fields=wanted,
        handler=b"\xff" + A.absolute(4, NEXT),  # jmp [NEXT]
        memory={
            NEXT: pack("<I", PIECES),
            PLACE: pack("<I", 1),
            OTHER: pack("<I", 2),
            FUNCTION: b"\xb8\x01\0\0\0\xc3",  # mov eax, 1; ret
            **handlers,
            **(memory or {}),
        },
    )
    begins = machine.start()
    launch = begins[: -len(A.vmlaunch)] + vmm[0] + A.vmlaunch
    machine.processor.memory.write(tg.CODE, launch + xv.out(xv.FELL_THROUGH))
    assert machine.run() == xv.EXITED
    return machine


def answer(machine: xv.X86Vmm) -> int:
    """EAX at the last VM exit."""
    return int.from_bytes(machine.processor.memory.read(NEXT + 8, 4), "little")


MAP = store(TABLE + (PLACE >> 12) * 4, OTHER | 7)


def invvpid(kind: int, vpid: int) -> bytes:
    descriptor = store(DESCRIPTOR, vpid) + store(DESCRIPTOR + 4, 0) + store(DESCRIPTOR + 8, PLACE)
    descriptor += store(DESCRIPTOR + 12, 0)
    return descriptor + A.load(1, kind) + b"\x66\x0f\x38\x81" + A.absolute(1, DESCRIPTOR)


def test_a_guest_with_a_vpid_keeps_translations() -> None:
    """The native engine does so; no VMM may rely on it."""
    assert answer(run([LOAD, LOAD], [b"", MAP, b""], vpid=VPID, engine="native")) == 1


def test_the_vmm_keeps_its_own() -> None:
    """Its entry is changed by the guest, and it has not executed INVLPG."""
    machine = run([b"\x90", MAP], [LOAD, b"", LOAD], vpid=VPID, engine="native")
    assert machine.processor.registers.rax == 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", range(4))
def test_invvpid(kind: int, engine: str) -> None:
    change = MAP + invvpid(kind, 0 if kind == 2 else VPID)
    assert answer(run([LOAD, LOAD], [b"", change, b""], vpid=VPID, engine=engine)) == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_another_vpid(engine: str) -> None:
    change = MAP + A.vmwrite(int(Field.VIRTUAL_PROCESSOR_IDENTIFIER), VPID + 1)
    assert answer(run([LOAD, LOAD], [b"", change, b""], vpid=VPID, engine=engine)) == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_without_a_vpid_transitions_drop_all(engine: str) -> None:
    """The guest's at VM entries, and the VMM's own as well."""
    assert answer(run([LOAD, LOAD], [b"", MAP, b""], vpid=0, engine=engine)) == 2
    machine = run([b"\x90", MAP], [LOAD, b"", LOAD], vpid=0, engine=engine)
    assert machine.processor.registers.rax == 2


STORE = b"\xa3" + pack("<I", PLACE)
"""MOV [PLACE], EAX, which exits in these tests; the VMM goes on behind it."""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_page_fault_that_exits_drops_what_is_cached(engine: str) -> None:
    """SDM, "Invalidation of TLBs and Paging-Structure Caches": of the page that it is about."""
    machine = run(
        [LOAD + STORE, LOAD],
        [b"", MAP, b""],
        vpid=VPID,
        engine=engine,
        fields={"EXCEPTION_BITMAP": 1 << 14},
        memory={TABLE + (PLACE >> 12) * 4: pack("<I", PLACE | 5)},
    )
    assert answer(machine) == 2


def test_an_ept_violation_drops_what_is_cached() -> None:
    """SDM, "Operations that Invalidate Cached Mappings": of the linear address."""
    entry = eg.PT + (PLACE >> 12) * 8
    machine = run(
        [LOAD + STORE, LOAD],
        [b"", store(entry, OTHER | eg.PAGE), b""],
        vpid=VPID,
        engine="native",
        fields={"EPT_POINTER": eg.POINTER},
        memory=eg.Entries({PLACE: PLACE | eg.PAGE & ~eg.WRITE}).memory(),
        ept=True,
    )
    assert answer(machine) == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_stores_to_a_page_that_gets_code(engine: str) -> None:
    """The VMM has stored to it before, and then to its code: the guest runs what stands there."""
    before = store(FUNCTION + 0x80, 1) + store(FUNCTION + 0x84, 1)
    machine = run([CALL, CALL], [before, store(FUNCTION + 1, 7), b""], vpid=VPID, engine=engine)
    assert answer(machine) == 7


@pytest.mark.parametrize("engine", ENGINES)
def test_stores_of_the_guests_to_a_page_that_gets_code(engine: str) -> None:
    """Likewise the other way round."""
    before = store(FUNCTION + 0x80, 1) + store(FUNCTION + 0x84, 1)
    pieces = [before, store(FUNCTION + 1, 7)]
    machine = run(pieces, [b"", CALL, CALL], vpid=VPID, engine=engine)
    assert machine.processor.registers.rax == 7
