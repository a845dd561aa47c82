"""Scripts for a VMM that is x86 code, and what runs them: our processor, or Bochs.

`harness.S` is the VMM. One image carries many cases, because a boot costs more than a
thousand VM entries. A script is built with `Script`, whose operations give the place of
their result; `run` gives the results.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from struct import pack, unpack_from

from tests.conformance.tiny_guest import MSR_BITMAP, Tiny
from tests.conformance.vmx.good import good_fields
from trapgate.sdm.cells import ENCODINGS
from trapgate.vmcs.vmcs import Vmcs
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine

ORIGIN, SNIPPETS, SCRIPT, RESULTS = 0x100000, 0x104000, 0x120000, 0x400000
TABLES, STACK = 0x308000, 0x320000
VMXON_REGION, VMCS, OTHER_VMCS = 0x300000, 0x301000, 0x302000
AREAS = 0x304000
"""A page for MSR areas."""
LOW, LOW_END = 0x1000, 0x40000
"""Where tiny guests live."""
UNMAPPED = 0xF000_0000
"""A linear address that the VMM's tables do not map."""
MEMORY = 16 << 20

END, WRITE, LIST, READ, LAUNCH, RESUME, POKE, PEEK, CALL = range(9)
RETURNED, FAULT, EXIT = 0, 1, 2
CF, ZF = 1 << 0, 1 << 6
FLAGS = 0x8D5
"""The arithmetic flags, which say how a VMX instruction went."""
RET = b"\xc3"


@dataclass(frozen=True)
class Ran:
    """How code ended: `kind`; flags, error code or the guest's RBX; RAX or CR2."""

    kind: int
    vector: int
    flags: int
    rax: int

    @property
    def verdict(self) -> str:
        """ "exit", "fault n", or the VMX instruction's answer: "ok", "invalid", "fail"."""
        if self.kind == EXIT:
            return "exit"
        if self.kind == FAULT:
            return f"fault {self.vector}"
        return {0: "ok", CF: "invalid", ZF: "fail"}.get(self.flags & FLAGS, "odd flags")


class Results:
    """The words that a run left, by the places that the script's operations gave."""

    def __init__(self, data: bytes) -> None:
        self.words: list[int] = [
            word for (word,) in (unpack_from("<Q", data, n) for n in range(0, len(data) & ~7, 8))
        ]

    def __getitem__(self, place: int) -> int:
        return self.words[place]

    def ran(self, place: int) -> Ran:
        """How the code at that place ended."""
        kind, flags, rax = self.words[place : place + 3]
        return Ran(kind & 0xFF, kind >> 8, flags, rax)


def symbols(bits: int) -> dict[str, int]:
    """Addresses in the VMM."""
    names = ("vm_exit", "count", "gdt", "gates", "task")
    return dict(zip(names, unpack_from("<5I", binary(bits), 0x24), strict=True))


@cache
def binary(bits: int) -> bytes:
    """The VMM's image, without a script."""
    return Path(__file__).with_name(f"harness{bits}.bin").read_bytes()


