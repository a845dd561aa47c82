"""A write that a fault filter completes does what it does where the page is writable.

Each instruction runs in two guests that differ in one bit: whether the self-map of the page
tables is writable. Where it is, the result is the oracle: if every entry that changed may
change so by figure 8, the filtered guest has to end in the same state, in every register,
flag and byte. If not, it has to end with a page fault, and as if the instruction had not
begun.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.conformance.self_mapped_guest import (
    CODE,
    DATA,
    FOUR_LEVEL,
    MEMORY,
    PAGE_FAULT,
    ROOT,
    TWO_LEVEL,
    Bench,
    Layout,
    Outcome,
)

RAX, RCX, RDX = 0x0000_0000_0012_3002, 3, 0x0000_0000_0045_6001
"""An entry that is not present; a count; an entry that is."""

BOTH = {
    "mov r8": "8807",
    "mov r16": "668907",
    "mov r32": "8907",
    "mov imm8": "c60762",
    "mov imm32": "c70702301200",
    "mov imm32, present": "c70703301200",
    "mov sreg": "8c1f",
    "and": "2107",
    "and imm8": "8327fe",
    "and imm8, r8": "8027fe",
    "lock and": "f08327fe",
    "or": "0907",
    "or imm8": "830f60",
    "lock or": "f0800f20",
    "xor": "3107",
    "xor imm8": "833740",
    "add": "0107",
    "add imm8": "830740",
    "lock add": "f0830740",
    "sub": "2907",
    "adc": "1107",
    "sbb": "1907",
    "not": "f717",
    "neg": "f71f",
    "inc": "ff07",
    "dec": "ff0f",
    "lock dec": "f0ff0f",
    "inc8": "fe07",
    "shl": "c12701",
    "shr cl": "d32f",
    "rol": "d107",
    "shld": "0fa40703",
    "shrd cl": "0fad07",
    "bts imm": "0fba2f05",
    "btr imm": "0fba3700",
    "lock btr imm": "f00fba3700",
    "btc imm": "0fba3f06",
    "bts reg": "0fab0f",
    "btr reg": "0fb30f",
    "lock bts reg": "f00fab0f",
    "xchg": "8707",
    "xchg8": "8607",
    "xadd": "0fc107",
    "lock xadd": "f00fc107",
    "cmpxchg": "0fb117",
    "lock cmpxchg": "f00fb117",
    "lock cmpxchg, equal": "8b07f00fb117",
    "cmpxchg8b": "0fc70f",
    "lock cmpxchg8b, equal": "8b078b5704f00fc70f",
    "setz": "0f9407",
    "movnti": "0fc307",
    "movd": "0f7e07",
    "movq mm": "0f7f07",
    "movdqu": "f30f7f07",
    "movups": "0f1107",
    "movlps": "0f1307",
    "movss": "f30f1107",
    "maskmovq": "0ff7c1",
    "fnstcw": "d93f",
    "fst m32": "d9ee d917",
    "fstp m64": "d9e8 dd1f",
    "fstp m80": "d9e8 db3f",
    "fistp m64": "d9e8 df3f",
    "fnstenv": "d937",
    "fnsave": "dd37",
    "fxsave": "0fae07",
    "sgdt": "0f0107",
    "sidt": "0f010f",
    "stosb": "aa",
    "stosw": "66ab",
    "stosd": "ab",
    "rep stosd": "f3ab",
    "rep stosb": "f3aa",
    "rep stosd, down": "fdf3ab",
    "movsb": "a4",
    "movsd": "a5",
    "rep movsd": "f3a5",
    "rep movsb": "f3a4",
    "rep movsw": "66f3a5",
    "push from memory": "ff36",
    "pop to memory": "8f07",
}
"""Code whose operand is at [EDI] or [RDI]; the source of a string at [ESI] or [RSI]."""

ONLY_32 = {
    "push": "89fc50",
    "push imm": "89fc6802301200",
    "pusha": "89fc60",
    "pushf": "89fc9c",
    "call": "89fce800000000",
    "enter": "89fcc8080000",
    "push sreg": "89fc1e",
}
ONLY_64 = {
    "mov r64": "488907",
    "mov imm64": "48c70702301200",
    "and64": "482107",
    "lock and64": "f0488327fe",
    "or64": "48830f60",
    "bts64": "480fba2f3f",
    "btr64": "480fba373f",
    "xchg64": "488707",
    "lock xadd64": "f0480fc107",
    "lock cmpxchg64, equal": "488b07f0480fb117",
    "cmpxchg16b": "480fc70f",
    "lock cmpxchg16b, equal": "488b07488b5708f0480fc70f",
    "stosq": "48ab",
    "rep stosq": "f348ab",
    "rep movsq": "f348a5",
    "push": "4889fc50",
    "call": "4889fce800000000",
    "enter": "4889fcc8080000",
}


@dataclass
class Case:
    name: str
    code: bytes
    linear: int
    pattern: str
    filler: bytes
    registers: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name} at {self.linear:#x}, entries {self.pattern}"


ENTRIES = {
    "absent": 0x456 << 12 | 0xE8,
    "present": 0x123 << 12 | 0x67,
    "read-only": 0x123 << 12 | 0x25,
}


def places(layout: Layout) -> Iterator[int]:
    """Aligned and not, at the end of an entry, of a page, and before the tables begin."""
    middle = layout.tables + 0x800
    yield from (middle, middle + 1, middle + 2, middle + 4, middle + layout.width - 1)
    end = layout.tables + 0x1000
    yield from (end - 1, end - 2, end - 4, end - 6)
    yield end
    if layout.before is not None:
        yield layout.before - 2


def cases(layout: Layout) -> Iterator[Case]:
    forms = BOTH | (ONLY_32 if layout.bits == 32 else ONLY_64)
    for name, text in forms.items():
        for linear in places(layout):
            for pattern, entry in ENTRIES.items():
                filler = entry.to_bytes(layout.width, "little") * (0x1000 // layout.width)
                registers = {"rax": RAX, "rdx": RDX, "rbx": 0x60, "rsi": DATA + 0x800}
                registers |= {"rdi": linear, "rflags": 0x43}
                yield Case(name, bytes.fromhex(text), linear, pattern, filler, registers)


def may_change(old: int, new: int, width: int) -> bool:
    """Figure 8 about one entry, bit by bit, with the two additions for 64-bit entries."""
    if not new & 1:
        return True
    frame = 0xFFFFF080 if width == 4 else 0xF_FFFF_FFFF_F080
    if not old & 1 or (old ^ new) & frame:
        return False
    if new & ~old & 2:
        return False
    return not (width == 8 and old & ~new & 1 << 63)


def entries(memory: bytes, frame: int, width: int) -> list[int]:
    page = memory[frame : frame + 0x1000]
    return [int.from_bytes(page[n : n + width], "little") for n in range(0, 0x1000, width)]


def run(
    bench: Bench, case: Case, *, writable: bool, count: int, code: bytes | None = None
) -> Outcome:
    layout = bench.layout
    source = bytes(range(0x40, 0x80)) * 2
    memory = dict.fromkeys(layout.frames, case.filler) | {DATA + 0x800: source}
    registers = case.registers | {"rcx": count}
    code = case.code if code is None else code
    return bench.run(code, writable=writable, memory=memory, registers=registers)


def admitted(layout: Layout, before: bytes, after: bytes) -> bool:
    """Whether all entries that differ may do so, those of the identity mapping included."""
    width = layout.width
    return all(
        may_change(old, new, width)
        for frame in (*layout.frames, 0x3000)
        for old, new in zip(
            entries(before, frame, width), entries(after, frame, width), strict=True
        )
        if old != new
    )


def masked(layout: Layout, memory: bytes, *, accessed: bool) -> bytes:
    """Memory without code and the self-map's R/W, and without A and D flags if told so."""
    data = bytearray(memory)
    data[CODE : CODE + 0x1000] = bytes(0x1000)
    data[layout.self_entry] &= ~2
    if accessed:
        for start in (ROOT, 0x3000, 0x7000, 0x9000, 0xA000):
            for at in range(start, start + 0x1000, layout.width):
                data[at] &= ~0x60
    return bytes(data)


