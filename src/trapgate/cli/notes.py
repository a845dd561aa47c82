"""What a run's user should know beside the summary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trapgate.cli.terminal import Paging

if TYPE_CHECKING:
    from trapgate.vmm.machine import VirtualMachine
    from trapgate.vmm.summary import Summary

PORTABLE_FILTERS = (
    "on the portable engine a write that a fault filter judges takes longer than an exit: "
    "filters save exits there, and cost time"
)


def notes_about(vm: VirtualMachine, paging: Paging, summary: Summary) -> Iterator[str]:
    """What a user should know who asked for direct paging or a fault filter in vain."""
    if paging is Paging.direct:
        yield from _direct_notes(vm)
    mapped = vm.vmcs.profile == "extended" and vm.vmcs["FRAME_MAP_LENGTH"]
    if vm.vmcs.profile == "extended" and vm.vmcs["FAULT_FILTER"] and not mapped:
        yield from _filter_notes(vm, paging, summary)


def _direct_notes(vm: VirtualMachine) -> Iterator[str]:
    from trapgate.engine import machine as stops
    from trapgate.vmm.direct.machine import DirectMachine
    from trapgate.vmm.direct.protected import ProtectedMachine

    assert isinstance(vm, DirectMachine | ProtectedMachine)
    if not vm.has_paged:
        yield "the guest never turned paging on, so there were no page tables to guard"
    if vm.counts.refused:
        yield f"the VMM refused {vm.counts.refused:,} times, last: {vm.counts.last_refusal}"
    if not vm.processor.engine.cells[stops.NATIVE]:
        yield (
            "the portable engine does not stop at task switches, which load CR3: "
            "a malicious guest can escape direct paging; use --engine native for it"
        )


def _filter_notes(vm: VirtualMachine, paging: Paging, summary: Summary) -> Iterator[str]:
    from trapgate.decision.decide import Disposition
    from trapgate.decision.self_map import self_mapped
    from trapgate.processor.logical import signed

    if summary.engine == "portable":
        yield PORTABLE_FILTERS
    if summary.count(Disposition.COMPLETE, 14):
        return
    vmcs = vm.vmcs
    if self_mapped(
        vmcs["GUEST_CR0"],
        vmcs["GUEST_CR3"],
        vmcs["GUEST_CR4"],
        vmcs["GUEST_IA32_EFER"],
        vm.processor.memory.cells,
        signed(vmcs["PTBASE"]),
    ):
        yield "the fault filter was never satisfied: no write to a page table was stopped" + (
            ""
            if paging is Paging.direct
            else "; with --paging direct the VMM makes the tables read-only"
        )
    else:
        yield (
            f"the fault filter was never satisfied: PTBASE {vmcs['PTBASE']:#x} is not where "
            "the guest's page directory maps itself (¶74); set PTBASE to that address"
        )
