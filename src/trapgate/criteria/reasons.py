"""Why something cannot be had: an irreducible part of the wishes that already rules it out."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def irreducible(items: Sequence[Item], possible: Callable[[Sequence[Item]], bool]) -> list[Item]:
    """A part of `items` that is not `possible` together, though it is without any one of them.

    `possible` must be monotone: what is possible stays so with fewer items. `items`
    themselves must be impossible. (Junker's QuickXplain, AAAI 2004.)
    """

    def explain(background: list[Item], fresh: bool, candidates: list[Item]) -> list[Item]:
        if fresh and not possible(background):
            return []
        if len(candidates) == 1:
            return candidates
        half = len(candidates) // 2
        first, second = candidates[:half], candidates[half:]
        needed = explain(background + first, True, second)
        return explain(background + needed, bool(needed), first) + needed

    return explain([], False, list(items))
