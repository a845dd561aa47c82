"""Why a guest ended: in words, in the order of events, with probable remedies.

`explain_end` makes a `PostMortem` of a machine that has stopped. `view` shows the guest's state and
memory without changing anything, `delivery` describes the path of an event through the IDT,
`remedies` knows common mistakes, `page` writes a page. It may import `doctor`, `vmm` and below.
Begin with `explain_end`.
"""

from trapgate.debug.postmortem.explain_end import explain_end
from trapgate.debug.postmortem.postmortem import PostMortem, Scene

__all__ = ["PostMortem", "Scene", "explain_end"]
