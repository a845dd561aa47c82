"""FOP, FIP and FDP in what FNSTENV, FNSAVE, FXSAVE and XSAVE store, and from what is loaded."""

from struct import pack, unpack_from

import pytest

from tests.conformance.tiny_guest import CODE, CODE_32, CODE_64, DATA, DATA_0, Run, Tiny, begin

pytestmark = pytest.mark.conformance

IMAGE = DATA + 0x400
"""Where the guest stores."""
VALUE = DATA + 0x80
OSXSAVE = 0x2620 | 1 << 18


@pytest.fixture(params=["native", "portable"], name="engine")
def each_engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(code: str, engine: str, mode: str = "l64", **fields: int) -> Run:
    """Code with a value's address in RDI and that of the image in RSI."""
    registers = {"rdi": VALUE, "rsi": IMAGE, "rax": 1, "rdx": 0}
    guest = Tiny(mode, code=bytes.fromhex(code), registers=registers, fields=fields)
    guest.memory |= {VALUE: pack("<f", 3).ljust(8, b"\0") + pack("<H", 0x37B)}
    end = begin(guest, engine=engine)
    assert end.exit.reason.name == "VMCALL", end.exit
    return end


def environment(end: Run) -> tuple[int, int, int, int, int]:
    """FIP from the code's start, FCS, FOP, FDP, FDS of the 32-bit layout of protected mode."""
    ip, cs, opcode, dp, ds = unpack_from("<IHHIH", end.processor.memory.read(IMAGE, 28), 12)
    return ip - CODE if ip else 0, cs, opcode, dp, ds


START = "dbe3"  # fninit
STORE = "d936"  # fnstenv [rsi]


def test_what_they_point_to(engine: str) -> None:
    for body, ip, dp in (
        ("d9e8", 2, 0),  # fld1
        ("d807", 2, VALUE),  # fadd dword [rdi]
        ("d9e8 2667d807", 4, VALUE),  # prefixes belong to it
        ("d9e8 db3f", 4, VALUE),  # fstp tbyte [rdi]
        ("db2f", 2, VALUE),  # fld tbyte [rdi]
        ("d807 d9c9", 4, VALUE),  # fxch
        ("d807 dff1", 4, VALUE),  # fcomip
        ("d807 d9ff 9b", 4, VALUE),  # fcos; wait
        ("d807 dd3f d96f08 d93f dbe2", 2, VALUE),  # fnstsw, fldcw, fnstcw, fnclex
        ("d807 0f77 0f6ec0", 2, VALUE),  # emms, movd
        ("d807 dbe3", 0, 0),  # fninit
        ("d807 dd36", 0, 0),  # fnsave
    ):
        end = run(START + body + STORE, engine)
        cs, ds = (CODE_64 if ip else 0), (DATA_0 if dp else 0)
        assert (body, environment(end)) == (body, (ip, cs, 0, dp, ds))


def test_segments_of_the_operand(engine: str) -> None:
    bases = {"GUEST_SS_BASE": 0x100, "GUEST_FS_BASE": 0x40, "GUEST_SS_SELECTOR": DATA_0}
    for body, offset in (
        ("d807", VALUE),
        ("36d807", VALUE),
        ("64d807", VALUE),
        ("89fd d84500", VALUE),  # mov ebp, edi; fadd dword [ebp]
        ("89fd d84425f0", VALUE - 0x10),  # [ebp - 16]
        ("67d80610a0", 0xA010),  # [0A010H]
        ("d80425" + pack("<I", VALUE).hex(), VALUE),
    ):
        end = run(START + body + STORE, engine, "p32", **bases)
        length = len(bytes.fromhex(body)) - len(bytes.fromhex(body.split()[-1]))
        found = environment(end)
        assert (body, found) == (body, (2 + length, CODE_32, 0, offset, DATA_0))


def test_the_opcode_is_that_of_an_unmasked_exception(engine: str) -> None:
    # fldcw [rdi + 8]; fldz; fld1; fdiv st0, st1; fnstenv; and fadd before it
    code = START + "d96f08 d9ee d9e8 d8c0 d8f1" + STORE
    assert environment(run(code, engine))[:3] == (11, CODE_64, 0x0F1)
    code = START + "d96f08 d9ee d9e8 d8f1 dbe2 d8c0" + STORE
    assert environment(run(code, engine))[:3] == (13, CODE_64, 0x0F1)