class Script:
    """Operations of the VMM in `bits`, in order. `revision` is the VMCS revision identifier."""

    def __init__(self, bits: int, revision: int = 0x54524701) -> None:
        self.bits = bits
        self.revision = revision
        self._operations = bytearray()
        self._snippets: dict[bytes, int] = {}
        self._snippet_end = SNIPPETS
        self._words = 0

    def _do(self, operation: int, a: int = 0, b: int = 0, results: int = 0) -> int:
        self._operations += pack("<IIQ", operation, a & 0xFFFF_FFFF, b & (1 << 64) - 1)
        self._words += results
        return self._words - results

    def write(self, field: str, value: int) -> None:
        """VMWRITE; in two halves where the mode and the field want it."""
        for encoding, part in self._parts(field, value):
            self._do(WRITE, encoding, part)

    def _parts(self, field: str, value: int) -> list[tuple[int, int]]:
        encoding = ENCODINGS[field]
        if self.bits == 64 or encoding >> 13 & 3 != 1:
            return [(encoding, value if self.bits == 64 else value & 0xFFFF_FFFF)]
        return [(encoding, value & 0xFFFF_FFFF), (encoding | 1, value >> 32)]

    def write_all(self, fields: Mapping[str, int]) -> None:
        """VMWRITE of many fields, from a list that is kept once."""
        pairs = [pair for field, value in fields.items() for pair in self._parts(field, value)]
        data = b"".join(pack("<IIQ", encoding, 0, part) for encoding, part in pairs)
        self._do(LIST, self.place(data + pack("<I", 0xFFFF_FFFF)))

    def read(self, field: str) -> int:
        """VMREAD (the low 32 bits in 32-bit mode); one result."""
        return self._do(READ, ENCODINGS[field], 0, 1)

    def launch(self) -> int:
        """VMLAUNCH; three results."""
        return self._do(LAUNCH, results=3)

    def resume(self) -> int:
        """VMRESUME; three results."""
        return self._do(RESUME, results=3)

    def poke(self, address: int, data: bytes) -> None:
        """Store bytes, 32 bits at a time."""
        for n in range(0, len(data), 4):
            self._do(POKE, address + n, int.from_bytes(data[n : n + 4], "little"))

    def peek(self, address: int) -> int:
        """The 32 bits at `address`; one result."""
        return self._do(PEEK, address, 0, 1)

    def call(self, code: bytes, rax: int = 0) -> int:
        """Execute code; three results."""
        return self._do(CALL, self.place(code + RET), rax, 3)

    def place(self, data: bytes) -> int:
        """The address of `data` in the image."""
        if data not in self._snippets:
            self._snippets[data] = self._snippet_end
            self._snippet_end += len(data) + 15 & ~15
            assert self._snippet_end <= SCRIPT, "too many snippets for one image"
        return self._snippets[data]

    def on_memory(self, opcode: bytes, digit: int, address: int) -> bytes:
        """An instruction with an absolute memory operand."""
        modrm = bytes([digit << 3 | 4, 0x25]) if self.bits == 64 else bytes([digit << 3 | 5])
        return opcode + modrm + pack("<I", address)

    def on_pointer(self, name: str, pointer: int) -> bytes:
        """VMXON, VMCLEAR or VMPTRLD of a region."""
        opcode = {"vmxon": b"\xf3\x0f\xc7", "vmclear": b"\x66\x0f\xc7", "vmptrld": b"\x0f\xc7"}[
            name
        ]
        return self.on_memory(opcode, 6, self.place(pack("<Q", pointer)))

    def begin(self) -> None:
        """Enter VMX operation with one current VMCS, and zeros where guests live."""
        count = (LOW_END - LOW) // 4
        self.call(b"\xbf" + pack("<I", LOW) + b"\xb9" + pack("<I", count) + b"\x31\xc0\xf3\xab")
        for region in (VMXON_REGION, VMCS, OTHER_VMCS):
            self.poke(region, pack("<I", self.revision))
        self.call(self.on_pointer("vmxon", VMXON_REGION))
        self.clear()

    def clear(self) -> None:
        """Clear the one VMCS, and make it current."""
        self.call(self.on_pointer("vmclear", VMCS))
        self.call(self.on_pointer("vmptrld", VMCS))

    def image(self, *, serial: bool = False) -> bytes:
        """The multiboot image."""
        data = bytearray(binary(self.bits).ljust(SCRIPT - ORIGIN, b"\0"))
        for piece, address in self._snippets.items():
            data[address - ORIGIN : address - ORIGIN + len(piece)] = piece
        image = bytes(data + self._operations + pack("<IIQ", END, 0, serial))
        assert ORIGIN + len(image) <= VMXON_REGION, "too many operations for one image"
        return image


def run(
    script: Script, *, engine: str = "auto", explain: Callable[[str], None] | None = None
) -> Results:
    """Run a script on our processor."""
    vm = VirtualMachine(MEMORY, engine=engine, explain=explain)
    vm.load(parse_guest(script.image(), file="harness", memory=MEMORY, append=""))
    stop = vm.run(timeout=120)
    memory = vm.processor.memory
    assert stop.end.name == "DEBUG_EXIT", (stop, hex(vm.vmcs["GUEST_RIP"]))
    count = int.from_bytes(memory.read(symbols(script.bits)["count"], 4), "little")
    return Results(memory.read(RESULTS, count))


