"""What a guest's kernel does with its roots, by which the VMM saves exits.

Nothing here is needed for safety: a root may be validated, or dropped unless it is loaded, at any
time. But a kernel with page-table isolation has two roots for a process, in neighbouring frames,
so where one is loaded or used for something else, the other soon is. And a process that ends takes
all entries from the lower half of its root, whose frame then has another use.
"""

from __future__ import annotations

from collections.abc import Callable

from trapgate.vmm.direct.links import Links, Root


class RootPredictor:
    """Guesses about the guest whose tables `links` knows."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._in_pairs = False
        self._latest: Root = ()
        self._in_use: set[Root] = set()

    def keep(self) -> Callable[[], None]:
        """What is known now: a way back to that."""
        in_pairs, latest, in_use = self._in_pairs, self._latest, set(self._in_use)

        def back() -> None:
            self._in_pairs, self._latest, self._in_use = in_pairs, latest, set(in_use)

        return back

    def loaded(self, root: Root) -> None:
        """CR3 has just been loaded with a root, in a VM exit, so that it is probably a new one."""
        if len(root) == 1:
            twin = _twin_of(root)
            if twin == self._latest:
                self._in_pairs = True
            elif self._in_pairs and not self._links.is_table(twin[0]):
                self._links.load_root(twin)
        self._latest = root
        in_use = self._links.roots_in_use()
        for dead in sorted((self._in_use & self._links.roots) - in_use - {root}):
            self._links.drop_root(dead)
        self._in_use = in_use

    def reused(self, frame: int, loaded: Root) -> None:
        """A frame that may be a root's is about to be data, while another root is loaded."""
        links = self._links
        # With PAE paging directories of several roots may be loaded together.
        if not links.mode.pointers and (frame,) in links.roots and (frame,) != loaded:
            twin = _twin_of((frame,))
            self._in_pairs = self._in_pairs and twin != loaded
            if self._in_pairs and twin in links.roots:
                links.drop_root(twin)


def _twin_of(root: Root) -> Root:
    """The root in the other frame of a pair."""
    (frame,) = root
    return (frame ^ 1,)