def difference(held: bytes, free: bytes) -> str:
    """The first byte that differs; nothing if none does."""
    at = next((n for n in range(MEMORY) if held[n] != free[n]), None) if held != free else None
    return "" if at is None else f"memory at {at:#x} is {held[at]:#x}, not {free[at]:#x}"


def complaint(bench: Bench, case: Case) -> str:
    """What is wrong with the filtered guest; nothing if all is well."""
    layout = bench.layout
    # What a free guest does, element by element if it is a string.
    counts = range(1, RCX + 1) if "rep" in case.name else [RCX]
    untouched = run(bench, case, writable=True, count=0, code=b"")
    states = [untouched]
    for count in counts:
        states.append(run(bench, case, writable=True, count=count))
        if not admitted(layout, states[-2].memory, states[-1].memory):
            break
    good = admitted(layout, states[-2].memory, states[-1].memory)
    free = states[-1]
    held = run(bench, case, writable=False, count=RCX)
    if free.exit.reason.name != "VMCALL":
        same = held.exit.interruption == free.exit.interruption
        return "" if same else f"faults with {held.exit.interruption}, not as if it were free"
    if good:
        return completed(layout, held, free)
    # A string has done as many elements as may be done, anything else nothing.
    return refused(bench, case, held, states[-2], len(states) - 2)


