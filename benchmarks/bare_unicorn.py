"""The peer Unicorn as it comes: flat memory, no paging, no hooks."""

import time

from benchmarks.guests import LOAD, Loop
from benchmarks.measure import SkipSide

_MEMORY = 4 << 20


def seconds_of(loop: Loop) -> float:
    """Seconds that the loop takes in a fresh instance, translation included."""
    try:
        import unicorn
    except ImportError:
        raise SkipSide("not installed") from None
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    engine.mem_map(0, _MEMORY)
    engine.mem_write(LOAD, loop.code)
    began = time.perf_counter()
    engine.emu_start(LOAD, LOAD + len(loop.code))
    return time.perf_counter() - began
