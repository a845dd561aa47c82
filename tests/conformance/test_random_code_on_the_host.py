"""Random instructions with random registers: the guest's state behind them against the host's.

The test compiles a small program for the host, in C, that executes the very bytes with the same
registers, flags, x87 and SSE state and memory. What the SDM leaves open is not compared.
TRAPGATE_RANDOM_CODE says how many instructions (300).
"""

import os
import platform
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, pack

import iced_x86 as iced
import pytest

from tests.conformance.tiny_guest import CODE, DATA, STACK, VMCALL, Tiny, prepare
from trapgate.processor.processor import Processor, VmExit
from trapgate.sdm.reasons import ExitReason
from trapgate.vmcs.vmcs import Vmcs

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(
        platform.system() != "Linux"
        or platform.machine() != "x86_64"
        or shutil.which("gcc") is None,
        reason="needs Linux on x86-64 and a C compiler",
    ),
]

ENGINES = ("native", "portable")
COUNT = int(os.environ.get("TRAPGATE_RANDOM_CODE", "300"))
REGISTERS = (
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rsp",
    "rbp",
    "rsi",
    "rdi",
    *(f"r{n}" for n in range(8, 16)),
)
OPERAND = DATA + 0x100
"""Where RDI points, in the guest and on the host: 64 bytes that instructions may use."""
BEFORE, BEHIND = DATA + 0x400, DATA + 0x800
"""Images of FXSAVE in the guest."""
RSP, RDI = 4, 7

INPUT = Struct("<B15s16QQ512s64s")
OUTPUT = Struct("<Q16QQ512s64s")

PROGRAM = r"""
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
struct { uint8_t length, code[15]; uint64_t general[16], flags; uint8_t fx[512], memory[64]; } in;
struct { uint64_t signal, general[16], flags; uint8_t fx[512], memory[64]; } out;
uint64_t before[16], behind[16], flags_before, flags_behind, stack;
uint8_t image[512] __attribute__((aligned(64)));
void *code;
extern char left[];
static void caught(int number, siginfo_t *info, void *context) {
    gregset_t *registers = &((ucontext_t *)context)->uc_mcontext.gregs;
    out.signal = number;
    (*registers)[REG_RIP] = (long)left;
    (*registers)[REG_RSP] = stack;
    (*registers)[REG_EFL] &= ~0x500;
}
void run(void);
#define LOAD(n, r) "mov before+8*" #n ",%" #r "\n"
#define STORE(n, r) "mov %" #r ",behind+8*" #n "\n"
#define ALL(DO) DO(0, rax) DO(1, rcx) DO(2, rdx) DO(3, rbx) DO(5, rbp) DO(6, rsi) DO(7, rdi) \
    DO(8, r8) DO(9, r9) DO(10, r10) DO(11, r11) DO(12, r12) DO(13, r13) DO(14, r14) DO(15, r15)
__asm__("run: push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsp,stack\n fxrstor64 image\n pushq flags_before\n popfq\n" ALL(LOAD)
        "call *code\n" ALL(STORE)
        "pushfq\n popq flags_behind\n fxsave64 image\n"
        "left: cld\n fninit\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret");
int main(void) {
    static uint8_t other[65536];
    stack_t alternative = {.ss_sp = other, .ss_size = sizeof other};
    struct sigaction action = {.sa_sigaction = caught,
                               .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    const int signals[] = {SIGSEGV, SIGFPE, SIGILL, SIGBUS};
    uint8_t *page = (uint8_t *)(OPERAND & ~4095);
    uint32_t control = 0x1f80;
    sigaltstack(&alternative, 0);
    for (int n = 0; n < 4; n++) sigaction(signals[n], &action, 0);
    if (mmap(page, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != page) return 1;
    code = mmap(0, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    while (fread(&in, sizeof in, 1, stdin) == 1) {
        memset(&out, 0, sizeof out);
        memcpy(code, in.code, in.length);
        ((uint8_t *)code)[in.length] = 0xc3;
        memcpy(before, in.general, sizeof before);
        memcpy(image, in.fx, sizeof image);
        memset(page, 0, 4096);
        memcpy((void *)OPERAND, in.memory, sizeof in.memory);
        flags_before = in.flags;
        run();
        __asm__ volatile("ldmxcsr %0" ::"m"(control));
        memcpy(out.general, behind, sizeof behind);
        out.flags = flags_behind;
        memcpy(out.fx, image, sizeof image);
        memcpy(out.memory, (void *)OPERAND, sizeof out.memory);
        fwrite(&out, sizeof out, 1, stdout);
    }
    return 0;
}
"""

