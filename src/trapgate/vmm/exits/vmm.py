"""A virtual-machine monitor: which handler an exit goes to."""

from __future__ import annotations

from collections.abc import Mapping

from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import cells as f
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vmx import THROUGH_IDT_VECTOR
from trapgate.vmm.actions import (
    Action,
)
from trapgate.vmm.exits.handlers import HANDLERS, Handler, unhandled
from trapgate.vmm.exits.platform import Platform


class Vmm:
    """A virtual-machine monitor: a table from exit reasons to handlers.

    A handler is a plain function of the exit and the machine that gives an action. Those
    in `handlers` replace the usual ones (`vmm.exits.handlers.HANDLERS`). Those in `vectors` are a
    VMM's redirection structure (¶26): where the VMCS's EXIT_THROUGH_IDT says so, an exit goes
    to the handler of its exception's vector, or of the vector that the field gives.
    """

    def __init__(
        self,
        handlers: Mapping[ExitReason, Handler] | None = None,
        *,
        vectors: Mapping[int, Handler] | None = None,
    ) -> None:
        self.handlers: dict[ExitReason, Handler] = {**HANDLERS, **(handlers or {})}
        self.vectors: dict[int, Handler] = dict(vectors or {})

    def has_default_handler(self, reason: ExitReason) -> bool:
        """Whether the processor may answer exits of that reason in place of the usual handler."""
        return type(self) is Vmm and not self.vectors and self.handlers[reason] is HANDLERS[reason]

    def handle(self, vmexit: VmExit, vm: Platform) -> Action:
        """What to do about `vmexit`."""
        usual = self.handlers.get(vmexit.reason, unhandled)
        through_idt = vmexit.vmcs.words[f.EXIT_THROUGH_IDT]
        if not through_idt:
            return usual(vmexit, vm)
        vector = through_idt & THROUGH_IDT_VECTOR
        if vmexit.reason is ExitReason.EXCEPTION_OR_NMI and vmexit.interruption is not None:
            vector = vmexit.interruption.vector
        return self.vectors.get(vector, usual)(vmexit, vm)