def host_fields(bits: int) -> dict[str, int]:
    """The VMM's own state, for the host-state area."""
    at = symbols(bits)
    return {
        "HOST_CR3": TABLES,
        "HOST_CR4": 0x2620 if bits == 64 else 0x2610,
        "HOST_IA32_EFER": 0xD01 if bits == 64 else 0,
        "HOST_TR_BASE": at["task"],
        "HOST_GDTR_BASE": at["gdt"],
        "HOST_IDTR_BASE": at["gates"],
        "HOST_RIP": at["vm_exit"],
        "HOST_RSP": STACK,
    }


def guest_fields(bits: int, guest: Tiny) -> dict[str, int]:
    """A VMCS for a tiny guest under a VMM in `bits`."""
    vmcs = Vmcs()
    vmcs.set_flat_segments(64 if guest.long else 32, user=guest.ring == 3)
    state = {field.name: vmcs[field] for field in vmcs if field.kind == "guest state"}
    state |= {name: value for name, value in guest.state().items() if name.startswith("GUEST_")}
    fields = {**good_fields(bits), **state, **host_fields(bits)}
    entry = fields["VM_ENTRY_CONTROLS"] & ~(1 << 9) | guest.long << 9
    return {
        **fields,
        "PRIMARY_PROCESSOR_BASED_CONTROLS": fields["PRIMARY_PROCESSOR_BASED_CONTROLS"] | 1 << 28,
        "MSR_BITMAP_ADDRESS": MSR_BITMAP,
        "VM_ENTRY_CONTROLS": entry,
        "GUEST_IA32_EFER": fields["GUEST_IA32_EFER"] & ~0x500 | guest.long * 0x500,
        **{name: guest.fields[name] for name in guest.fields},
    }


def put_guest(script: Script, guest: Tiny) -> None:
    """Store a tiny guest's tables and code, where they are not 0."""
    for address, data in guest.tables().items():
        assert address % 4 == 0
        for n in range(0, len(data), 4):
            if any(data[n : n + 4]):
                script.poke(address + n, data[n : n + 4].ljust(4, b"\0"))


def all_fields(fields: Mapping[str, int], *, extensions: bool = False) -> dict[str, int]:
    """With a 0 for every field that `fields` leaves out and software may write."""
    return {
        name: fields.get(name, 0)
        for name, encoding in ENCODINGS.items()
        if encoding >> 10 & 3 != 1
        and (extensions or encoding >> 1 & 0x1FF < 0x100)
        and name not in ABSENT
    }


ABSENT = {
    "VIRTUAL_APIC_ADDRESS",
    "APIC_ACCESS_ADDRESS",
    "TPR_THRESHOLD",
    "EXECUTIVE_VMCS_POINTER",
    "GUEST_SMBASE",
}
"""Fields of features that are not there: on other processors VMWRITE may fail."""


def capability(script: Script, number: int) -> int:
    """RDMSR, EAX and EDX put together (in 64-bit mode; EAX alone in 32-bit); three results."""
    code = b"\xb9" + pack("<I", number) + b"\x0f\x32"
    if script.bits == 64:
        code += bytes.fromhex("48c1e220 4809d0")
    return script.call(code)


@cache
def assembler_is_there() -> bool:
    """Whether the images can be made again from their source."""
    return all(shutil.which(tool) for tool in ("as", "ld"))


def assembled(source: str, origin: int, *definitions: str) -> bytes:
    """The bytes that GNU as and ld make of a source file here."""
    with tempfile.TemporaryDirectory() as folder:
        made, image = f"{folder}/made.o", f"{folder}/made.bin"
        symbols = [part for definition in definitions for part in ("--defsym", definition)]
        subprocess.run(["as", *symbols, "-o", made, Path(__file__).with_name(source)], check=True)
        flat = ["-m", "elf_x86_64", f"-Ttext={origin:#x}", "--oformat=binary"]
        subprocess.run(["ld", *flat, "-o", image, made], check=True)
        return Path(image).read_bytes()
