"""A VMM of a few hand-assembled bytes: VMXON to VMLAUNCH with given fields, and its guest.

The VMM runs in protected mode, with PAE or in 64-bit mode on the tables of `tiny_guest`. It
tells the test what happened by an OUT, which leaves the processor: FELL_THROUGH behind a
VMLAUNCH that failed, EXITED at HOST_RIP, FAULTED in the handler of every vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import pack

from tests.conformance import tiny_guest as tiny
from trapgate.processor.processor import Processor
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import controls as ct
from trapgate.sdm import vmx
from trapgate.sdm.fields import Field
from trapgate.sdm.reasons import ExitReason
from trapgate.vmcs.vmcs import Vmcs

MODES = ("p32", "pae", "l64")
VMXON_REGION, VMCS_REGION, OTHER_VMCS = 0x40000, 0x41000, 0x42000
POINTERS = 0x43000
"""Where the VMM keeps the addresses of these three, 8 bytes each."""
GUEST_CODE, GUEST_STACK, HOST_CODE, HOST_STACK = 0x50000, 0x53000, 0x54000, 0x57000
AREA = 0x60000
"""Room for MSR areas."""
FELL_THROUGH, EXITED, FAULTED = 0x10, 0x11, 0x12
CPUID = b"\x0f\xa2"


def out(port: int) -> bytes:
    """OUT `port`, AL."""
    return bytes([0xE6, port])


@dataclass
class Assembler:
    """The few instructions that the VMM is made of; `long` for 64-bit mode."""

    long: bool

    def absolute(self, register: int, address: int) -> bytes:
        """A ModR/M byte with that middle field, and a 32-bit address."""
        if self.long:
            return bytes([4 | register << 3, 0x25]) + pack("<I", address)
        return bytes([5 | register << 3]) + pack("<I", address)

    def load(self, number: int, value: int) -> bytes:
        """MOV of a constant into a general register (below 8)."""
        if self.long:
            return bytes([0x48, 0xB8 + number]) + pack("<Q", value & (1 << 64) - 1)
        return bytes([0xB8 + number]) + pack("<I", value & 0xFFFFFFFF)

    def vmxon(self, at: int = POINTERS) -> bytes:
        """VMXON with the pointer at `at`."""
        return b"\xf3\x0f\xc7" + self.absolute(6, at)

    def vmclear(self, at: int = POINTERS + 8) -> bytes:
        """VMCLEAR with the pointer at `at`."""
        return b"\x66\x0f\xc7" + self.absolute(6, at)

    def vmptrld(self, at: int = POINTERS + 8) -> bytes:
        """VMPTRLD with the pointer at `at`."""
        return b"\x0f\xc7" + self.absolute(6, at)

    def vmptrst(self, at: int) -> bytes:
        """VMPTRST to `at`."""
        return b"\x0f\xc7" + self.absolute(7, at)

    def vmread(self, encoding: int) -> bytes:
        """VMREAD of a field into RAX."""
        return self.load(2, encoding) + b"\x0f\x78\xd0"

    def vmwrite(self, encoding: int, value: int) -> bytes:
        """VMWRITE of a field, both halves where it takes two."""
        code = self.load(2, encoding) + self.load(0, value) + b"\x0f\x79\xd0"
        if not self.long and encoding >> 13 & 3 == 1 and not encoding & 1:
            code += self.vmwrite(encoding | 1, value >> 32)
        return code

    def jump(self, target: int) -> bytes:
        """JMP to a constant address, by RAX."""
        return self.load(0, target) + b"\xff\xe0"

    vmlaunch = b"\x0f\x01\xc2"
    vmresume = b"\x0f\x01\xc3"
    vmxoff = b"\x0f\x01\xc4"
    vmcall = b"\x0f\x01\xc1"


@dataclass
class X86Vmm:
    """An x86 VMM and its guest, in memory; `fields` override those of `fields_of`."""

    mode: str = "l64"
    guest: bytes = CPUID
    fields: Mapping[str, int] = field(default_factory=dict)
    guest_mode: str = ""
    engine: str = "auto"
    handler: bytes = b""
    """What the VMM does at HOST_RIP before it reports the exit."""
    program: bytes | None = None
    """The VMM's code instead of `start`."""
    memory: Mapping[int, bytes] = field(default_factory=dict)
    registers: Mapping[str, int] = field(default_factory=dict)
    extended: bool = True

    def __post_init__(self) -> None:
        self.assembler = Assembler(self.mode == "l64")
        self.processor = Processor(tiny.MEMORY, engine=self.engine)
        self.processor.x86_vmm.offer_vmx(extended=self.extended)
        self.vmcs = Vmcs()
        self.boot()

    def boot(self) -> None:
        """Put everything into memory and registers, as after a reset."""
        processor = self.processor
        guest = tiny.Tiny(self.mode, fields={"GUEST_CR4": self.cr4})
        guest.put(processor, self.vmcs)
        for vector in range(256):
            processor.memory.write(tiny.handler(vector), out(FAULTED))
        processor.memory.write(
            POINTERS, pack("<QQQ", VMXON_REGION, VMCS_REGION, OTHER_VMCS) + bytes(8)
        )
        for region in (VMXON_REGION, VMCS_REGION, OTHER_VMCS):
            processor.memory.write(region, pack("<I", vmx.REVISION).ljust(4096, b"\0"))
        processor.memory.write(GUEST_CODE, self.guest)
        processor.memory.write(HOST_CODE, self.handler + out(EXITED))
        code = self.start() if self.program is None else self.program
        processor.memory.write(tiny.CODE, code + out(FELL_THROUGH))
        for address, data in self.memory.items():
            processor.memory.write(address, data)
        for name, value in self.registers.items():
            setattr(processor.registers, name, value)
        vmcs = self.vmcs
        vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= ct.PRIMARY_UNCONDITIONAL_IO_EXITING
        vmcs["CR4_READ_SHADOW"] = vmcs["GUEST_CR4"]
        vmcs["PIN_BASED_CONTROLS"] |= ct.PIN_PREEMPTION_TIMER
        vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 10_000_000

    @property
    def cr4(self) -> int:
        """CR4 of the VMM."""
        return 0x2600 | {"p32": 0x10, "pae": 0x20, "l64": 0x20}[self.mode]

    def start(self) -> bytes:
        """VMXON, VMCLEAR, VMPTRLD, every field, VMLAUNCH."""
        a = self.assembler
        code = a.vmxon() + a.vmclear() + a.vmptrld()
        for name, value in (self.fields_of() | dict(self.fields)).items():
            code += a.vmwrite(int(Field[name]), value)
        return code + a.vmlaunch

    def fields_of(self) -> dict[str, int]:
        """A VMCS whose host is the VMM, and whose guest runs GUEST_CODE in `guest_mode`."""
        mode = self.guest_mode or self.mode
        twin = Vmcs()
        twin.set_flat_segments(64 if mode == "l64" else 32)
        for name, value in tiny.Tiny(mode).state().items():
            twin[name] = value
        guest = {f.name: twin[f] for f in twin if f.kind == "guest state" and not f.extension}
        long = self.mode == "l64"
        host = {f"HOST_{name}_SELECTOR": tiny.DATA_0 for name in ("ES", "SS", "DS", "FS", "GS")}
        return (
            guest
            | host
            | {
                "GUEST_CR4": 0x2600 | {"p32": 0x10, "pae": 0x20, "l64": 0x20}[mode],
                "GUEST_RIP": GUEST_CODE,
                "GUEST_RSP": GUEST_STACK,
                "VMCS_LINK_POINTER": (1 << 64) - 1,
                "PIN_BASED_CONTROLS": ct.PIN_ALLOWED_0,
                "PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_ALLOWED_0,
                "SECONDARY_PROCESSOR_BASED_CONTROLS": 0,
                "VM_EXIT_CONTROLS": ct.EXIT_ALLOWED_0
                | ct.EXIT_SAVE_DEBUG_CONTROLS
                | ct.EXIT_SAVE_EFER
                | ct.EXIT_LOAD_EFER
                | (ct.EXIT_HOST_ADDRESS_SPACE_SIZE if long else 0),
                "VM_ENTRY_CONTROLS": ct.ENTRY_ALLOWED_0
                | ct.ENTRY_LOAD_DEBUG_CONTROLS
                | ct.ENTRY_LOAD_EFER
                | (ct.ENTRY_IA32E_MODE_GUEST if mode == "l64" else 0),
                "HOST_CR0": 0x80010031,
                "HOST_CR3": tiny.TABLES,
                "HOST_CR4": self.cr4,
                "HOST_IA32_EFER": {"p32": 0, "pae": 0x800, "l64": 0xD01}[self.mode],
                "HOST_IA32_PAT": 0x0007040600070406,
                "HOST_CS_SELECTOR": tiny.CODE_64 if long else tiny.CODE_32,
                "HOST_TR_SELECTOR": tiny.TASK,
                "HOST_TR_BASE": tiny.TSS,
                "HOST_GDTR_BASE": tiny.GDT,
                "HOST_IDTR_BASE": tiny.IDT,
                "HOST_RSP": HOST_STACK,
                "HOST_RIP": HOST_CODE,
            }
        )

    def run(self) -> int:
        """Let it run to its next OUT: the port. Raises AssertionError for any other exit."""
        enter = self.processor.vmresume if self.vmcs.launched else self.processor.vmlaunch
        outcome = enter(self.vmcs)
        assert isinstance(outcome, VmExit), outcome
        assert outcome.reason == ExitReason.IO_INSTRUCTION, outcome
        self.vmcs["GUEST_RIP"] += outcome.instruction_length
        return outcome.qualification >> 16

    def __getitem__(self, name: str) -> int:
        """A field of the current VMCS, as the processor has it."""
        field = Field[name]
        return int(self.processor.x86_vmm.vmcs[field.cell]) & (1 << field.width) - 1

    @property
    def reason(self) -> int:
        """EXIT_REASON."""
        return self["EXIT_REASON"]

    @property
    def flags(self) -> int:
        """Of the VMM's RFLAGS, CF and ZF: 0 VMsucceed, 1 VMfailInvalid, 40H VMfailValid."""
        return self.vmcs["GUEST_RFLAGS"] & 0x41

    @property
    def vector(self) -> int:
        """The vector whose handler of the VMM's reported FAULTED."""
        return (self.vmcs["GUEST_RIP"] - tiny.HANDLERS) // 16
