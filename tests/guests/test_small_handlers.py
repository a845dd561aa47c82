"""What a guest finds in its handlers when the VMM has carried out, or refused, an instruction."""

from struct import pack

import pytest

from trapgate.vmm.actions import End
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine

ORIGIN, IDT, IDTR = 0x100000, 0x101000, 0x102000
MEMORY = 4 << 20

INSTRUCTIONS = {
    "out": b"\xe6\x80",
    "in": b"\xe4\x80",
    "cpuid": b"\x0f\xa2",
    "nop": b"\x90",
    "hlt": b"\xf4",
}


def with_handler(vector: int, handler: int) -> bytes:
    """Set up the IDT with a handler for one vector."""
    gate = IDT + 8 * vector
    return b"".join(
        (
            b"\xb8" + pack("<I", handler),  # mov eax, handler
            b"\x66\xa3" + pack("<I", gate),  # mov [gate], ax
            b"\x8c\x0d" + pack("<I", gate + 2),  # mov [gate + 2], cs
            b"\x66\xc7\x05" + pack("<IH", gate + 4, 0x8E00),  # mov word [gate + 4], 8E00h
            b"\xc1\xe8\x10\x66\xa3" + pack("<I", gate + 6),  # shr eax, 16; mov [gate + 6], ax
            b"\x66\xc7\x05" + pack("<IH", IDTR, 0xFF),  # mov word [idtr], 0FFh
            b"\xc7\x05" + pack("<II", IDTR + 2, IDT),  # mov dword [idtr + 2], idt
            b"\x0f\x01\x1d" + pack("<I", IDTR),  # lidt [idtr]
        )
    )


def guest(stepped: bytes) -> bytes:
    """Sets TF before `stepped`; the handler of #DB leaves with its distance from where it ends."""

    def code(handler: int, after: int) -> bytes:
        return b"".join(
            (
                with_handler(1, handler),
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


UD, GP = 6, 13
REFUSED = {
    "rdmsr": (GP, b"\xb9\x34\x12\0\0\x0f\x32"),
    "wrmsr": (GP, b"\xb9\x34\x12\0\0\x0f\x30"),
    "mov cr4": (GP, b"\xb8\0\0\0\x80\x0f\x22\xe0"),
    "mov cr4, pke": (GP, b"\xb8\0\0\x40\0\x0f\x22\xe0"),
    "vmcall": (UD, b"\x0f\x01\xc1"),
    "monitor": (UD, b"\x0f\x01\xc8"),
    "mwait": (UD, b"\x0f\x01\xc9"),
    "mov cr4, pcide": (GP, b"\xb8\0\0\x02\0\x0f\x22\xe0"),
    "rdfsbase": (UD, b"\xf3\x0f\xae\xc0"),
}


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("name", REFUSED)
def test_the_frame_of_a_fault_has_rf(name: str, engine: str) -> None:
    """Whoever raises it, processor or VMM: else a breakpoint there would be met again."""
    vector, refused = REFUSED[name]
    at = 4 if vector == GP else 0
    # mov eax, [esp + 8 (+ 4)]; shr eax, 16; and al, 1; xor al, 1; out 0F4h, al; hlt
    handler = bytes((0x8B, 0x44, 0x24, 8 + at)) + bytes.fromhex("c1e810 2401 3401 e6f4 f4")
    length = len(with_handler(0, 0)) + len(refused) + 1
    code = with_handler(vector, ORIGIN + length) + refused + b"\xf4" + handler
    vm = VirtualMachine(MEMORY, engine=engine)
    vm.load(parse_guest(code, file="refused", memory=MEMORY))
    stop = vm.run(max_instructions=10_000)
    assert (stop.end, stop.status) == (End.DEBUG_EXIT, 0), stop
