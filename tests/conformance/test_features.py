"""The model is one processor: what CPUID shows executes, what it does not show is #UD."""

from struct import pack

import pytest

from tests.conformance.tiny_guest import CODE, DATA, TABLES, Run, Tiny, begin
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import GP, NM, PF, UD
from trapgate.vmm.cpus.identity import cpuid
from trapgate.vmm.exits.handlers import HANDLERS, undefined
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
EVERYTHING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
SECONDARY = "SECONDARY_PROCESSOR_BASED_CONTROLS"
PRIMARY = "PRIMARY_PROCESSOR_BASED_CONTROLS"
CONTROLS = {
    PRIMARY: ct.PRIMARY_SECONDARY_CONTROLS,
    SECONDARY: ct.SECONDARY_RDTSCP | ct.SECONDARY_INVPCID,
}
FSGSBASE, OSXSAVE, PCIDE, OSFXSR = 1 << 16, 1 << 18, 1 << 17, 1 << 9
EAX, EBX, ECX, EDX = range(4)

SAMPLES = {
    (1, EDX, 0): "d9e8",  # FPU: fld1
    (1, EDX, 4): "0f31",  # TSC: rdtsc
    (1, EDX, 5): "b9770200000f32",  # MSR: rdmsr of IA32_PAT
    (1, EDX, 8): "0fc70e",  # CX8: cmpxchg8b [rsi]
    (1, EDX, 15): "0f44c1",  # CMOV
    (1, EDX, 19): "0fae3e",  # CLFSH: clflush [rsi]
    (1, EDX, 23): "0f77",  # MMX: emms
    (1, EDX, 24): "0fae06",  # FXSR: fxsave [rsi]
    (1, EDX, 25): "0f57c0",  # SSE: xorps
    (1, EDX, 26): "660f57c0",  # SSE2: xorpd
    (1, ECX, 0): "f20f7cc0",  # SSE3: haddps
    (1, ECX, 1): "660f3a44c000",  # PCLMULQDQ
    (1, ECX, 6): "0f37",  # SMX: getsec
    (1, ECX, 9): "660f3800c0",  # SSSE3: pshufb
    (1, ECX, 12): "c4e2f998c0",  # FMA
    (1, ECX, 13): "480fc70e",  # CX16: cmpxchg16b [rsi]
    (1, ECX, 19): "660f3810c0",  # SSE4.1: pblendvb
    (1, ECX, 20): "f20f38f0c1",  # SSE4.2: crc32
    (1, ECX, 22): "0f38f006",  # MOVBE
    (1, ECX, 23): "f30fb8c1",  # POPCNT
    (1, ECX, 25): "660f38dcc0",  # AES: aesenc
    (1, ECX, 26): "31c90f01d0",  # XSAVE: xgetbv
    (1, ECX, 28): "c5f857c0",  # AVX: vxorps
    (1, ECX, 29): "c4e27913c0",  # F16C
    (1, ECX, 30): "0fc7f0",  # RDRAND
    (7, EBX, 0): "f30faec0",  # FSGSBASE: rdfsbase
    (7, EBX, 3): "c4e278f2c0",  # BMI1: andn
    (7, EBX, 5): "c5fd6fc0",  # AVX2
    (7, EBX, 8): "c4e278f5c0",  # BMI2: bzhi
    (7, EBX, 9): "31c9f3aa",  # ERMS: rep stosb
    (7, EBX, 10): "31c0660f388206",  # INVPCID
    (7, EBX, 11): "c7f800000000",  # RTM: xbegin
    (7, EBX, 16): "62f17c48efc0",  # AVX512F
    (7, EBX, 18): "0fc7f8",  # RDSEED
    (7, EBX, 19): "660f38f6c1",  # ADX: adcx
    (7, EBX, 20): "0f01ca",  # SMAP: clac
    (7, EBX, 23): "660fae3e",  # CLFLUSHOPT
    (7, EBX, 24): "660fae36",  # CLWB
    (7, EBX, 29): "0f38c8c0",  # SHA
    (7, ECX, 3): "0f01ee",  # PKU: rdpkru
    (7, ECX, 5): "660faef0",  # WAITPKG: tpause
    (7, ECX, 22): "f30fc7f8",  # RDPID
    (0x80000001, EDX, 11): "0f05",  # SYSCALL
    (0x80000001, EDX, 27): "0f01f9",  # RDTSCP
    (0x80000001, EDX, 31): "0f0fc08e",  # 3DNOW
    (0x80000001, ECX, 0): "9f",  # LAHF in 64-bit mode
    (0x80000001, ECX, 6): "660f79c0",  # SSE4A
    (0x80000001, ECX, 21): "8fe97896c0",  # TBM
    (0xD, EAX, 1): "0fae26",  # XSAVE of SSE state: xsave [rsi]
}
"""One instruction of each feature that has any, by leaf, register and bit."""


