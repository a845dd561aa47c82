"""The cases of an independent x86 model: reading them, setting them up, judging outcomes.

`oracle/` holds the cases as they came: VM entries into a tiny guest whose every IDT
handler is one VMCALL, each with its whole input and what happened up to the first
VM exit. Nothing here imports the code under test, so that one and the same judge
serves the interpreted core, the compiled core and the whole processor.
"""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "oracle"
BASE = 0x800000
"""Where the guest's memory image lies; physical = linear."""
MEMORY = 0xA00000
"""RAM that a case needs, in bytes. Nothing backs the addresses above."""

VMCALL = 18
VMCALL_BYTES = b"\x0f\x01\xc1"

Case = dict[str, Any]


@cache
def cases() -> tuple[Case, ...]:
    """All cases, in the order of the file."""
    with gzip.open(FOLDER / "cases.jsonl.gz", "rt", encoding="ascii") as lines:
        return tuple(json.loads(line) for line in lines)


def families() -> dict[str, list[Case]]:
    """The cases by family."""
    found: dict[str, list[Case]] = {}
    for case in cases():
        found.setdefault(case["fam"], []).append(case)
    return found


def injected(family: str) -> Iterator[Case]:
    """The cases of a family that the VM entry alone decides: something is injected."""
    return (case for case in families()[family] if case["in"]["entry_info"] & 1 << 31)


@cache
def base_image(mode: str) -> bytes:
    """The guest's 192 KiB of memory in `mode` (p32, pae or l64), before patches."""
    return gzip.decompress((FOLDER / f"base_{mode}.bin.gz").read_bytes())


@dataclass(frozen=True)
class Setup:
    """What a case starts from: VMCS fields by name, other registers by name, memory at BASE."""

    fields: dict[str, int]
    registers: dict[str, int]
    image: bytes


def build(case: Case) -> Setup:
    """The machine that `case` describes. Values are unsigned; unnamed fields stay as reset."""
    given = case["in"]
    long = case["mode"] == "l64"
    ring = case["cpl"]
    image = bytearray(base_image(case["mode"]))
    for address, data in given["mem"]:
        patch = bytes.fromhex(data)
        image[address - BASE : address - BASE + len(patch)] = patch

    fields = {
        "PIN_BASED_CONTROLS": 0x16 | given["pin_nmi"],
        "PRIMARY_PROCESSOR_BASED_CONTROLS": 0x04006172 | 1 << 7 | 1 << 24,
        "VM_EXIT_CONTROLS": 0x00036DFB | 1 << 2 | 1 << 9 | 1 << 20 | 1 << 21,
        "VM_ENTRY_CONTROLS": 0x11FB | 1 << 2 | 1 << 15 | long << 9,
        "EXCEPTION_BITMAP": given["xbm"],
        "PAGE_FAULT_ERROR_CODE_MASK": given["pfec_mask"],
        "PAGE_FAULT_ERROR_CODE_MATCH": given["pfec_match"],
        "VM_ENTRY_INTERRUPTION_INFORMATION": given["entry_info"],
        "VM_ENTRY_EXCEPTION_ERROR_CODE": given["entry_err"],
        "VM_ENTRY_INSTRUCTION_LENGTH": given["entry_len"],
        "VMCS_LINK_POINTER": (1 << 64) - 1,
        "GUEST_INTERRUPTIBILITY_STATE": given["interruptibility"],
        "GUEST_ACTIVITY_STATE": given["activity"],
        "GUEST_PENDING_DEBUG_EXCEPTIONS": given["pend_dbg"],
        "GUEST_RIP": given["rip"],
        "GUEST_RSP": given["rsp"],
        "GUEST_RFLAGS": given["rflags"],
        "GUEST_CR0": given["cr0"],
        "GUEST_CR3": given["cr3"],
        "GUEST_CR4": given["cr4"],
        "GUEST_IA32_EFER": given["efer"],
        "GUEST_DR7": given["dr7"],
        "GUEST_GDTR_BASE": BASE,
        "GUEST_GDTR_LIMIT": 0xFF,
        "GUEST_IDTR_BASE": BASE + (0x1F00 if long else 0x1F80),
        "GUEST_IDTR_LIMIT": given["idt_limit"],
        "GUEST_TR_SELECTOR": 0x28,
        "GUEST_TR_BASE": BASE + 0x3000,
        "GUEST_TR_LIMIT": given["tr_limit"],
        "GUEST_TR_ACCESS_RIGHTS": 0x8B,
        "GUEST_LDTR_SELECTOR": 0,
        "GUEST_LDTR_ACCESS_RIGHTS": 1 << 16,
    }
    for name in ("ES", "CS", "SS", "DS", "FS", "GS"):
        fields[f"GUEST_{name}_SELECTOR"] = 0x23 if ring else 0x10
        fields[f"GUEST_{name}_BASE"] = 0
        fields[f"GUEST_{name}_LIMIT"] = 0xFFFF_FFFF
        fields[f"GUEST_{name}_ACCESS_RIGHTS"] = 0xC093 | ring << 5
    fields["GUEST_SS_LIMIT"] = given["ss_limit"]
    if long:
        fields["GUEST_CS_SELECTOR"] = 0x43 if ring else 0x38
        fields["GUEST_CS_ACCESS_RIGHTS"] = 0xA09B | ring << 5
    else:
        fields["GUEST_CS_SELECTOR"] = 0x1B if ring else 0x08
        fields["GUEST_CS_ACCESS_RIGHTS"] = 0xC09B | ring << 5

    registers = {f"r{name}": value for name, value in given["gpr"].items()}
    registers |= {"cr2": given["cr2"], "dr0": given["dr0"], "dr1": given["dr1"]}
    registers["dr6"] = 0xFFFF0FF0
    return Setup(fields, registers, bytes(image))


