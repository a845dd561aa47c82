"""The criteria compiler's benchmarks; the peer is a plain z3 Optimize encoding.

Rates, so that ratios can be read; of processor time, for neither side uses threads.

`python -m benchmarks.criteria` prints the summary of merging all 29,403 unordered pairs of
distinct 5-bit VT-x filters (with `--prove`, each of them also proved by z3).
"""

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Benchmark, SkipSide
from trapgate.criteria import define, parse_spec
from trapgate.criteria.covers.pairs import best_of_one
from trapgate.criteria.covers.schemes import FILTER_SCHEMES, best, one_pair_filter
from trapgate.criteria.problems.codes import plain_layout
from trapgate.criteria.problems.filters import Filter
from trapgate.criteria.problems.problem import NEVER, Problem, problem, weight_and_count
from trapgate.criteria.proofs.proof import Claim, prove

PEER = "z3 Optimize"
_PEER_SECONDS = 30
_PEER_WIDTH = 10
_WIDTH = 5
_CODES = np.arange(1 << _WIDTH)


def narrow_filters() -> list[Filter]:
    """All distinct filters of one pair of 5 bits, with the control bit set: 3**5."""
    size = 1 << _WIDTH
    return [
        Filter("figure-3", True, (mask, match))
        for mask in range(size)
        for match in range(size)
        if not match & ~mask
    ]


def all_pairs() -> list[tuple[Filter, Filter]]:
    """All unordered pairs of them: 29,403."""
    return list(itertools.combinations(narrow_filters(), 2))


@dataclass
class MergeSummary:
    """What merging brought: pairs, how many better than exit-on-all, how many exact, and
    how many exits there would be needlessly under exit-on-all, and are under the merged fields.
    """

    pairs: int = 0
    better: int = 0
    exact: int = 0
    needless_before: int = 0
    needless_after: int = 0

    def line(self) -> str:
        """In words."""
        removed = 1 - self.needless_after / self.needless_before
        return (
            f"{self.pairs:,} pairs: {self.better / self.pairs:.1%} better than exit-on-all, "
            f"{self.exact / self.pairs:.1%} exact, {removed:.1%} of needless exits removed"
        )


def merge_all(pairs: list[tuple[Filter, Filter]], *, proved: bool = False) -> MergeSummary:
    """Merge each pair to the tightest filter, and try it on every code."""
    layout = plain_layout(_WIDTH)
    summary = MergeSummary()
    exits_of = {one: one.exits(_CODES) for one in narrow_filters()}
    for first, second in pairs:
        must = exits_of[first] | exits_of[second]
        shape = best_of_one(problem(range(_WIDTH), must, ~must))
        merged = one_pair_filter("figure-3", shape)
        exits = merged.exits(_CODES)
        needless = exits & ~must
        if (must & ~exits).any() or weight_and_count(shape.cost)[1] != needless.sum():
            raise AssertionError((first, second, merged))
        if proved:
            prove(merged, _claim(first, second, layout, needless), NEVER)
        summary.pairs += 1
        summary.better += bool(not exits.all())
        summary.exact += bool(not needless.any())
        summary.needless_before += int((~must).sum())
        summary.needless_after += int(needless.sum())
    return summary


def _claim(first: Filter, second: Filter, layout: Any, needless: NDArray[np.bool_]) -> Claim:
    import z3

    def either(code: Any) -> Any:
        return z3.Or(first.term(code), second.term(code))

    return Claim(layout, either, lambda code: z3.Not(either(code)), needless)


def wide_conditions() -> Problem:
    """16 bits, as a SPEC would have it: two conditions on a few bits."""
    codes = np.arange(1 << 16)
    must = ((codes & 0x15) == 0x11) | ((codes & 0x8040) == 0x8000)
    return problem(range(16), must, ~must)


def wide_random() -> Problem:
    """16 bits without any structure: a tenth must exit, at random; random weights."""
    random = np.random.default_rng(16)
    must = random.random(1 << 16) < 0.1
    return problem(range(16), must, ~must, random.integers(0, 1000, 1 << 16))


def weighted(width: int = 8, seed: int = 8) -> Problem:
    """A weighted problem: a third of the codes must exit, a third should not."""
    random = np.random.default_rng(seed)
    goals = random.integers(0, 3, 1 << width)
    weights = random.integers(0, 1000, 1 << width)
    return problem(range(width), goals == 1, goals == 2, weights)


def seconds_of(asked: Problem, scheme: str) -> float:
    """Seconds to define `asked` under `scheme`."""
    fresh = Problem(asked.positions, asked.must, asked.cost)
    start = time.process_time()
    best([fresh], FILTER_SCHEMES[scheme])
    return time.process_time() - start


WIDE_SPEC = """
bits = 16
impossible = "kept"
[PF]
exit = ["code & 0x15 == 0x11 or code & 0x8040 == 0x8000"]
default = "deliver"
"""


