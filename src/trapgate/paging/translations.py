"""Translations of linear addresses that the core remembers, as a processor's TLB does.

A delivery through the IDT reads gate, descriptors and TSS and writes a frame, an IRET reads frame
and descriptors: by half a dozen pages that are mostly the same ones. The SDM lets a processor use
a translation that it has cached ("Caching Translation Information") until something invalidates
it. Here that is whatever has the engine drop one of its own: INVLPG, loads of CR0, CR3, CR4 and
IA32_EFER, INVPCID, INVEPT, INVVPID, VM entries and exits, a frame map that changes.

They live behind physical memory, in cells of `memory.watched`, and count only while the engine
says that VMCS and engine agree (WATCH_TRANSLATES). Elsewhere each access walks.
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.compiler.raw import watched
from trapgate.paging.memory import TRANSLATION_SLOTS, WATCH_TRANSLATES, WATCH_TRANSLATIONS

_USED = 1 << 11
_USER_SHIFT = 2
_AC_SHIFT = 18 - 3
"""RFLAGS.AC, bit 18, becomes bit 3."""


@core
@inlined
def kind_of(rflags: int, access: int, user: int) -> int:
    """What a translation depends on beside the page and the control registers, in four bits."""
    return access | user << _USER_SHIFT | (rflags >> _AC_SHIFT) & 8


@core
@inlined
def remembered(mem: Memory, linear: int, kind: int) -> int:
    """The physical address of a linear one for an access of that kind; -1: walk."""
    watch = watched(mem)
    if len(watch) == 0 or watch[WATCH_TRANSLATES] == 0:
        return -1
    slot = WATCH_TRANSLATIONS + 2 * ((linear >> 12 ^ kind) & TRANSLATION_SLOTS - 1)
    if watch[slot] != linear & ~0xFFF | _USED | kind:
        return -1
    return int(watch[slot + 1]) | linear & 0xFFF


@core
def remember(mem: Memory, linear: int, kind: int, physical: int) -> None:
    """A walk for an access of that kind, which is allowed, has led to `physical`."""
    watch = watched(mem)
    if len(watch) == 0 or watch[WATCH_TRANSLATES] == 0:
        return
    slot = WATCH_TRANSLATIONS + 2 * ((linear >> 12 ^ kind) & TRANSLATION_SLOTS - 1)
    watch[slot] = linear & ~0xFFF | _USED | kind
    watch[slot + 1] = physical & ~0xFFF


@core
@inlined
def forget(watch: Cells) -> None:
    """Forget all of them; `watch` as of `memory.watched`."""
    for n in range(TRANSLATION_SLOTS):
        watch[WATCH_TRANSLATIONS + 2 * n] = 0
