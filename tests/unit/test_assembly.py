"""The assembler for the native engine: against bytes put together by hand, and by running them."""

import ctypes
import mmap
import platform

import pytest

from trapgate.engine import assembly as asm


def test_branches_lead_to_their_labels_wherever_the_code_lies() -> None:
    code = asm.assemble(
        asm.constant(asm.RAX, 0),
        "again",
        asm.add(asm.RAX, asm.RDI),
        asm.compare(asm.RAX, asm.RSI, 8),
        (asm.JGE, "enough"),
        (asm.JMP, "again"),
        "enough",
        asm.store(asm.RSI, 0, asm.RAX),
        asm.RET,
    )
    # Opcodes of the SDM's instruction reference, put together by hand.
    assert code.hex(" ") == (
        "48 b8 00 00 00 00 00 00 00 00 48 03 c7 48 3b 86 08 00 00 00 7d 02 eb f2 "
        "48 89 86 00 00 00 00 c3"
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="runs x86-64 machine code")
def test_a_call_keeps_the_registers_and_the_alignment_of_the_stack() -> None:
    seen = []
    function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)

    callee = function(lambda first, second: seen.append((first, second)))
    address = ctypes.cast(callee, ctypes.c_void_p).value
    assert address is not None
    code = asm.assemble(
        *asm.call_saving(address, asm.RDI, asm.RSI, asm.RCX),
        asm.add(asm.RDI, asm.RSI),
        *asm.call_saving(address, asm.RDI, asm.RSI, asm.RCX),
        asm.RET,
    )
    with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page[: len(code)] = code
        start = ctypes.c_char.from_buffer(page)
        function(ctypes.addressof(start))(40, 2)
        del start
    assert seen == [(40, 2), (42, 2)]
