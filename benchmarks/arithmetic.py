"""`python -m benchmarks.arithmetic`: nanoseconds that floating-point instructions take.

By processor time, of a loop in real mode less one that has nothing in it.
"""

import time
from struct import pack

from trapgate.vmm.machine import VirtualMachine

_CODE, _DATA = 0x7C00, 0x7E00
_OSFXSR = 1 << 9
_NUMBERS = pack("<4d8f", 1.0000001, 0.9999999, 0.7, 0.3, *[1.1] * 4, *[0.97] * 4)
_BEGIN = bytes.fromhex("dbe3 dd06107e dd06187e f20f1006007e f20f100e087e")
"""FNINIT; FLD twice; MOVSD of the first two numbers to XMM0 and XMM1."""
_PACKED = bytes.fromhex("0f1006207e 0f100e307e")
"""MOVUPS of the single-precision ones."""
_INSTRUCTIONS = (
    ("nothing", "", 1),
    ("ADDSD, MULSD", "f20f58c1 f20f59c1", 2),
    ("SUBSS, DIVSS", "f30f5cc1 f30f5ec1", 2),
    ("ADDPS, MULPS", "0f58c1 0f59c1", 2),
    ("FADD, FMUL", "d8c1 d8c9", 2),
    ("FST m64, FIST m16", "dd160080 df160080", 2),
    ("FSIN", "d9fe", 1),
    ("FCOS", "d9ff", 1),
    ("F2XM1", "d9f0", 1),
    ("FLD, FPATAN", "d9c0 d9f3", 1),
    ("FLD, FYL2X", "d9c1 d9f1", 1),
)


def seconds(engine: str, body: bytes, packed: bool, count: int) -> float:
    """How long a loop takes that gets round `count` times: the body, DEC, JNZ."""
    body += b"\x66\x49"
    code = _BEGIN + _PACKED * packed + b"\x66\xb9" + count.to_bytes(4, "little")
    code += body + b"\x75" + (-len(body) - 2 & 0xFF).to_bytes(1, "little") + b"\xf4"
    vm = VirtualMachine(1 << 20, engine=engine)
    vm.processor.memory.write(_CODE, code)
    vm.processor.memory.write(_DATA, _NUMBERS)
    vm.vmcs["GUEST_CS_SELECTOR"] = vm.vmcs["GUEST_CS_BASE"] = 0
    vm.vmcs["GUEST_CR4"] |= _OSFXSR
    vm.vmcs["GUEST_RIP"] = _CODE
    begin = time.process_time()
    vm.run()
    return time.process_time() - begin


def main() -> None:
    """Print a line for each pair of instructions."""
    for engine in ("native", "portable"):
        loop = 0.0
        for name, code, number in _INSTRUCTIONS:
            count = 1 << (18 if number == 1 and code else 21)
            body = bytes.fromhex(code)
            took = min(seconds(engine, body, "PS" in name, count) for _ in range(3)) / count
            loop = loop or took
            print(f"{engine:9} {name:18} {(took - loop * bool(code)) / number * 1e9:7.1f} ns")


if __name__ == "__main__":
    main()
