"""Why a guest ended: in words, in the order of events, with what it probably needs.

`explain_end` makes a `PostMortem` of a machine that stopped. `view` shows the guest's state and
memory without changing anything, `delivery` goes the way of an event through the IDT in words,
`remedies` knows the mistakes of beginners, `page` makes a page of a post-mortem.
It imports `vmm` and below, and of the doctor the words. Begin with `explain_end`.
"""

from trapgate.debug.postmortem.explain_end import explain_end
from trapgate.debug.postmortem.postmortem import PostMortem, Scene

__all__ = ["PostMortem", "Scene", "explain_end"]
