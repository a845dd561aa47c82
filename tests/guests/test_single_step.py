"""A guest that steps over an instruction which the VMM carries out for it."""

from struct import pack

import pytest

from trapgate.vmm.actions import End
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine

ORIGIN, IDT, IDTR = 0x100000, 0x101000, 0x102000
GATE = IDT + 8
MEMORY = 4 << 20

INSTRUCTIONS = {
    "out": b"\xe6\x80",
    "in": b"\xe4\x80",
    "cpuid": b"\x0f\xa2",
    "nop": b"\x90",
}


def guest(stepped: bytes) -> bytes:
    """Sets TF before `stepped`; the handler of #DB leaves with its distance from where it ends."""

    def code(handler: int, after: int) -> bytes:
        return b"".join(
            (
                b"\xb8" + pack("<I", handler),  # mov eax, handler
                b"\x66\xa3" + pack("<I", GATE),  # mov [gate], ax
                b"\x8c\x0d" + pack("<I", GATE + 2),  # mov [gate + 2], cs
                b"\x66\xc7\x05" + pack("<IH", GATE + 4, 0x8E00),  # mov word [gate + 4], 8E00h
                b"\xc1\xe8\x10\x66\xa3" + pack("<I", GATE + 6),  # shr eax, 16; mov [gate + 6], ax
                b"\x66\xc7\x05" + pack("<IH", IDTR, 0xFF),  # mov word [idtr], 0FFh
                b"\xc7\x05" + pack("<II", IDTR + 2, IDT),  # mov dword [idtr + 2], idt
                b"\x0f\x01\x1d" + pack("<I", IDTR),  # lidt [idtr]
                b"\x68" + pack("<I", 0x102) + b"\x9d",  # push 102h; popfd
                stepped,
                b"\x90\xf4",  # after: nop; hlt
                b"\x58\x2d" + pack("<I", after),  # handler: pop eax; sub eax, after
                b"\xe6\xf4\xf4",  # out 0F4h, al; hlt
            )
        )

    handler = ORIGIN + len(code(0, 0)) - 9
    return code(handler, handler - 2)


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_debug_exception_follows_it(name: str, engine: str) -> None:
    vm = VirtualMachine(MEMORY, engine=engine)
    vm.load(parse_guest(guest(INSTRUCTIONS[name]), file="step", memory=MEMORY))
    stop = vm.run(max_instructions=10_000)
    assert (stop.end, stop.status) == (End.DEBUG_EXIT, 0), stop