def test_a_fault_leaves_them(engine: str) -> None:
    code = START + "d807 d8042500000200" + STORE  # the second one reads where nothing is
    guest = Tiny("l64", code=bytes.fromhex(code), registers={"rdi": VALUE, "rsi": IMAGE})
    end = begin(guest, {"EXCEPTION_BITMAP": 1 << 14}, engine=engine)
    assert end.exit.interruption is not None
    end.vmcs["GUEST_RIP"] += 7
    assert end.resume().reason.name == "VMCALL"
    assert environment(end)[0] == 2


def test_images_of_fxsave_and_xsave(engine: str) -> None:
    before = START + "d807"
    narrow = (CODE + 2, CODE_64, VALUE, DATA_0)
    for body in ("0fae06", "0fae26"):
        end = run(before + body, engine, GUEST_CR4=OSXSAVE)
        image = end.processor.memory.read(IMAGE, 24)
        assert (body, unpack_from("<IIII", image, 8)) == (body, narrow)
        end = run(before + "48" + body, engine, GUEST_CR4=OSXSAVE)
        image = end.processor.memory.read(IMAGE, 24)
        assert (body, unpack_from("<QQ", image, 8)) == (body, (CODE + 2, VALUE))
    # Without bit 0 of the requested features XSAVE leaves them.
    end = run(before + "b002 0fae26", engine, GUEST_CR4=OSXSAVE)
    assert end.processor.memory.read(IMAGE + 8, 16) == bytes(16)


def test_loading_them(engine: str) -> None:
    before = START + "d807"
    for save, restore in (
        ("d936", "d926"),  # fnstenv, fldenv
        ("dd36", "dd26"),  # fnsave, frstor
        ("0fae06", "0fae0e"),  # fxsave, fxrstor
        ("480fae06", "480fae0e"),
        ("0fae26", "0fae2e"),  # xsave, xrstor
    ):
        code = before + save + "d9e8" + restore + STORE
        end = run(code, engine, GUEST_CR4=OSXSAVE)
        wide = save.startswith("48")
        expected = (2, 0 if wide else CODE_64, 0, VALUE, 0 if wide else DATA_0)
        assert (save, environment(end)) == (save, expected)
    # XRSTOR of an area that has no x87 state.
    end = run(before + "0fae2e" + STORE, engine, GUEST_CR4=OSXSAVE)
    assert environment(end) == (0, 0, 0, 0, 0)


def test_layouts(engine: str) -> None:
    end = run(START + "d807 66d936", engine, "p32")
    found = unpack_from("<4H", end.processor.memory.read(IMAGE, 14), 6)
    assert found == ((CODE + 2) & 0xFFFF, CODE_32, VALUE & 0xFFFF, DATA_0)
    # In real-address mode they are linear addresses, here of the second instruction.
    fields = {"GUEST_DS_BASE": DATA, "GUEST_DS_SELECTOR": DATA >> 4}
    for form, at, layout in (("d934", 6, "<4H"), ("66d934", 12, "<4I")):
        code = "be0004 bf8000" + START + "d805" + form  # mov si, 400H; mov di, 80H
        end = run(code, engine, "r16", **fields)
        ip, cs, dp, ds = unpack_from(layout, end.processor.memory.read(IMAGE, 28), at)
        assert (form, ip | cs >> 12 << 16, cs & 0xFFF) == (form, CODE + 8, 0)
        assert (form, dp | ds >> 12 << 16) == (form, VALUE)
    end = run("be0004 bf8000" + START + "d805 66d934 d9e8 66d924 66d934", engine, "r16", **fields)
    ip, cs = unpack_from("<II", end.processor.memory.read(IMAGE, 28), 12)
    assert ip | cs >> 12 << 16 == CODE + 8


def test_a_debugger_reads_and_writes_them(engine: str) -> None:
    end = run(START + "d807", engine)
    vectors = end.processor.engine.vectors
    names = ("fioff", "fiseg", "fooff", "foseg", "fop")
    assert tuple(map(vectors.read, names)) == (CODE + 2, CODE_64, VALUE, DATA_0, 0)
    for n, name in enumerate(names):
        vectors.write(name, n + 1)
    assert tuple(map(vectors.read, names)) == (1, 2, 3, 4, 5)