def seconds_to_prove() -> float:
    """Seconds from the SPEC of `wide_conditions` to a proved answer, reasons included."""
    spec = parse_spec(WIDE_SPEC)
    start = time.process_time()
    define(spec, "vt-x")
    return time.process_time() - start


def _exit_terms(scheme: str, width: int, codes: Iterator[int]) -> list[tuple[int, Any]]:
    import z3

    words = [z3.BitVec(name, width) for name in ("m1", "v1", "m2", "v2")]
    bit = z3.Bool("control")
    first, first_match, second, second_match = words
    terms = []
    for code in codes:
        hit = (first & code) == first_match
        if scheme == "figure-4":
            terms.append((code, z3.Or(hit, (second & code) == second_match)))
        elif scheme == "figure-5":
            terms.append((code, bit == z3.Or(hit, (second & code) != 0)))
        else:
            terms.append((code, bit == hit))
    return terms


def plain_seconds(asked: Problem, scheme: str, limit: float = _PEER_SECONDS) -> float:
    """Seconds that z3 Optimize takes, given one soft constraint for each code.

    Raises: SkipSide if it has no answer in `limit` seconds.
    """
    try:
        import z3
    except ImportError:
        raise SkipSide("no z3: pip install 'trapgate[criteria]'") from None
    if asked.width > _PEER_WIDTH:
        raise SkipSide(f"not tried: {len(asked.must):,} soft constraints")
    start = time.process_time()
    optimize = z3.Optimize()
    for code, exits in _exit_terms(scheme, asked.width, iter(range(len(asked.must)))):
        if time.process_time() - start > limit:
            raise SkipSide(f"not even encoded within {limit:g} s")
        if asked.must[code]:
            optimize.add(exits)
        elif asked.cost[code]:
            optimize.add_soft(z3.Not(exits), int(asked.cost[code]))
    optimize.set("timeout", int((limit - (time.process_time() - start)) * 1000) + 1)
    if optimize.check() != z3.sat:
        raise SkipSide(f"no answer within {limit:g} s")
    return time.process_time() - start


def _every(count: int) -> list[tuple[Filter, Filter]]:
    pairs = all_pairs()
    return pairs[:: len(pairs) // count]


def merge_rate(pairs: list[tuple[Filter, Filter]], *, proved: bool = False) -> float:
    """Pairs merged a second, each answer tried on every code, or `proved` by z3, too."""
    start = time.process_time()
    merge_all(pairs, proved=proved)
    return len(pairs) / (time.process_time() - start)


def plain_merge_rate() -> float:
    """The same by z3 Optimize, from a sample."""
    sample = _every(20)
    seconds = 0.0
    for first, second in sample:
        must = first.exits(_CODES) | second.exits(_CODES)
        seconds += plain_seconds(problem(range(_WIDTH), must, ~must), "vt-x")
    return len(sample) / seconds


_PAIRS = "pairs/s"
_ANSWERS = "answers/s"

merge_pairs = Benchmark(
    "criteria-merge", "the tightest fields for two filters of 5 bits", _PAIRS, "higher",
    "490: all 29,403 in a minute",
)  # fmt: skip
merge_pairs.side("trapgate")(lambda: merge_rate(all_pairs()))
merge_pairs.side("trapgate, each proved by z3")(lambda: merge_rate(_every(400), proved=True))
merge_pairs.side(PEER)(plain_merge_rate)


def _define(name: str, what: str, goal: str, asked: Problem, scheme: str) -> Benchmark:
    benchmark = Benchmark(name, what, _ANSWERS, "higher", goal)
    benchmark.side("trapgate")(lambda: 1 / seconds_of(asked, scheme))
    benchmark.side(PEER)(lambda: 1 / plain_seconds(asked, scheme))
    return benchmark


wide = _define(
    "criteria-16-bit", "a VT-x definition over 16 bits, by conditions", "10: 100 ms each",
    wide_conditions(), "vt-x",
)  # fmt: skip
wide.side("trapgate, proved and explained")(lambda: 1 / seconds_to_prove())
wide_noise = _define(
    "criteria-16-bit-random", "the same, at random and weighted", "10: 100 ms each",
    wide_random(), "vt-x",
)  # fmt: skip
two_pairs = _define("criteria-figure-4", "figure 4, 8 bits, weighted", "1", weighted(), "figure-4")
any_bits = _define("criteria-figure-5", "figure 5, 8 bits, weighted", "1", weighted(), "figure-5")

CRITERIA = (merge_pairs, wide, wide_noise, two_pairs, any_bits)
"""For the suite."""


def main() -> int:
    """Merge all pairs and print what it brought."""
    start = time.process_time()
    summary = merge_all(all_pairs(), proved="--prove" in sys.argv[1:])
    print(summary.line())
    print(f"{time.process_time() - start:.1f} s on one core")
    return 0


if __name__ == "__main__":
    sys.exit(main())