@dataclass(frozen=True)
class Outcome:
    """What became of a case: how to ask the machine that ran it.

    `vm_error` is the VM-instruction error of a VMfailValid, else None. `field` reads a
    VMCS field by name, `register` another register by its name in lower case, `memory`
    physical memory (address, bytes).
    """

    vm_error: int | None
    field: Callable[[str], int]
    register: Callable[[str], int]
    memory: Callable[[int, int], bytes]


def _event(outcome: Outcome, name: str, code: str) -> dict[str, int | None] | None:
    info = outcome.field(name)
    if not info & 1 << 31:
        return None
    has_code = info & 1 << 11
    return {
        "vector": info & 0xFF,
        "type": info >> 8 & 7,
        "err": outcome.field(code) if has_code else None,
    }


_STATE = {
    "rip": "GUEST_RIP",
    "rsp": "GUEST_RSP",
    "rflags": "GUEST_RFLAGS",
    "cs": "GUEST_CS_SELECTOR",
    "ss": "GUEST_SS_SELECTOR",
    "dr7": "GUEST_DR7",
    "entry_info_after": "VM_ENTRY_INTERRUPTION_INFORMATION",
}
_STATE_OR_ZERO = {
    "interruptibility": "GUEST_INTERRUPTIBILITY_STATE",
    "activity": "GUEST_ACTIVITY_STATE",
    "pend_dbg": "GUEST_PENDING_DEBUG_EXCEPTIONS",
}


def compare(case: Case, outcome: Outcome) -> list[str]:
    """Where `outcome` differs from what the model found; nothing if it agrees."""
    expected = case["out"]
    kind = expected["kind"]
    differences: list[str] = []

    def check(what: str, got: object, want: object) -> None:
        if got != want:
            shown = [f"{x:#x}" if isinstance(x, int) else str(x) for x in (got, want)]
            differences.append(f"{what}: {shown[0]}, expected {shown[1]}")

    if kind == "vmfail":
        check("VM-instruction error", outcome.vm_error, expected["vmerr"])
        return differences
    check("VM-instruction error", outcome.vm_error, None)
    if differences:
        return differences
    reason = outcome.field("EXIT_REASON")
    if kind == "entry_fail":
        check("exit reason", reason, 1 << 31 | expected["reason"])
        check("qualification", outcome.field("EXIT_QUALIFICATION"), expected["qual"])
        return differences

    if kind == "exit":
        check("exit reason", reason, expected["reason"])
        check("qualification", outcome.field("EXIT_QUALIFICATION"), expected["qual"])
        names = "VM_EXIT_INTERRUPTION_INFORMATION", "VM_EXIT_INTERRUPTION_ERROR_CODE"
        check("interruption", _event(outcome, *names), expected["intr"])
        names = "IDT_VECTORING_INFORMATION", "IDT_VECTORING_ERROR_CODE"
        check("IDT-vectoring", _event(outcome, *names), expected["idtv"])
        if expected["ilen"] is not None:
            length = outcome.field("VM_EXIT_INSTRUCTION_LENGTH")
            check("instruction length", length, expected["ilen"])
    else:
        # A handler was entered, or the instruction went through: a VMCALL ends both.
        check("exit reason", reason, VMCALL)
    for name, field in _STATE.items():
        if expected.get(name) is not None:
            check(name, outcome.field(field), expected[name])
    for name, field in _STATE_OR_ZERO.items():
        check(name, outcome.field(field), expected.get(name, 0))
    for name, register in {"cr2": "cr2", "dr6": "dr6", "cx": "rcx"}.items():
        if expected.get(name) is not None:
            check(name, outcome.register(register), expected[name])
    if kind == "deliver":
        rights = outcome.field("GUEST_SS_ACCESS_RIGHTS")
        check("handler's CPL", rights >> 5 & 3, expected["handler_cpl"])
        size = 8 if case["mode"] == "l64" else 4
        for n, want in enumerate(expected["stack"]):
            if want is not None:
                at = outcome.field("GUEST_RSP") + n * size
                check(f"stack word {n}", int.from_bytes(outcome.memory(at, size), "little"), want)
    return differences
