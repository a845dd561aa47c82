"""Where the native engine's hosts differ: Linux on x86-64 and arm64, with Unicorn 2.1.4's wheels.

All else in `layout` and `emission` is the same on both. `native` and `calibration` prove what is
said here on the running library before anything relies on it.
"""

import platform
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

from trapgate.errors import EngineError

_CPU_OF_HANDLE = 0x1B8


@dataclass(frozen=True)
class Host:
    """What one processor's build of Unicorn has. Distances are in bytes."""

    cpu_size: int
    """From the CPU to its x86 state. The C library's jmp_buf lies between."""
    handle_of_translator: int
    """In the translator's context: the handle."""
    last_operation: int
    """In the translator's context: the end of the list of operations."""
    jump_slot: int
    """The type of relocation that fills a slot of the procedure linkage table."""
    request: Callable[[bytes], int]
    """Where in the CPU a request to exit stands, by the code of `helper_check_exit_request`."""


def _request_on_x86_64(code: bytes) -> int:
    # mov r8, [rdi + cpu]; mov eax, [r8 + request]; test eax, eax
    cpu, request = (struct.unpack_from("<i", code, place)[0] for place in (3, 10))
    known = (code[:3], code[7:10], code[14:16]) == (b"\x4c\x8b\x87", b"\x41\x8b\x80", b"\x85\xc0")
    return int(request) if known and cpu == _CPU_OF_HANDLE else -1


def _request_on_arm64(code: bytes) -> int:
    # ldr x2, [x0, #cpu]; mov x3, #far; add x3, x2, x3; ldr w3, [x3, #near]
    load_cpu, move, add, load = struct.unpack_from("<4I", code)
    known = (
        load_cpu == 0xF9400002 | _CPU_OF_HANDLE // 8 << 10
        and move & 0xFFE0001F == 0xD2800003
        and add == 0x8B030043
        and load & 0xFFC003FF == 0xB9400063
    )
    return (move >> 5 & 0xFFFF) + (load >> 10 & 0xFFF) * 4 if known else -1


HOSTS = {
    "x86_64": Host(35408, 0x9970, 0x7390, 7, _request_on_x86_64),
    "aarch64": Host(35520, 0x9A90, 0x7398, 1026, _request_on_arm64),
}
"""By the machine's name."""

HOST = HOSTS.get(platform.machine(), HOSTS["x86_64"])
"""This one, or any, where there is none: `demand_known` comes first."""


def demand_known() -> None:
    """Raise EngineError on a host whose library nobody has measured."""
    if sys.platform != "linux" or platform.machine() not in HOSTS:
        raise EngineError(
            f"Unicorn's internals are known on Linux, on x86-64 and arm64, not on "
            f"{platform.system()} on {platform.machine()}"
        )


def request_of(code: bytes) -> int:
    """See `Host.request`. Raises EngineError where the code is not the expected one."""
    found = HOST.request(code)
    if found < 0:
        raise EngineError("the engine's check for requests to exit is not the expected one")
    return found
