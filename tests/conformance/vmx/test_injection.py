"""Event injection by a VMM that is x86 code: every vector, type and error-code bit.

What is legal is delivered through the guest's IDT, whatever the exception bitmap says;
what is not is refused with VM-instruction error 7 (SDM, "VM-Entry Control Fields" of the
checks, "Vectored-Event Injection").
"""

import pytest

from tests.conformance import tiny_guest as tg
from tests.conformance.tiny_guest import Tiny
from tests.conformance.vmx import harness as h
from tests.conformance.vmx.guests import Case, Event, run, words

pytestmark = pytest.mark.conformance

EXTERNAL, NMI, HARDWARE, SOFTWARE_INTERRUPT, PRIVILEGED, SOFTWARE, OTHER = 0, 2, 3, 4, 5, 6, 7
VMCALL, MONITOR_TRAP_FLAG = 18, 37
HAVE_CODES = (8, 10, 11, 12, 13, 14, 17)


def is_legal(vector: int, kind: int, code: bool) -> bool:
    """From the SDM's text; there is a monitor trap flag, and no CET."""
    if kind == 1 or (kind == OTHER and vector != 0):
        return False
    if kind == NMI and vector != 2:
        return False
    if kind == HARDWARE and vector > 31:
        return False
    return code == (kind == HARDWARE and vector in HAVE_CODES)


EVERY = [
    (vector, kind, code) for kind in range(8) for vector in range(256) for code in (False, True)
]


@pytest.mark.parametrize(("bits", "mode"), [(32, "p32"), (32, "pae"), (64, "p32"), (64, "l64")])
def test_every_combination(bits: int, mode: str) -> None:
    script = h.Script(bits)
    script.begin()
    guest = Tiny(mode, 3, fields={"GUEST_RFLAGS": 2 | tg.IF})
    for address, word in words(guest).items():
        script.poke(address, word.to_bytes(4, "little"))
    fields = {
        **h.guest_fields(bits, guest),
        "EXCEPTION_BITMAP": 0xFFFF_FFFF,
        "VM_ENTRY_INSTRUCTION_LENGTH": 1,
    }
    every = h.all_fields(fields)
    places = []
    for vector, kind, code in EVERY:
        script.clear()
        script.write_all(every)
        script.write("VM_ENTRY_INTERRUPTION_INFORMATION", 1 << 31 | code << 11 | kind << 8 | vector)
        names = ("VM_INSTRUCTION_ERROR", "EXIT_REASON", "GUEST_RIP", "GUEST_RSP")
        places.append((script.launch(), [script.read(name) for name in names]))
    results = h.run(script)
    for (vector, kind, code), (launched, read) in zip(EVERY, places, strict=True):
        verdict = results.ran(launched).verdict
        values = [results[place] for place in read]
        if not is_legal(vector, kind, code):
            assert (verdict, values[0]) == ("fail", 7), (vector, kind, code)
            continue
        if kind == OTHER:
            assert (verdict, values[1]) == ("exit", MONITOR_TRAP_FLAG)
            continue
        pushed = 5 + code
        stack = tg.STACK - pushed * (8 if mode == "l64" else 4)
        assert (verdict, *values[1:]) == ("exit", VMCALL, tg.handler(vector), stack), (vector, kind)


@pytest.mark.parametrize("error", [0, 1, 0xFFFF])
@pytest.mark.parametrize(("mode", "size"), [("p32", 4), ("l64", 8)])
def test_the_error_code_and_the_instruction_length_are_pushed(
    mode: str, size: int, error: int
) -> None:
    script = h.Script(64)
    script.begin()
    guest = Tiny(mode, 0)
    h.put_guest(script, guest)
    base = h.all_fields(h.guest_fields(64, guest))
    places = []
    for information, length in ((1 << 31 | 1 << 11 | HARDWARE << 8 | 13, 0),
                                (1 << 31 | SOFTWARE << 8 | 3, 1),
                                (1 << 31 | SOFTWARE_INTERRUPT << 8 | 0x30, 15),
                                (1 << 31 | PRIVILEGED << 8 | 1, 7)):  # fmt: skip
        script.clear()
        script.write_all(base)
        script.write("VM_ENTRY_INTERRUPTION_INFORMATION", information)
        script.write("VM_ENTRY_EXCEPTION_ERROR_CODE", error)
        script.write("VM_ENTRY_INSTRUCTION_LENGTH", length)
        script.launch()
        words_pushed = (5 if size == 8 else 3) + (length == 0)
        bottom = tg.STACK - words_pushed * size
        rip = bottom + size * (length == 0)
        places.append((script.peek(bottom), script.peek(rip), length))
    results = h.run(script)
    assert results[places[0][0]] == error
    for _, rip, length in places:
        assert results[rip] == tg.CODE + length


def test_a_fault_in_delivery_exits_with_idt_vectoring() -> None:
    """And the valid bit of the VM-entry field is cleared."""
    guest = Tiny("p32", 0, memory={tg.IDT + 8 * 13 + 5: b"\x6e"})
    injected = {
        "VM_ENTRY_INTERRUPTION_INFORMATION": 1 << 31 | 1 << 11 | HARDWARE << 8 | 13,
        "VM_ENTRY_EXCEPTION_ERROR_CODE": 0x18,
        "EXCEPTION_BITMAP": 1 << 11,
    }
    (found,) = run(32, "p32", [Case(guest, injected)])
    assert found.reason == 0
    assert found.interruption == Event(11, HARDWARE, 13 * 8 + 3)
    assert found.idt_vectoring == Event(13, HARDWARE, 0x18)
    assert found.rip == tg.CODE
