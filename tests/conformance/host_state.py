"""Single instructions with all the state they may use, in the guest and on the host processor.

A small program for the host, in C, executes the very bytes that the guest does, with the same
registers, flags, x87 and SSE state and memory.
"""

import platform
import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, pack, unpack_from
from typing import Any

import pytest

from tests.conformance.tiny_guest import CODE, DATA, VMCALL, Tiny, prepare
from trapgate.processor.processor import Processor
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm.reasons import ExitReason
from trapgate.vmcs.vmcs import Vmcs

NEEDS_HOST = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64" or shutil.which("gcc") is None,
    reason="needs Linux on x86-64 and a C compiler",
)
ENGINES = ("native", "portable")
STATUS = 0x8D5
"""Of the flags: the status flags."""
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
    open_status: int = 0
    """Bits of the x87 status word that are not compared."""

    def packed(self) -> bytes:
        """As the host's program reads it."""
        return INPUT.pack(
            len(self.code), self.code, *self.general, self.flags, self.fx, self.memory
        )


def state(
    case: Case, general: tuple[int, ...], flags: int, fx: bytes, memory: bytes
) -> dict[str, object]:
    """What is compared, by name."""
    flags &= STATUS & ~case.open_flags
    control, status = unpack_from("<HH", fx)
    named = dict(zip(REGISTERS, general, strict=True))
    del named["rsp"]
    found: dict[str, object] = {name: hex(value) for name, value in named.items()}
    found |= {"flags": hex(flags), "tags": fx[4], "mxcsr": fx[24:28].hex(), "memory": memory.hex()}
    found |= {"control": hex(control), "status": hex(status & ~case.open_status)}
    found |= {f"mm{n}": fx[32 + 16 * n : 42 + 16 * n].hex() for n in range(8)}
    return found | {f"xmm{n}": fx[160 + 16 * n : 176 + 16 * n].hex() for n in range(16)}


def on_the_host(cases: Sequence[Case], folder: Path) -> list[object]:
    """The host's state behind each instruction, or that it faults."""
    (folder / "run.c").write_text(PROGRAM)
    options = ("-O1", "-no-pie", "-static", "-w", f"-DOPERAND={OPERAND}UL")
    subprocess.run(["gcc", *options, "-o", "run", "run.c"], cwd=folder, check=True)
    text = b"".join(one.packed() for one in cases)
    done = subprocess.run([folder / "run"], input=text, capture_output=True, check=True)
    found: list[object] = []
    for one, (signal, *rest) in zip(cases, OUTPUT.iter_unpack(done.stdout), strict=True):
        *general, flags, fx, memory = rest
        found.append("faults" if signal else state(one, tuple(general), flags, fx, memory))
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
    return state(
        one, general, vmcs["GUEST_RFLAGS"], memory.read(BEHIND, 512), memory.read(OPERAND, 64)
    )


def differences(cases: Sequence[Case], host: Sequence[object], engine: str) -> dict[str, object]:
    """What differs between guest and host, by case: ours and the host's."""
    processor, vmcs = prepare(Tiny("l64"), {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)
    processor.vmlaunch(vmcs)
    wrong: dict[str, object] = {}
    for one, expected in zip(cases, host, strict=True):
        vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 1_000_000
        ours = run(processor, vmcs, one)
        if ours == expected:
            continue
        if isinstance(ours, dict) and isinstance(expected, dict):
            wrong[one.text] = {
                name: (ours[name], expected[name]) for name in ours if ours[name] != expected[name]
            }
        else:
            wrong[one.text] = {"": (str(ours)[:40], str(expected)[:40])}
    return wrong


Compare = Callable[[str], dict[str, object]]
"""The differences between an engine and the host, by the engine's name."""


def comparison(case: Callable[[random.Random], Case], count: int, name: str) -> Any:
    """A fixture of a module: `count` random cases, which the host executes once for all engines.

    The `name` seeds them.
    """

    @pytest.fixture(scope="module")
    def compare(tmp_path_factory: pytest.TempPathFactory) -> Compare:
        chance = random.Random(f"random {name} {count}")
        chosen = [case(chance) for _ in range(count)]
        host = on_the_host(chosen, tmp_path_factory.mktemp("random"))
        return lambda engine: differences(chosen, host, engine)

    return compare
