"""`python -m benchmarks.ports`: accesses to polled ports a second, by processor time."""

import time

from trapgate.vmm.machine import VirtualMachine

_COUNT = 1 << 20
_TIMER_RUNS = bytes.fromhex("b034 e643 b0ff e640 b0ff e640")
"""Counter 0 of the 8254, in mode 2 from FFFFH on."""
_IN, _OUT, _IN_32 = b"\xec", b"\xee", b"\x66\xed"
_PORTS = (
    ("COM1, line status", 0x3FD, _IN),
    ("COM1, a byte sent", 0x3F8, _OUT),
    ("8042, status", 0x64, _IN),
    ("power-management timer", 0x608, _IN_32),
    ("8254, counter 0", 0x40, _IN),
    ("port 61H", 0x61, _IN),
    ("port 80H", 0x80, _OUT),
    ("port 92H, which the VMM answers", 0x92, _IN),
)


def rate(engine: str, port: int, access: bytes, count: int) -> float:
    """How often a loop in real mode gets round in a second: the access, DEC, JNZ."""
    body = access + b"\x66\x49"
    code = _TIMER_RUNS + b"\x66\xba" + port.to_bytes(4, "little")
    code += b"\x66\xb9" + count.to_bytes(4, "little")
    code += body + b"\x75" + (-len(body) - 2 & 0xFF).to_bytes(1, "little") + b"\xf4"
    vm = VirtualMachine(1 << 20, engine=engine)
    vm.processor.memory.write(0x7C00, code)
    vm.vmcs["GUEST_CS_SELECTOR"] = vm.vmcs["GUEST_CS_BASE"] = 0
    vm.vmcs["GUEST_RIP"] = 0x7C00
    begin = time.process_time()
    vm.run()
    return count / (time.process_time() - begin)


def main() -> None:
    """Print a line for each port."""
    for engine in ("native", "portable"):
        for name, port, access in _PORTS:
            count = _COUNT if port != 0x92 else _COUNT >> 5
            print(f"{engine:9} {name:32} {rate(engine, port, access, count) / 1e6:6.2f} M/s")


if __name__ == "__main__":
    main()