def completed(layout: Layout, held: Outcome, free: Outcome) -> str:
    if held.exit.reason.name != "VMCALL":
        return f"faults at {held.exit.qualification:#x}, rows {held.rows}"
    if any(row[12] != 2 for row in held.rows):
        return f"rows {held.rows}"
    for name, value in (free.fields | free.registers).items():
        got = (held.fields | held.registers)[name]
        if got != value:
            return f"{name} is {got:#x}, not {value:#x}"
    if held.fpu != free.fpu:
        return "the x87 and SSE registers differ"
    return difference(*(masked(layout, one.memory, accessed=False) for one in (held, free)))


def refused(bench: Bench, case: Case, held: Outcome, before: Outcome, done: int) -> str:
    layout = bench.layout
    interruption = held.exit.interruption
    if interruption is None or interruption.vector != PAGE_FAULT:
        return f"does not fault, but exits with {held.exit.reason.name}, rows {held.rows}"
    if interruption.error_code != (7 if bench.ring else 3):
        return f"error code {interruption.error_code}"
    last = held.rows[-1]
    mask = (1 << 8 * layout.width) - 1
    if last[12] != 0 or not last[11] or may_change(last[17] & mask, last[10] & mask, layout.width):
        return f"the last row is {last}"
    problem = difference(*(masked(layout, one.memory, accessed=True) for one in (held, before)))
    if problem:
        return f"after {done} elements, {problem}"
    if "rep" in case.name:
        for name in ("rdi", "rsi"):
            if held.registers[name] != before.registers[name]:
                return f"after {done} elements, {name} is {held.registers[name]:#x}"
        if held.registers["rcx"] != RCX - done:
            return f"after {done} elements, RCX is {held.registers['rcx']}"
    elif held.registers["rdi"] != case.registers["rdi"]:
        return f"refused, yet RDI is {held.registers['rdi']:#x}"
    return ""


def sweep(bench: Bench, chosen: slice) -> None:
    wrong = []
    tried = list(cases(bench.layout))[chosen]
    for case in tried:
        problem = complaint(bench, case)
        if problem:
            wrong.append(f"{case}: {problem}")
    assert not wrong, f"{len(wrong)} of {len(tried)}:\n" + "\n".join(wrong[:40])


every_guest = pytest.mark.parametrize("ring", [0, 3])
both_layouts = pytest.mark.parametrize(
    "layout", [TWO_LEVEL, FOUR_LEVEL], ids=["two-level", "four-level"]
)
both_engines = pytest.mark.parametrize("engine", ["native", "portable"])


@both_engines
@both_layouts
@every_guest
def test_some_of_every_form(layout: Layout, engine: str, ring: int) -> None:
    # Every form at one or two places; places and entries change from one form to the next.
    sweep(Bench(layout, engine, ring=ring), slice(ring, None, 31))


@pytest.mark.slow
@both_engines
@both_layouts
@every_guest
def test_every_form_everywhere(layout: Layout, engine: str, ring: int) -> None:
    sweep(Bench(layout, engine, ring=ring), slice(None))


@both_engines
@pytest.mark.parametrize("completes", [True, False])
def test_a_push_is_judged_though_the_next_instruction_cannot_be_fetched(
    engine: str, *, completes: bool
) -> None:
    """CALL pushes its return address, whose bit 0 is an entry's P, and leads to an absent page."""
    layout = TWO_LEVEL
    start = CODE + 1 + (not completes)
    target = CODE + 0x1000
    call = bytes.fromhex("89fc e8") + (target - start - 7).to_bytes(4, "little")  # mov esp, edi
    top = layout.frames[0] + 0x7FC
    done = Bench(layout, engine).run(
        b"",
        writable=False,
        memory={
            layout.frames[0]: ENTRIES["absent"].to_bytes(4, "little") * 1024,
            start: call,
            0x3000 + 4 * (target >> 12): bytes(4),
        },
        registers={"rdi": layout.tables + 0x800},
        fields={"GUEST_RIP": start},
    )
    fault = done.exit.interruption
    assert fault is not None
    assert (fault.vector, fault.error_code) == (PAGE_FAULT, 0 if completes else 3)
    assert done.fields["GUEST_RIP"] == (target if completes else start + 2)
    pushed = start + 7 if completes else ENTRIES["absent"]
    assert int.from_bytes(done.memory[top : top + 4], "little") == pushed