_FEATURES = {
    getattr(iced.CpuidFeature, name)
    for name in (
        *("INTEL8086", "INTEL186", "INTEL286", "INTEL386", "INTEL486", "X64", "CMOV", "CX8"),
        *("MMX", "SSE", "SSE2", "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "POPCNT", "CMPXCHG16B"),
    )
}
_NAMES = {value: name for name, value in vars(iced.Mnemonic).items() if isinstance(value, int)}
_LEFT_OUT = (
    # What depends on more than the state that is loaded.
    *("CPUID", "RDTSC", "RDPMC", "SYSCALL", "SMSW", "SLDT", "STR", "SGDT", "SIDT", "LAR", "LSL"),
    *("VERR", "VERW", "IN", "OUT", "LDMXCSR", "STMXCSR"),
    *("FXSAVE", "FXRSTOR", "FXSAVE64", "FXRSTOR64"),
    # Memory that is not at RDI alone; likewise string instructions.
    *("XLATB", "MASKMOVQ", "MASKMOVDQU"),
    # A multiple of the width leaves OF open; so does a count above the width all of SHLD's result.
    *("RCL", "RCR", "SHLD", "SHRD"),
    # Of 0 the destination is open; table look-ups differ; AMD's CVTPI2PS spares the x87.
    *("BSF", "BSR", "RCPPS", "RCPSS", "RSQRTPS", "RSQRTSS", "CVTPI2PS"),
)
_FLAGS = {
    iced.RflagsBits.CF: 0x001,
    iced.RflagsBits.PF: 0x004,
    iced.RflagsBits.AF: 0x010,
    iced.RflagsBits.ZF: 0x040,
    iced.RflagsBits.SF: 0x080,
    iced.RflagsBits.OF: 0x800,
}
_STATUS = sum(_FLAGS.values())
_PATTERNS = (0, 1, 0x7F, 0x80, 0xFF)
_SINGLES = (
    0,
    0x80000000,
    0x3F800000,
    0xBF800000,
    0x7F800000,
    0x7FC00001,
    0x7F800001,
    1,
    0x4F000000,
)
_DOUBLES = tuple(n << 48 for n in (0, 0x8000, 0x3FF0, 0xBFF8, 0x7FF0, 0x7FF8, 0x41E0, 0xC3E0, 1))


@dataclass(frozen=True)
class Case:
    """An instruction, and what is there before it."""

    text: str
    code: bytes
    open_flags: int
    general: tuple[int, ...]
    flags: int
    fx: bytes
    memory: bytes

    def packed(self) -> bytes:
        """As the host's program reads it."""
        return INPUT.pack(
            len(self.code), self.code, *self.general, self.flags, self.fx, self.memory
        )


def instruction(chance: random.Random) -> tuple[bytes, iced.Instruction]:
    """One that goes on to the next, with operands in registers but RSP, or at RDI."""
    while True:
        prefix = chance.choice((b"", b"", b"\x66", b"\xf2", b"\xf3"))
        form = chance.choice((0xC0 | chance.randrange(64), 0x47 | chance.randrange(8) << 3))
        in_memory = form < 0x80
        rex = chance.choice((b"", bytes([0x40 | chance.randrange(16)]), b"\x48"))
        if in_memory and rex:
            rex = bytes([rex[0] & ~1])
        escape = chance.choice((b"", b"\x0f", b"\x0f", b"\x0f\x38", b"\x0f\x3a"))
        opcode = chance.randrange(256)
        if escape == b"" and 0xD8 <= opcode <= 0xDF:
            continue  # x87 has tests of its own
        place = bytes([chance.choice((0, 8, 16, 32, 33))]) if in_memory else b""
        code = prefix + rex + escape + bytes([opcode, form]) + place + chance.randbytes(9)
        found = iced.Decoder(64, code[:15], ip=CODE).decode()
        if not found.is_invalid and is_chosen(found):
            return code[: found.len], found


def is_chosen(found: iced.Instruction) -> bool:
    """Whether its effect is a matter of the state that is loaded, and of nothing else."""
    name = _NAMES[found.mnemonic]
    if found.flow_control != iced.FlowControl.NEXT or found.has_lock_prefix:
        return False
    if found.is_privileged or found.is_stack_instruction or name in _LEFT_OUT:
        return False
    if found.is_string_instruction:
        return False
    if not set(found.cpuid_features()) <= _FEATURES:
        return False
    info = iced.InstructionInfoFactory().info(found)
    for one in info.used_registers():
        register = one.register
        if iced.RegisterExt.full_register(register) == iced.Register.RSP:
            return False
        # LFS would take the host's program its FS.
        if iced.RegisterExt.is_segment_register(register) and register != iced.Register.DS:
            return False
    # Selectors differ.
    if name == "MOV" and iced.Register.DS in (found.op0_register, found.op1_register):
        return False
    bits = name in ("BT", "BTS", "BTR", "BTC") and found.op_kind(1) == iced.OpKind.REGISTER
    return not (bits and list(info.used_memory())) and all(
        one.base == iced.Register.RDI
        and one.index == iced.Register.NONE
        and one.segment == iced.Register.DS
        for one in info.used_memory()
    )


def vector(chance: random.Random) -> bytes:
    """Sixteen bytes: any, of patterns, or floating-point numbers."""
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(16)
    if kind == 1:
        return bytes(chance.choice(_PATTERNS) for _ in range(16))
    if kind == 2:
        return pack("<4I", *(chance.choice(_SINGLES) for _ in range(4)))
    return pack("<2Q", *(chance.choice(_DOUBLES) for _ in range(2)))


def case(chance: random.Random) -> Case:
    code, found = instruction(chance)
    general = [
        chance.choice(
            (0, 1, (1 << 64) - 1, 1 << 63, chance.getrandbits(64), chance.getrandbits(32))
        )
        for _ in REGISTERS
    ]
    general[RSP], general[RDI] = STACK, OPERAND
    control = 0x1F80 | chance.choice((0, 0, 0x2000, 0x6000, 0x40, 0x8040))
    exponents = (b"\xff\xff", b"\xff\x3f")
    fx = pack("<HHBxHQQII", 0x37F, 0, chance.choice((0, 0xFF)), 0, 0, 0, control, 0xFFFF)
    for _ in range(8):
        fx += (vector(chance)[:8] + chance.choice(exponents)).ljust(16, b"\0")
    fx += b"".join(vector(chance) for _ in range(16))
    open_flags = sum(bit for flag, bit in _FLAGS.items() if found.rflags_undefined & flag)
    memory = b"".join(vector(chance) for _ in range(4))
    flags = 2 | chance.getrandbits(12) & _STATUS
    text = f"{code.hex()} {found}"
    return Case(text, code, open_flags, tuple(general), flags, fx.ljust(512, b"\0"), memory)


@pytest.fixture(scope="module")
def chosen() -> list[Case]:
    chance = random.Random(f"random code {COUNT}")
    return [case(chance) for _ in range(COUNT)]


def state(general: tuple[int, ...], flags: int, fx: bytes, memory: bytes) -> dict[str, object]:
    """What is compared, by name."""
    named = dict(zip(REGISTERS, general, strict=True))
    del named["rsp"]
    found: dict[str, object] = {name: hex(value) for name, value in named.items()}
    found |= {"flags": hex(flags), "tags": fx[4], "mxcsr": fx[24:28].hex(), "memory": memory.hex()}
    found |= {f"mm{n}": fx[32 + 16 * n : 42 + 16 * n].hex() for n in range(8)}
    return found | {f"xmm{n}": fx[160 + 16 * n : 176 + 16 * n].hex() for n in range(16)}


@pytest.fixture(scope="module")
def expected(chosen: list[Case], tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The host's state behind each instruction, or that it faults."""
    folder: Path = tmp_path_factory.mktemp("random")
    (folder / "run.c").write_text(PROGRAM)
    options = ("-O1", "-no-pie", "-static", "-w", f"-DOPERAND={OPERAND}UL")
    subprocess.run(["gcc", *options, "-o", "run", "run.c"], cwd=folder, check=True)
    text = b"".join(one.packed() for one in chosen)
    done = subprocess.run([folder / "run"], input=text, capture_output=True, check=True)
    found: list[object] = []
    for one, (signal, *rest) in zip(chosen, OUTPUT.iter_unpack(done.stdout), strict=True):
        *general, flags, fx, memory = rest
        shown = flags & _STATUS & ~one.open_flags
        found.append("faults" if signal else state(tuple(general), shown, fx, memory))
    return found


def run(processor: Processor, vmcs: Vmcs, one: Case) -> object:
    """The same of the guest."""
    load = b"\x48\x0f\xae\x0c\x25" + pack("<I", BEFORE)  # fxrstor64 [BEFORE]
    store = b"\x48\x0f\xae\x04\x25" + pack("<I", BEHIND)  # fxsave64 [BEHIND]
    memory = processor.memory
    memory.write(CODE, load + one.code + store + VMCALL)
    memory.write(DATA, bytes(4096))
    memory.write(BEFORE, one.fx)
    memory.write(OPERAND, one.memory)
    for name, value in zip(REGISTERS, one.general, strict=True):
        if name != "rsp":
            setattr(processor.registers, name, value)
    for name, value in Tiny("l64").state().items():
        vmcs[name] = value
    vmcs["GUEST_RSP"], vmcs["GUEST_RFLAGS"] = one.general[RSP], one.flags
    outcome = processor.vmresume(vmcs)
    assert isinstance(outcome, VmExit)
    if outcome.reason is ExitReason.EXCEPTION_OR_NMI:
        return "faults"
    assert outcome.reason is ExitReason.VMCALL
    general = tuple(0 if n == "rsp" else getattr(processor.registers, n) for n in REGISTERS)
    flags = vmcs["GUEST_RFLAGS"] & _STATUS & ~one.open_flags
    return state(general, flags, memory.read(BEHIND, 512), memory.read(OPERAND, 64))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_guest_does_as_the_host(
    chosen: list[Case], expected: list[object], engine: str
) -> None:
    processor, vmcs = prepare(Tiny("l64"), {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)
    processor.vmlaunch(vmcs)
    wrong = {}
    for one, host in zip(chosen, expected, strict=True):
        vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 1_000_000
        ours = run(processor, vmcs, one)
        if ours == host:
            continue
        if isinstance(ours, dict) and isinstance(host, dict):
            wrong[one.text] = {
                name: (ours[name], host[name]) for name in ours if ours[name] != host[name]
            }
        else:
            wrong[one.text] = {"": (str(ours)[:40], str(host)[:40])}
    assert wrong == {}
