"""Guests that break as beginners' do, a few bytes each, and the sentences of their post-mortems.

32-bit guests are flat code at 1 MB (GDT: code 10H, data 18H), 64-bit ones an ELF at 1 MB on
identity-mapped pages of 2 MB with the same selectors, 16-bit ones boot sectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import pack

from tests.unit.guest_files import boot_sector, elf

BASE = 0x100000
IDT, GDT, TSS, HANDLER, OTHER = (BASE + n for n in (0x1000, 0x2000, 0x2800, 0x3000, 0x3100))
DATA_AT = BASE + 0x3400
POINTERS = BASE + 0x3800
DIRECTORY, TABLE = 0x200000, 0x201000
CODE, DATA = 0x10, 0x18
CODE_32, CODE_64, DATA_32, USER_CODE, USER_DATA = (
    0x00CF9B000000FFFF,
    0x00AF9B000000FFFF,
    0x00CF93000000FFFF,
    0x00CFFB000000FFFF,
    0x00CFF3000000FFFF,
)
UD2, HLT, CLI, STI, IRET, IRETQ = b"\x0f\x0b", b"\xf4", b"\xfa", b"\xfb", b"\xcf", b"\x48\xcf"
FOREVER = b"\xeb\xfe"


@dataclass(frozen=True)
class Broken:
    """A guest: its file, the sentences in its post-mortem, the word for its end."""

    name: str
    file: bytes
    says: tuple[str, ...]
    end: str = "triple fault"
    fields: Mapping[str, int] = field(default_factory=dict)
    direct: bool = False


def gate(vector_handler: int, selector: int = CODE, kind: int = 0x8E, *, ist: int = 0) -> bytes:
    return pack(
        "<HHBBH", vector_handler & 0xFFFF, selector, ist, kind, vector_handler >> 16 & 0xFFFF
    )


def gate_64(handler: int, selector: int = CODE, kind: int = 0x8E, *, ist: int = 0) -> bytes:
    return gate(handler, selector, kind, ist=ist) + pack("<II", handler >> 32, 0)


def image(code: bytes, parts: Mapping[int, bytes]) -> bytes:
    """Code at 1 MB and other bytes at their addresses."""
    whole = bytearray(max([len(code), *(at - BASE + len(data) for at, data in parts.items())]))
    whole[: len(code)] = code
    for at, data in parts.items():
        whole[at - BASE : at - BASE + len(data)] = data
    return bytes(whole)


def pointer(limit: int, base: int, *, wide: bool = False) -> bytes:
    return pack("<HQ" if wide else "<HI", limit, base)


def lidt(*, wide: bool = False) -> bytes:
    return (b"\x0f\x01\x1c\x25" if wide else b"\x0f\x01\x1d") + pack("<I", POINTERS)


def lgdt(*, wide: bool = False) -> bytes:
    return (b"\x0f\x01\x14\x25" if wide else b"\x0f\x01\x15") + pack("<I", POINTERS + 16)


def flat(code: bytes, parts: Mapping[int, bytes] | None = None) -> bytes:
    return image(code, parts or {})


def with_idt(
    code: bytes, gates: Mapping[int, bytes], *, limit: int = 0x7FF, **more: bytes
) -> bytes:
    """Loads an IDT with these gates first; keywords `at_HEX` place other bytes."""
    idt = bytearray(0x800)
    for vector, data in gates.items():
        idt[8 * vector : 8 * vector + 8] = data
    parts = {IDT: bytes(idt), POINTERS: pointer(limit, IDT)}
    parts |= {int(name.removeprefix("at_"), 16): data for name, data in more.items()}
    return image(lidt() + code, parts)


def long(code: bytes, parts: Mapping[int, bytes] | None = None) -> bytes:
    whole = image(code, parts or {})
    return elf([(1, BASE, BASE, whole, len(whole))])


def long_with_idt(
    code: bytes, idt: bytes, *, limit: int = 0xFFF, parts: Mapping[int, bytes] | None = None
) -> bytes:
    return long(
        lidt(wide=True) + code,
        {IDT: idt, POINTERS: pointer(limit, IDT, wide=True), **(parts or {})},
    )


def idt_64(gates: Mapping[int, bytes]) -> bytes:
    idt = bytearray(0x1000)
    for vector, data in gates.items():
        idt[16 * vector : 16 * vector + 16] = data
    return bytes(idt)


def store(address: int, value: int) -> bytes:
    """mov dword [address], value"""
    return b"\xc7\x05" + pack("<II", address, value)


def paging(holes: tuple[int, ...] = (), *, holds_code: bool = True) -> bytes:
    """Maps the first 4 MB but for some pages, and turns 32-bit paging on."""
    # mov edi, TABLE; mov eax, 3; mov ecx, 1024; l: stosd; add eax, 1000h; loop l
    fill = b"\xbf" + pack("<I", TABLE) + b"\xb8\x03\0\0\0\xb9\0\x04\0\0\xab\x05\0\x10\0\0\xe2\xf8"
    code = fill + store(DIRECTORY, TABLE | 3 if holds_code else 0)
    for hole in holes:
        code += store(TABLE + (hole >> 12) * 4, 0)
    code += b"\xb8" + pack("<I", DIRECTORY) + b"\x0f\x22\xd8"  # mov cr3, eax
    return code + b"\x0f\x20\xc0\x0d\0\0\0\x80\x0f\x22\xc0"  # mov cr0 | PG


def esp(value: int) -> bytes:
    return b"\xbc" + pack("<I", value)


def kill_gate(vector: int, then: bytes) -> bytes:
    """A handler that removes a gate, so that the next fault there is the last."""
    return store(IDT + 8 * vector, 0) + store(IDT + 8 * vector + 4, 0) + then


def own_gdt(*descriptors: int, tss: bytes = b"") -> dict[int, bytes]:
    table = b"".join(pack("<Q", entry) for entry in (0, *descriptors))
    return {GDT: table, POINTERS + 16: pointer(len(table) - 1, GDT), **({TSS: tss} if tss else {})}


def to_ring_3(*, entry: int) -> bytes:
    """IRET to user code at `entry` with selectors 1BH and 23H of an own GDT."""
    push = b"\x6a\x23\x68" + pack("<I", 0x180000) + b"\x6a\x02\x6a\x1b\x68" + pack("<I", entry)
    return push + IRET


def ring_3_guest(user: bytes, gates: Mapping[int, bytes], tss: bytes) -> bytes:
    descriptor = 0x67 | (TSS & 0xFFFFFF) << 16 | 0x89 << 40 | (TSS >> 24) << 56
    parts = own_gdt(CODE_32, DATA_32, USER_CODE, USER_DATA, descriptor, tss=tss)
    idt = bytearray(0x800)
    for vector, data in gates.items():
        idt[8 * vector : 8 * vector + 8] = data
    reload = (
        b"\xea" + pack("<IH", BASE + 14 + 7, 8) + b"\x66\xb8\x10\x00\x8e\xd0"
    )  # jmp far; mov ss
    load_tr = b"\x66\xb8\x28\x00\x0f\x00\xd8" if tss else b""
    code = lidt() + lgdt() + reload + load_tr + to_ring_3(entry=OTHER)
    return image(code, {**parts, IDT: bytes(idt), POINTERS: pointer(0x7FF, IDT), OTHER: user})


NO_IDT = "no IDT was loaded before the first exception"
PIC_AT_8 = b"".join(
    b"\xb0" + bytes([value]) + b"\xe6" + bytes([port])
    for port, value in ((0x20, 0x11), (0x21, 8), (0x21, 4), (0x21, 1), (0x21, 0xFE),
                        (0x43, 0x34), (0x40, 0), (0x40, 1))
)  # fmt: skip
"""ICW1-4 with vector base 8, only IRQ 0 unmasked, PIT channel 0 as a rate generator."""

TOP_OF_STACK_PAGE = 0x181000

GUESTS = [
    Broken("no IDT", flat(UD2), (
        "the guest was at RIP 100000H in 32-bit protected mode without paging, CPL 0: ud2",
        "first: #UD, invalid opcode",
        "but the IDT's limit is 0H", NO_IDT)),
    Broken("IDT too short", with_idt(UD2, {}, limit=0x2F), (
        "looked for gate 6 (#UD) of the IDT, bytes 30H to 37H, but the IDT's limit is 2FH",
        "the IDT's limit is too small")),
    Broken("empty gates", with_idt(UD2, {}), (
        "gate 6 is empty: all its bytes are 0", "install a handler for vector 6")),
    Broken("gate not present", with_idt(UD2, {6: gate(HANDLER, kind=0x0E)}), (
        "gate 6 has P = 0", "install a handler for vector 6")),
    Broken("gate of a wrong type", with_idt(UD2, {6: gate(HANDLER, kind=0x8C)}), (
        "gate 6 is not an interrupt, trap or task gate: its type is 12", "byte 5 must be 8EH")),
    Broken("selector of another GDT", with_idt(UD2, {6: gate(HANDLER, selector=8)}), (
        "the gate's segment 8H is 0H", "the GDT's code segment for handlers is 10H")),
    Broken("selector of data", with_idt(UD2, {6: gate(HANDLER, selector=DATA)}), (
        "the gate's segment 18H", "no code segment", "handlers is 10H")),
    Broken("selector beyond the GDT", with_idt(UD2, {6: gate(HANDLER, selector=0x38)}), (
        "the gate's selector is 38H: the GDT's limit is 1FH, so it has no entry 7",)),
    Broken("null selector", with_idt(UD2, {6: gate(HANDLER, selector=0)}), (
        "the gate's selector is null",)),
    Broken("code segment not present", image(
        lidt() + lgdt() + UD2,
        {**own_gdt(0, CODE_32, DATA_32, CODE_32 & ~(1 << 47)),
         IDT: b"".join(gate(HANDLER, selector=0x20) for _ in range(16)),
         POINTERS: pointer(0x7F, IDT)}), ("the gate's segment 20H", "P = 0")),
    Broken("stack not mapped", with_idt(
        paging((0x180000,)) + esp(TOP_OF_STACK_PAGE) + b"\x50",
        {14: gate(HANDLER), 8: gate(HANDLER)}), (
        "first: #PF(2H), page fault",
        "write in supervisor mode of a page that is not present, linear address 180FFCH",
        "the walk stopped at the PTE: not present",
        "the stack at ESP = 181000H cannot be written",
        "the stack is not mapped", "give #DF a stack of its own")),
    Broken("paging without the code", flat(paging(holds_code=False)), (
        "no instruction can be fetched", "the walk stopped at the PDE: not present",
        "the instruction pointer itself is not mapped")),
    Broken("IDT not mapped", with_idt(paging((IDT,)) + UD2, {6: gate(HANDLER)}), (
        "looked for gate 6 (#UD) of the IDT at 101030H, which is not mapped",
        "map the IDT in the page tables")),
    Broken("GDT not mapped", image(
        lidt() + lgdt() + paging((0x180000,)) + UD2,
        {IDT: b"".join(gate(HANDLER) for _ in range(16)), POINTERS: pointer(0x7F, IDT),
         POINTERS + 16: pointer(0x1F, 0x180000)}), (
        "the GDT's entry at 180010H is not mapped", "map the GDT in the page tables")),
    Broken("IRQ 0 as double fault", flat(PIC_AT_8 + STI + FOREVER), (
        "first: external interrupt 8H", "interrupts are on before the PIC is remapped")),
    Broken("error code left on the stack", with_idt(
        b"\x66\xb8\x28\x00\x8e\xd8",
        {13: gate(HANDLER)}, at_103000=kill_gate(13, IRET)), (
        "#GP(28H), general protection at RIP", "iret",
        "the handler of vector 13 returns without dropping the error code",
        "add 4 to ESP before IRET")),
    Broken("no error code dropped", with_idt(
        UD2, {6: gate(HANDLER)}, at_103000=b"\x83\xc4\x04" + IRET), (
        "the handler of vector 6 drops an error code, but that vector has none",)),
    Broken("SSE off", flat(b"\x0f\x28\xc1"), (
        "movaps xmm0,xmm1", "set CR4.OSFXSR (bit 9)", NO_IDT)),
    Broken("division by zero", flat(b"\xfa\x31\xc9\xf7\xf1"), (
        "first: #DE, divide error", "div ecx", "the divisor is 0")),
    Broken("reserved bit of CR4", flat(b"\xb8\x00\x80\x00\x00\x0f\x22\xe0"), (
        "mov cr4,eax", "first: #GP(0), general protection",
        "a bit that this processor does not have")),
    Broken("far jump by a wrong selector", flat(b"\xea" + pack("<IH", BASE + 7, 8)), (
        "jmp far 00100007H,8", "first: #GP(8H)", "selector 8H, entry 1 of the GDT",
        "reload CS with a far jump")),
    Broken("handler that faults again", with_idt(
        paging((0x300000, 0x17F000)) + esp(0x180100) + b"\xa1" + pack("<I", 0x300000),
        {14: gate(HANDLER)}, at_103000=b"\xa1" + pack("<I", 0x300000)), (
        "before that:", "times, delivered",
        "came again and again at the same instruction")),
    Broken("ring 3 without a TSS", ring_3_guest(UD2, {6: gate(HANDLER, selector=8)}, b""), (
        ("in 32-bit protected mode without paging, CPL 3: "
        "ud2"), "of the TSS", "make one of 68H bytes with RSP0")),
    Broken("INT 80H with a gate of DPL 0", ring_3_guest(
        b"\xcd\x80", {0x80: gate(HANDLER, selector=8)},
        pack("<III", 0, 0x190000, 0x10).ljust(0x68, b"\0")), (
        "first: INT 80H", "gate 128 has DPL 0, and the instruction was executed at CPL 3",
        "give the gate DPL 3")),
    Broken("privileged instruction in ring 3", ring_3_guest(
        HLT, {}, pack("<III", 0, 0x190000, 0x10).ljust(0x68, b"\0")), (
        "CPL 3: hlt", "the instruction is privileged")),
    Broken("stack beyond its segment", image(
        lidt() + lgdt() + b"\x66\xb8\x20\x00\x8e\xd0" + esp(0x180000) + UD2,
        {**own_gdt(0, CODE_32, DATA_32, 0x0040930000000FFF),
         IDT: b"".join(gate(HANDLER) for _ in range(16)), POINTERS: pointer(0x7F, IDT)}), (
        "the stack at ESP = 180000H has no room within SS's limit FFFH",)),
    Broken("gates of 8 bytes in 64-bit mode", long_with_idt(
        UD2, b"".join(gate(HANDLER) for _ in range(256)), limit=0x7FF), (
        "in 64-bit mode, CPL 0: ud2", "in IA-32e mode each has 16 bytes")),
    Broken("address not canonical", long(
        b"\x48\xb8" + pack("<Q", 0x800000000000) + b"\x48\x8b\x00"), (
        "mov rax,[rax]", "address 800000000000H is not canonical", NO_IDT)),
    Broken("handler of 32 bits in 64-bit mode", long_with_idt(
        lgdt(wide=True) + UD2, idt_64({6: gate_64(HANDLER, selector=8)}),
        parts={GDT: pack("<QQQQ", 0, CODE_32, CODE_64, DATA_32),
               POINTERS + 16: pointer(31, GDT, wide=True)}), (
        "not 64-bit code (L = 1, D = 0)", "handlers is 10H")),
    Broken("handler's address not canonical", long_with_idt(
        UD2, idt_64({6: gate_64(0x800000000000 + HANDLER)})), (
        "the handler's address 800000103000H is not canonical",
        "the gate's offset was put together wrongly")),
    Broken("IST not mapped", long_with_idt(
        UD2, idt_64({6: gate_64(HANDLER, ist=1)}),
        parts={}), ("IST1 of the TSS",)),
    Broken("XD without EFER.NXE", long(
        # or byte [PD + 7], 80h of the page at 2 MB; invlpg; touch it
        b"\x0f\x20\xd8\x48\x80\x88\x0f\x20\x00\x00\x80\x0f\x01\x3c\x25\x00\x00\x20\x00"
        b"\x8b\x04\x25\x00\x00\x20\x00"), (
        "a page whose entry has a reserved bit set",
        "XD (bit 63) set, which is reserved while EFER.NXE is 0", "set EFER.NXE first")),
    Broken("red zone", long_with_idt(
        b"\xcc\x48\x8b\x44\x24\xf8\x48\x8b\x00\x90",
        idt_64({3: gate_64(HANDLER)}), parts={HANDLER: b"\x48\xb8" + pack("<Q", 1 << 62)
        + b"\x48\x89\x44\x24\xf8" + IRETQ}), ("#BP", "delivered")),
    Broken("interrupt table gone in real mode", boot_sector(
        b"\x0f\x01\x1e\x0a\x7c\xcd\x10" + FOREVER + b"\0" + pack("<HI", 0, 0)), (
        "in real mode", "first: INT 10H", "but its limit is 0H",
        "LIDT with base 0 and limit 3FFH")),
    Broken("halted with interrupts disabled", flat(CLI + HLT), (
        "RFLAGS.IF is 0: only an NMI or INIT could wake it", "kernels stop after a panic"),
        end="halted"),
    Broken("halted without a timer", flat(STI + HLT), (
        "an interrupt would wake it, but no device has anything to say", "program a timer"),
        end="halted"),
    Broken("entry refused", flat(UD2), (
        "RFLAGS", "RFLAGS was initialised with 0 instead of 2"), end="VM entry failed",
        fields={"GUEST_RFLAGS": 0}),
    Broken("refused under direct paging", flat(store(DIRECTORY + 4, 0x7FFFF003) + paging()),
        ("refused", "under direct paging"),
        end="refused by the VMM", direct=True),
]  # fmt: skip