def features(mode: str, code: bytes, **registers: int) -> Tiny:
    """A guest with every bit of CR4 set that enables instructions."""
    guest = Tiny(mode, code=code, registers={"rsi": DATA, "rdi": DATA, **registers})
    guest.fields["GUEST_CR4"] = guest.state()["GUEST_CR4"] | FSGSBASE | OSXSAVE
    return guest


def vector(run: Run) -> int | None:
    return None if run.exit.interruption is None else run.exit.interruption.vector


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("feature", SAMPLES)
def test_what_cpuid_shows_executes_and_nothing_else(
    feature: tuple[int, int, int], engine: str
) -> None:
    leaf, register, bit = feature
    shown = bool(cpuid(leaf, 0)[register] >> bit & 1)
    guest = features("l64", bytes.fromhex(SAMPLES[feature]))
    guest.fields["GUEST_IA32_EFER"] = 0xD01
    run = begin(guest, EVERYTHING | CONTROLS, engine=engine)
    undefined = vector(run) == UD and run.vmcs["GUEST_RIP"] >= CODE
    assert undefined is not shown


def test_monitor_which_is_not_shown_exits_and_is_undefined() -> None:
    assert not cpuid(1, 0)[ECX] & 8
    assert HANDLERS[ExitReason.MONITOR] is HANDLERS[ExitReason.MWAIT] is undefined


def test_every_bit_that_is_shown_is_known() -> None:
    """A bit without a sample has no instruction of its own."""
    without = {
        (1, EDX): {1, 2, 3, 6, 7, 9, 11, 12, 13, 16},
        (1, ECX): {5, 17, 21, 24, 31},
        (7, EBX): {1, 7},
        (7, EDX): {29},
        (0x80000001, EDX): {20, 29},
        (0x80000001, ECX): set(),
    }
    for (leaf, register), expected in without.items():
        word = cpuid(leaf, 0)[register]
        bits = {bit for bit in range(32) if word >> bit & 1}
        assert {bit for bit in bits if (leaf, register, bit) not in SAMPLES} == expected


# FSGSBASE.


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("field", "name"), [(0, "FS"), (1, "GS")])
@pytest.mark.parametrize("ring", [0, 3])
def test_bases_of_fs_and_gs(field: int, name: str, ring: int, engine: str) -> None:
    write, read = (b"\xf3\x48\x0f\xae" + bytes([0xC0 | n << 3 | 1]) for n in (field + 2, field))
    guest = features("l64", write + b"\x31\xc9" + read, rcx=0x1234_5678_9ABC)
    guest.ring = ring
    run = begin(guest, EVERYTHING, engine=engine)
    assert vector(run) is None
    assert run.vmcs[f"GUEST_{name}_BASE"] == run.processor.registers.rcx == 0x1234_5678_9ABC


@pytest.mark.parametrize("engine", ENGINES)
def test_faults_of_writes_to_bases(engine: str) -> None:
    write = b"\xf3\x48\x0f\xae\xd1"
    guest = features("l64", write, rcx=1 << 47)
    assert vector(begin(guest, EVERYTHING, engine=engine)) == GP
    narrow = features("l64", b"\xf3\x0f\xae\xd1", rcx=1 << 47 | 5)
    run = begin(narrow, EVERYTHING, engine=engine)
    assert (vector(run), run.vmcs["GUEST_FS_BASE"]) == (None, 5)
    off = Tiny("l64", code=write)
    assert vector(begin(off, EVERYTHING, engine=engine)) == UD
    assert vector(begin(features("p32", b"\xf3\x0f\xae\xd1"), EVERYTHING, engine=engine)) == UD


# INVPCID.

INVPCID = b"\x66\x0f\x38\x82\x06"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("kind", "descriptor", "expected"),
    [
        (0, (0, DATA), None),
        (0, (0, 1 << 47), GP),
        (0, (5, DATA), GP),
        (1, (0x1000, 0), GP),
        (2, (5, 0), None),
        (3, (0, 0), None),
        (4, (0, 0), GP),
    ],
)
def test_invpcid(kind: int, descriptor: tuple[int, int], expected: int | None, engine: str) -> None:
    guest = features("l64", INVPCID, rax=kind)
    guest.memory = {DATA: pack("<QQ", *descriptor)}
    assert vector(begin(guest, EVERYTHING | CONTROLS, engine=engine)) == expected


