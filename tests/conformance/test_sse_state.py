"""SSE: operands of 16 bytes that must be aligned, flags in MXCSR, and which prefix counts."""

from struct import pack, unpack

import pytest

from tests.conformance.tiny_guest import ABSENT, DATA, Run, Tiny, begin
from trapgate.sdm.vectors import GP, SS

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
ALL_EXIT = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
AT_RDI = b"\x07"
"""ModR/M: xmm0 (or mm0, eax), [rdi] or [edi]."""

ALIGNED = """
    0f28 0f29 660f28 660f29 0f2b 660f2b 660fe7 660f6f 660f7f 660f382a
    0f58 660f58 0f5e 660f5e 0f51 660f51 0f52 0f53 0f54 660f57 0f5f 0f5b 660f5b f30f5b 660f5a
    660f2d 660f2c f20fe6 660fe6 f30f12 f30f16 0f14 660f15
    660f60 660f6c 660f6d 660f74 660f7c f20f7c f20fd0 660fd0 660fd1 660fd5 660fdb 660fef 660ff4
    660ff6 660ffe 660f3800 660f3810 660f3817 660f381c 660f3829 660f3837 660f3840
"""
ALIGNED_WITH_CONSTANT = """
    0fc2 660fc2 0fc6 660fc6 660f70 f20f70 f30f70 660f3a08 660f3a09 660f3a0f 660f3a40 660f3a42
"""
ANYHOW = """
    0f10 0f11 660f10 660f11 f30f6f f30f7f f20ff0
    f30f58 f20f58 f30f51 f20f5a f30f5a 0f5a f30fe6 f20f12 0f12 0f13 660f12 0f16 660f16 0f2e 660f2f
    f30f10 f20f11 0f2a 660f2a f30f2a f20f2d 0f6f 0f7f 0fef 660f6e 660f7e f30f7e 660fd6
    660f3820 660f3835 f20f38f1
"""
ANYHOW_WITH_CONSTANT = "f30fc2 f20fc2 660fc4 660f3a0a 660f3a0b 660f3a14 660f3a21 660f3a60 660f3a63"


def codes(text: str, tail: bytes = b"") -> list[bytes]:
    return [bytes.fromhex(name) + AT_RDI + tail for name in text.split()]


def run(code: bytes, engine: str, mode: str = "l64", place: int = DATA, **more: bytes) -> Run:
    registers = {"rdi": place, "rsp": place}
    memory = {DATA: more["data"]} if more else {}
    fields = {"GUEST_RSP": registers.pop("rsp")}
    guest = Tiny(mode, code=code, registers=registers, fields=fields, memory=memory)
    return begin(guest, ALL_EXIT, engine=engine)


def fault(done: Run) -> tuple[int, int | None] | None:
    event = done.exit.interruption
    return None if event is None else (event.vector, event.error_code)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["l64", "p32"])
def test_operands_that_must_be_aligned(mode: str, engine: str) -> None:
    chosen = codes(ALIGNED) + codes(ALIGNED_WITH_CONSTANT, b"\0")
    if (mode, engine) != ("l64", "native"):
        chosen = chosen[::9]
    for code in chosen:
        assert fault(run(code, engine, mode, DATA + 8)) == (GP, 0), code.hex()
        assert fault(run(code, engine, mode, DATA + 16)) is None, code.hex()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["l64", "p32"])
def test_operands_that_need_not_be(mode: str, engine: str) -> None:
    chosen = codes(ANYHOW) + codes(ANYHOW_WITH_CONSTANT, b"\0")
    if (mode, engine) != ("l64", "native"):
        chosen = chosen[::9]
    for code in chosen:
        assert fault(run(code, engine, mode, DATA + 1)) is None, code.hex()


