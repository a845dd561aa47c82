"""The page of the IDT becomes another one: whoever delivers has to notice, once it is flushed."""

from struct import pack

import pytest

from tests.conformance.tiny_guest import CODE, IDT, TABLES, VMCALL, Tiny, begin, gate, handler
from trapgate.sdm.reasons import ExitReason

OTHER_IDT = 0x28000
BP, ELSEWHERE = 3, 0x50
ENTRY = TABLES + 0x3000
INT3 = b"\xcc"
FLUSHES = {
    "invlpg": bytes.fromhex("0f013f"),  # invlpg [rdi]
    "MOV CR3": bytes.fromhex("0f20d9 0f22d9"),  # mov ecx, cr3; mov cr3, ecx
    "CR4.PGE": bytes.fromhex("0f20e1 80f180 0f22e1"),  # mov ecx, cr4; xor cl, 80h; mov cr4, ecx
    "VM exit": VMCALL,
}


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("mode", ["p32", "l64"])
def test_the_idts_page_becomes_another(mode: str, engine: str) -> None:
    """#BP to one handler, an edit of the page table, a flush, #BP to the other."""
    size = 4 if mode == "p32" else 8
    step = 16 if mode == "l64" else 8
    wide = b"\x48" if mode == "l64" else b""

    def counts(register: int) -> bytes:
        return bytes((0xFF, 0xC0 | register)) + wide + b"\xcf"  # inc register; iret

    entry = pack("<I" if size == 4 else "<Q", OTHER_IDT | 7)
    for what, flush in FLUSHES.items():
        guest = Tiny(
            mode,
            code=INT3 + wide + bytes.fromhex("8906") + flush + INT3,  # mov [rsi], eax
            memory={
                handler(BP): counts(3),
                handler(ELSEWHERE): counts(5),
                OTHER_IDT + BP * step: gate(mode, ELSEWHERE),
            },
            registers={
                "rax": int.from_bytes(entry, "little"),
                "rsi": ENTRY + (IDT >> 12) * size,
                "rdi": IDT,
            },
        )
        run = begin(guest, engine=engine)
        if flush == VMCALL:
            run.skip()
        registers = run.processor.registers
        assert run.exit.reason is ExitReason.VMCALL, what
        assert run.vmcs["GUEST_RIP"] == CODE + len(guest.code), what
        assert (registers.rbx, registers.rbp) == (1, 1), what