@pytest.mark.parametrize("engine", ENGINES)
def test_invpcid_forgets_translations(engine: str) -> None:
    """A page that is read, unmapped in memory, and read again behind INVPCID."""
    unmap = b"\xc7\x05" + pack("<II", TABLES + 0x3000 + (DATA + 0x1000 >> 12) * 4, 0)
    read = b"\xa1" + pack("<I", DATA + 0x1000)
    load = b"\xb8\x02\x00\x00\x00"
    code = read + unmap + load + INVPCID + read
    run = begin(features("p32", code), EVERYTHING | CONTROLS, engine=engine)
    assert vector(run) == PF
    assert run.vmcs["GUEST_RIP"] == CODE + len(code) - len(read)


@pytest.mark.parametrize("engine", ENGINES)
def test_invpcid_and_vmx(engine: str) -> None:
    exiting = {**CONTROLS, PRIMARY: CONTROLS[PRIMARY] | ct.PRIMARY_INVLPG_EXITING}
    run = begin(features("l64", INVPCID), EVERYTHING | exiting, engine=engine)
    assert run.exit.reason is ExitReason.INVPCID
    assert run.exit.instruction_length == len(INVPCID)
    assert run.vmcs["VM_EXIT_INSTRUCTION_INFORMATION"] >> 28 == 0
    assert vector(begin(features("l64", INVPCID), EVERYTHING, engine=engine)) == UD
    ring3 = features("l64", INVPCID)
    ring3.ring = 3
    assert vector(begin(ring3, EVERYTHING | exiting, engine=engine)) == GP


# CLFLUSH, RDRAND, XSAVE.


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("prefix", [b"", b"\x66"])
def test_flushing_a_line_that_is_not_mapped(prefix: bytes, engine: str) -> None:
    guest = features("l64", prefix + b"\x0f\xae\x3e")
    guest.registers["rsi"] = 0x20000  # ABSENT
    assert vector(begin(guest, EVERYTHING, engine=engine)) == PF


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("code", "mask"), [("0fc7f0", 0xFFFFFFFF), ("660fc7f0", 0xFFFF), ("480fc7f0", (1 << 64) - 1)]
)
def test_rdrand_depends_on_nothing_but_its_seed(code: str, mask: int, engine: str) -> None:
    runs = [begin(features("l64", bytes.fromhex(code) * 2, rax=0), engine=engine) for _ in "12"]
    first, second = (run.processor.registers.rax for run in runs)
    assert first == second
    assert 0 < first <= mask
    assert runs[0].vmcs["GUEST_RFLAGS"] & 0x8D5 == 1


def test_another_seed_gives_other_numbers() -> None:
    # rdrand eax; mov [200000H], eax; mov al, 0; out 0F4h, al
    code = b"\x0f\xc7\xf0\xa3" + pack("<I", 0x200000) + b"\xb0\x00\xe6\xf4"
    numbers = []
    for seed in (0, 0, 1):
        machine = VirtualMachine(4 << 20, seed=seed)
        machine.load(parse_guest(code, file="", memory=4 << 20))
        machine.run(max_instructions=10_000)
        numbers.append(machine.processor.memory.read(0x200000, 4))
    assert numbers[0] == numbers[1] != numbers[2]


@pytest.mark.parametrize("engine", ENGINES)
def test_xsave_and_xrstor_keep_sse_registers(engine: str) -> None:
    # xsave [rsi]; xorps xmm0, xmm0; xrstor [rsi]; movups [rdi], xmm0, with xmm0 loaded before
    load, store = b"\x0f\x10\x07", b"\x0f\x11\x47\x10"
    code = load + b"\x0f\xae\x26\x0f\x57\xc0\x0f\xae\x2e" + store
    guest = features("l64", code, rax=3, rdx=0, rdi=DATA + 0x800, xcr0=3)
    guest.memory = {DATA + 0x800: bytes(range(16))}
    run = begin(guest, EVERYTHING, engine=engine)
    assert vector(run) is None
    assert run.processor.memory.read(DATA + 0x810, 16) == bytes(range(16))
    # XSTATE_BV says what the area holds.
    assert run.processor.memory.read(DATA + 512, 1)[0] & 2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("code", ["0fae26", "0fae2e"])
