"""`python -m benchmarks.links`: what the VMM under a frame map does about links, in microseconds.

A root that leads to a hundred tables is validated and let go, an entry of a last-level table is
edited, a link comes and goes, and all links are counted anew. Medians.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from trapgate.vmm.direct.links import FOUR_LEVELS, Links

_FRAMES = 1 << 16
_MAP_FRAMES = 1 << 20
_TABLES = 100
_TIMES = 2000


def machine() -> Links:
    """256 MB, and in the first frames a PML4, a PDPT, a PD and 97 last-level tables, full."""
    memory = np.zeros(_FRAMES * 4096 + _MAP_FRAMES, np.uint8)
    memory[_FRAMES * 4096 :][:_FRAMES] = 16  # the guest's own
    words = memory[: _FRAMES * 4096].view(np.uint64).reshape(-1, 512)
    words[0, 0], words[1, 0] = 1 << 12 | 7, 2 << 12 | 7
    words[2, : _TABLES - 3] = np.arange(3, _TABLES) << 12 | 7
    words[3:_TABLES] = np.arange((_TABLES - 3) * 512).reshape(-1, 512) % _FRAMES << 12 | 7
    links = Links(memory, _FRAMES * 4096, _MAP_FRAMES, _FRAMES)
    links.set_mode(FOUR_LEVELS)
    return links


def microseconds(action: Callable[[], object], around: Callable[[], object]) -> float:
    """The median time of an action; `around` is done after each, and takes it back."""
    times = []
    for _ in range(_TIMES):
        begin = time.perf_counter()
        action()
        times.append((time.perf_counter() - begin) * 1e6)
        around()
    return median(times)


def main() -> None:
    """Print them."""
    links = machine()

    def settle() -> None:
        links.settle(lambda: None, lambda *_: None)

    load = microseconds(lambda: links.load_root((0,)), lambda: links.drop_root((0,)))
    links.load_root((0,))
    drop = microseconds(lambda: links.drop_root((0,)), lambda: links.load_root((0,)))
    entry = (5 << 12 | 7).to_bytes(8, "little")
    leaf = microseconds(lambda: links.store(3 << 12, entry), settle)
    link = (500 << 12 | 7).to_bytes(8, "little")
    at = 2 << 12 | 300 << 3
    comes = microseconds(lambda: links.store(at, link), lambda: links.store(at, bytes(8)))
    links.store(at, link)
    goes = microseconds(lambda: links.store(at, bytes(8)), lambda: links.store(at, link))
    recount = microseconds(links.recount, settle)
    print(f"a root of {_TABLES} tables: {load:.0f} us to validate, {drop:.0f} us to let go")
    print(f"an edit: {leaf:.1f} us, of a link that comes {comes:.1f}, that goes {goes:.1f}")
    print(f"all links counted anew: {recount:.0f} us")


if __name__ == "__main__":
    main()
