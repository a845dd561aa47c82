"""The story of a guest's end: in words, in the order of events, with what it probably needs.

`tell` makes a `Story` of a machine that stopped. `view` shows the guest's state and memory
without changing anything, `delivery` goes the way of an event through the IDT in words, `remedies`
knows the mistakes of beginners, `page` makes HTML of a story.
"""

from trapgate.debug.story.story import Scene, Story
from trapgate.debug.story.tell import tell

__all__ = ["Scene", "Story", "tell"]