def test_faults_of_xsave(code: str, engine: str) -> None:
    without = Tiny("l64", code=bytes.fromhex(code), registers={"rsi": DATA})
    assert vector(begin(without, EVERYTHING, engine=engine)) == UD
    switched = features("l64", bytes.fromhex(code))
    switched.fields["GUEST_CR0"] = switched.state()["GUEST_CR0"] | 8
    assert vector(begin(switched, EVERYTHING, engine=engine)) == NM
    unaligned = features("l64", bytes.fromhex(code), rax=1, rdx=0)
    unaligned.registers["rsi"] = DATA + 8
    assert vector(begin(unaligned, EVERYTHING, engine=engine)) == GP


# In a machine: XSETBV, CPUID's image of CR4, MSRs.


def answers(code: bytes, count: int) -> tuple[int, ...]:
    """Thirty-two-bit words that `code` has stored from 200000H on, in a machine."""
    machine = VirtualMachine(4 << 20)
    machine.load(parse_guest(code + b"\xb0\x00\xe6\xf4", file="", memory=4 << 20))
    stop = machine.run(max_instructions=100_000)
    assert stop.message == "the guest exited with status 0", stop
    data = machine.processor.memory.read(0x200000, 4 * count)
    return tuple(int.from_bytes(data[n : n + 4], "little") for n in range(0, 4 * count, 4))


def store(n: int, register: int = 0) -> bytes:
    """Mov [200000H + 4n], register."""
    return bytes([0x89, 5 | register << 3]) + pack("<I", 0x200000 + 4 * n)


def msr(instruction: bytes, index: int, low: int = 0, high: int = 0) -> bytes:
    return (
        b"".join(
            (b"\xb9" + pack("<I", index), b"\xb8" + pack("<I", low), b"\xba" + pack("<I", high))
        )
        + instruction
    )


WRMSR, RDMSR, XSETBV, CPUID = b"\x0f\x30", b"\x0f\x32", b"\x0f\x01\xd1", b"\x0f\xa2"


def test_osxsave_and_xcr0() -> None:
    enable = b"\x0f\x20\xe0\x0d" + pack("<I", OSXSAVE) + b"\x0f\x22\xe0"
    leaf1 = b"\xb8\x01\x00\x00\x00" + CPUID
    code = leaf1 + store(0, 1) + enable + leaf1 + store(1, 1)
    code += msr(XSETBV, 0, 3) + b"\x31\xc9\x0f\x01\xd0" + store(2)
    before, after, xcr0 = answers(code, 3)
    assert (before >> 27 & 1, after >> 27 & 1, xcr0) == (0, 1, 3)


def test_mtrrs_are_kept() -> None:
    code = msr(RDMSR, 0xFE) + store(0)
    code += msr(WRMSR, 0x200, 0xC000_0006) + msr(RDMSR, 0x200) + store(1)
    code += msr(WRMSR, 0x2FF, 0xC06) + msr(RDMSR, 0x2FF) + store(2)
    code += msr(WRMSR, 0x268, 0x06060606, 0x05050505) + msr(RDMSR, 0x268) + store(3, 2)
    assert answers(code, 4) == (0x508, 0xC000_0006, 0xC06, 0x05050505)


def test_miscellaneous_enables_are_kept_and_hide_leaves_and_execute_disable() -> None:
    def hidden() -> tuple[bytes, bytes]:
        return b"\x31\xc0" + CPUID, b"\xb8\x01\x00\x00\x80" + CPUID

    (leaves, features), read = hidden(), msr(RDMSR, 0x1A0)
    code = read + store(0) + leaves + store(1) + features + store(2, 2)
    code += msr(WRMSR, 0x1A0, 0x00C5_0089, 4) + read + store(3) + store(4, 2)
    code += leaves + store(5) + features + store(6, 2)
    at_reset, leaf, shown, low, high, limited, rest = answers(code, 7)
    assert (at_reset, leaf) == (0x1801, cpuid(0, 0)[EAX])
    # What the processor has not, performance monitoring and branch traces, stays as it is.
    assert (low, high) == (0x00C5_1809, 4)
    assert (limited, shown & ~rest) == (2, 1 << 20)


def test_the_time_stamp_counter_can_be_set_and_adjusted() -> None:
    code = msr(WRMSR, 0x3B, 0, 5) + b"\x0f\x31" + store(0, 2) + msr(RDMSR, 0x3B) + store(1, 2)
    code += msr(WRMSR, 0x10, 0, 9) + b"\x0f\x31" + store(2, 2) + msr(RDMSR, 0x3B) + store(3, 2)
    now, adjusted, later, both = answers(code, 4)
    assert (now, adjusted, later) == (5, 5, 9)
    assert both in (8, 9)