@pytest.mark.parametrize("engine", ENGINES)
def test_alignment_counts_before_the_page_and_in_every_segment(engine: str) -> None:
    assert fault(run(b"\x0f\x28\x07", engine, place=ABSENT + 8)) == (GP, 0)
    assert fault(run(b"\x0f\x28\x07", engine, place=ABSENT)) == (14, 0)
    stack = b"\x0f\x28\x04\x24"
    assert fault(run(stack, engine, place=DATA + 8)) == (GP, 0)
    assert fault(run(stack, engine, place=1 << 50)) == (SS, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_block_goes_on_behind_an_aligned_access(engine: str) -> None:
    """Loads, stores and others in one block: each goes where it should."""
    data = bytes(range(64)).ljust(128, b"\xff")
    code = (
        b"\x0f\x28\x47\x10"  # movaps xmm0, [rdi + 16]
        b"\x8b\x47\x05"  # mov eax, [rdi + 5]
        b"\x66\x0f\xef\x47\x20"  # pxor xmm0, [rdi + 32]
        b"\x89\x47\x41"  # mov [rdi + 65], eax
        b"\x0f\x29\x47\x50"  # movaps [rdi + 80], xmm0
        b"\x0f\x10\x4f\x03\x0f\x11\x4f\x61"  # movups xmm1, [rdi + 3]; movups [rdi + 97], xmm1
    )
    done = run(code, engine, data=data)
    assert fault(done) is None
    found = done.processor.memory.read(DATA, 128)
    assert found[65:69] == data[5:9]
    assert found[80:96] == bytes(a ^ b for a, b in zip(data[16:32], data[32:48], strict=True))
    assert found[97:113] == data[3:19]


# MXCSR.

ONE_BY_ZERO = pack("<4f4f", 1, 1, 1, 1, 0, 1, 3, 1)
DIVIDE = b"\x0f\x28\x07\x0f\x5e\x47\x10"  # movaps xmm0, [rdi]; divps xmm0, [rdi + 16]
ZE_PE = 0x24
STORE = b"\x0f\xae\x5f\x20"  # stmxcsr [rdi + 32]


@pytest.mark.parametrize("engine", ENGINES)
def test_flags_collect_while_masked(engine: str) -> None:
    done = run(DIVIDE + STORE, engine, data=ONE_BY_ZERO)
    assert unpack("<I", done.processor.memory.read(DATA + 32, 4)) == (0x1F80 | ZE_PE,)
    done = run(DIVIDE + b"\x0f\xae\x47\x40", engine, data=ONE_BY_ZERO)  # fxsave
    assert unpack("<I", done.processor.memory.read(DATA + 64 + 24, 4)) == (0x1F80 | ZE_PE,)


@pytest.mark.parametrize("engine", ENGINES)
def test_ldmxcsr_takes_flags_away(engine: str) -> None:
    data = ONE_BY_ZERO + bytes(32) + pack("<I", 0x1F82)
    done = run(DIVIDE + b"\x0f\xae\x57\x40" + STORE, engine, data=data)
    assert unpack("<I", done.processor.memory.read(DATA + 32, 4)) == (0x1F82,)


@pytest.mark.parametrize("engine", ENGINES)
def test_ldmxcsr_refuses_reserved_bits(engine: str) -> None:
    data = ONE_BY_ZERO + bytes(32) + pack("<I", 0x11F80)
    done = run(DIVIDE + b"\x0f\xae\x57\x40" + STORE, engine, data=data)
    assert fault(done) == (GP, 0)
    assert done.vmcs["GUEST_RIP"] & 0xFFF == len(DIVIDE)
    assert done.processor.engine.vectors.mxcsr == 0x1F80 | ZE_PE


@pytest.mark.parametrize("engine", ENGINES)
def test_unmasking_keeps_what_is_flagged(engine: str) -> None:
    """The flags met while all were masked are there, and do not fault, once ZE is unmasked."""
    unmask = b"\x81\x67\x20" + pack("<I", ~0x200 & 0xFFFFFFFF) + b"\x0f\xae\x57\x20"
    done = run(DIVIDE + STORE + unmask + b"\x90" + DIVIDE, engine, data=ONE_BY_ZERO)
    assert fault(done) is not None
    assert done.exit.interruption is not None
    assert done.exit.interruption.vector in (6, 19)
    assert done.processor.engine.vectors.mxcsr == 0x1D80 | ZE_PE


# Prefixes.

TWO = pack("<4f", 1, 2, 3, 4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("prefixes", "meant"),
    [
        ("66f3", "f3"),
        ("f366", "f3"),
        ("66f2", "f2"),
        ("f266", "f2"),
        ("f2f3", "f3"),
        ("f3f2", "f2"),
        ("f366f2", "f2"),
        ("f2f366", "f3"),
        ("6666", "66"),
    ],
)
def test_the_prefix_that_counts(prefixes: str, meant: str, engine: str) -> None:
    load = b"\x0f\x10\x07"
    done = [
        run(load + bytes.fromhex(text) + b"\x0f\x58\xc0\x0f\x11\x47\x20", engine, data=TWO)
        for text in (prefixes, meant)
    ]
    assert [fault(one) for one in done] == [None, None]
    found, expected = (one.processor.memory.read(DATA + 32, 16) for one in done)
    assert found == expected
    assert expected != TWO


def crc32c(value: int, bits: int) -> int:
    """What CRC32 makes of the low `bits` of `value` and 0."""
    value &= (1 << bits) - 1
    for _ in range(bits):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


@pytest.mark.parametrize("engine", ENGINES)
def test_operand_size_counts_elsewhere(engine: str) -> None:
    """66H with F3H is POPCNT of 16 bits, and with F2H CRC32 of 16 bits."""
    done = run(bytes.fromhex("b8ffffffff 66f30fb8c0"), engine)
    assert done.processor.registers.rax == 0xFFFF0010
    for text, bits in (("66f20f38f1c1", 16), ("f20f38f1c1", 32)):
        done = run(bytes.fromhex("b800000000 b9ffffffff" + text), engine)
        assert done.processor.registers.rax == crc32c(0xFFFFFFFF, bits)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("code", ["0fae0f", "0fae2f"])
@pytest.mark.parametrize(
    ("value", "expected"), [(0x1F80, None), (0xFFFF, None), (0x11F80, (GP, 0))]
)
def test_images_with_reserved_bits_of_mxcsr(
    code: str, value: int, expected: tuple[int, int] | None, engine: str
) -> None:
    """FXRSTOR and XRSTOR."""
    image = bytes(24) + pack("<I", value)
    guest = Tiny("l64", code=bytes.fromhex(code), registers={"rdi": DATA, "rax": 3, "rdx": 0})
    guest.memory = {DATA: image.ljust(512, b"\0") + pack("<Q", 3)}
    guest.fields["GUEST_CR4"] = guest.state()["GUEST_CR4"] | 1 << 18
    guest.registers["xcr0"] = 3
    done = begin(guest, ALL_EXIT, engine=engine)
    assert fault(done) == expected
    if expected is None:
        assert done.processor.engine.vectors.mxcsr == value
