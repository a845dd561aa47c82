"""Tells why a machine stopped: triple faults, failed VM entries, guests halted or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from trapgate.compiler.dialect import Cells
from trapgate.debug.postmortem import instruction as at
from trapgate.debug.postmortem.branches import last_branches
from trapgate.debug.postmortem.delivery import attempt
from trapgate.debug.postmortem.facts import Facts, Fault
from trapgate.debug.postmortem.postmortem import PostMortem, Scene
from trapgate.debug.postmortem.remedies import remedies
from trapgate.debug.postmortem.view import View, view_of
from trapgate.events import journal as j
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm.event_words import code_words, event_name, event_words, hexadecimal
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.vectors import DF, PF
from trapgate.vmm.actions import End
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmx.capability_msrs import capability_msrs

_MASK = (1 << 64) - 1
_BEFORE = 12
_LAST_LINES = 8
_AHEAD = 8
_GENERAL = (
    "RAX",
    "RCX",
    "RDX",
    "RBX",
    "RSP",
    "RBP",
    "RSI",
    "RDI",
    *(f"R{n}" for n in range(8, 16)),
)


def faults_of(vm: VirtualMachine) -> tuple[tuple[Fault, ...], tuple[Fault, ...]]:
    """The last chain of nested faults, and the events before it, each the first first."""
    rows = [_fault(row) for _, row in zip(range(200), vm.processor.last_events(), strict=False)]
    start = next((n for n, fault in enumerate(rows) if fault.depth == 0), len(rows) - 1)
    chain, earlier = rows[: start + 1], rows[start + 1 : start + 1 + _BEFORE]
    return tuple(reversed(chain)), tuple(reversed(earlier))


def _fault(row: Cells) -> Fault:
    return Fault(
        int(row[j.ROW_VECTOR]),
        int(row[j.ROW_TYPE]),
        int(row[j.ROW_ERROR_CODE]),
        int(row[j.ROW_RIP]) & _MASK,
        int(row[j.ROW_ADDRESS]) & _MASK,
        int(row[j.ROW_DEPTH]),
        bool(row[j.ROW_INJECTED]),
    )


def explain_end(
    vm: VirtualMachine,
    names: at.Namer = at.no_names,
    again: Callable[[], VirtualMachine] | None = None,
) -> PostMortem | None:
    """Why `vm` ended; None if it runs still, or ended as guests should.

    `names` gives linear addresses their symbols. `again` makes a machine that is at the
    beginning of the same run, or at any moment of it; then the post-mortem has the last branches.
    """
    stop = vm.stopped
    if stop is None or stop.is_normal:
        return None
    view = view_of(vm)
    if stop.end is End.TRIPLE_FAULT:
        post_mortem = _triple_fault(vm, view, names)
    elif stop.end is End.ENTRY_FAILED:
        post_mortem = _entry_failed(vm, view, names, stop.message)
    elif stop.end is End.HALTED:
        post_mortem = _halted(vm, view, names, stop.message)
    else:
        post_mortem = _stopped(vm, view, names, stop.end.value, stop.message)
    branches = None if again is None else last_branches(again, vm)
    return replace(post_mortem, branches=tuple(one.words(names) for one in branches or ()))


def _triple_fault(vm: VirtualMachine, view: View, names: at.Namer) -> PostMortem:
    chain, before = faults_of(vm)
    if not chain:
        return _stopped(vm, view, names, "triple fault", "no event is in the journal")
    scenes = [Scene(f"the guest was {at.sentence(view, names)}")]
    attempts = []
    for number, fault in enumerate(chain):
        last = number + 1 == len(chain)
        tried = None if last and number else attempt(view, fault.vector, fault.kind, fault.code)
        if tried is not None:
            attempts.append(tried)
        lines = (*_fault_lines(view, fault), *(tried.lines if tried else ()))
        scenes.append(Scene(_title(chain, number), lines))
    facts = Facts(view, chain, tuple(attempts), before, tuple(at.following(view, _AHEAD)))
    why = next((tried.wrong for tried in attempts if tried.wrong), "")
    first = event_words(chain[0].vector, chain[0].kind, chain[0].code)
    headline = f"{first}, and it could not be delivered: {why}" if why else first
    return _post_mortem(vm, view, names, "triple fault", headline, scenes, before, remedies(facts))


def _title(chain: tuple[Fault, ...], number: int) -> str:
    fault = chain[number]
    words = event_words(fault.vector, fault.kind, fault.code)
    if number == 0:
        return f"first: {words}"
    previous = event_name(chain[number - 1].vector, chain[number - 1].kind)
    if fault.vector == DF and number >= 2:
        met = event_name(chain[number - 2].vector, chain[number - 2].kind)
        return f"{met} and {previous} together make a double fault: {words}"
    if number + 1 == len(chain):
        return (
            f"while delivering {previous}: {words}; a third fault at a double fault is a triple "
            "fault, "
            "and the processor shuts down"
        )
    return f"while delivering {previous}: {words}"


def _fault_lines(view: View, fault: Fault) -> Iterator[str]:
    words = code_words(fault.vector, fault.code)
    exception = fault.kind == InterruptionType.HARDWARE_EXCEPTION
    if exception and fault.vector == PF:
        walk = view.walk(
            fault.address,
            write=bool(fault.code & 2),
            user=bool(fault.code & 4),
            fetch=bool(fault.code & 16),
        )
        yield f"{words}, linear address {hexadecimal(fault.address)}"
        yield f"the walk of {walk}"
    elif words:
        yield f"the error code means {words}"


def _before_words(events: tuple[Fault, ...], names: at.Namer) -> Iterator[str]:
    """The last events, equal ones counted."""
    counted: list[tuple[str, int]] = []
    for fault in events:
        name = names(fault.rip)
        words = (
            f"{event_words(fault.vector, fault.kind, fault.code)} at RIP {hexadecimal(fault.rip)}"
        )
        words += f" ({name})" if name else ""
        if fault.vector == PF and fault.kind == InterruptionType.HARDWARE_EXCEPTION:
            words += f", address {hexadecimal(fault.address)}"
        if counted and counted[-1][0] == words:
            counted[-1] = words, counted[-1][1] + 1
        else:
            counted.append((words, 1))
    for words, count in counted:
        yield f"{words}{f', {count} times' if count > 1 else ''}, delivered"


def _entry_failed(vm: VirtualMachine, view: View, names: at.Namer, message: str) -> PostMortem:
    # The doctor knows many forms of dumps, and few guests need one.
    from trapgate.debug.doctor import DumpedVmcs, ForeignProcessor, examine
    from trapgate.debug.doctor.fields import FIELDS

    values = {field.name: vm.vmcs[field] for field in vm.vmcs if field.name in FIELDS}
    # A VMM in Python has no host state, and the processor sees to CR0.NE and CR4.VMXE itself.
    cpu = ForeignProcessor(40, 48, capability_msrs(extended=False, secondary=ct.SECONDARY_WITH_EPT))
    found = [
        finding
        for finding in examine(DumpedVmcs(values, "the guest's VMCS"), cpu).findings
        if not finding.fields[0][0].startswith("HOST_")
        and finding.rule.name
        not in (
            "guest-cr0-must-be-1",
            "guest-cr4-must-be-1",
            "ept-memory-type",
            "ept-walk-length",
            "unrestricted-guest-without-ept",
        )
    ]
    scenes = [Scene("the processor refused the VM entry")]
    scenes += [Scene(finding.sentence, (f'SDM, "{finding.section}"',)) for finding in found]
    causes = tuple(dict.fromkeys(finding.rule.cause for finding in found))
    _, before = faults_of(vm)
    told = message.removeprefix("VM entry failed: ")
    return _post_mortem(vm, view, names, "VM entry failed", told, scenes, before, causes[:2])


def _halted(vm: VirtualMachine, view: View, names: at.Namer, message: str) -> PostMortem:
    chain, before = faults_of(vm)
    interrupts = bool(view.cell(f.GUEST_RFLAGS) & 1 << 9)
    scenes = [
        Scene(
            f"the guest executed HLT just before RIP {at.place(view, names)} in {view.mode}, CPL "
            f"{view.cpl}",
            (
                f"RFLAGS.IF is {int(interrupts)}: "
                + (
                    "an interrupt would wake it, but no device has anything to say"
                    if interrupts
                    else "only an NMI or INIT could wake it, and none will come"
                ),
            ),
        )
    ]
    events = (*before, *chain)[-_BEFORE:]
    if interrupts:
        remedy = (
            "program a timer (the PIT's channel 0 or the local APIC's) and unmask its line "
            "before waiting "
            "for interrupts"
        )
    else:
        remedy = (
            "CLI; HLT is how kernels stop after a panic: look at the last events and the last "
            "output; if the "
            "guest meant to wait, it needs STI before HLT"
        )
    return _post_mortem(vm, view, names, "halted", message, scenes, events, (remedy,))


def _stopped(vm: VirtualMachine, view: View, names: at.Namer, end: str, message: str) -> PostMortem:
    scenes = [Scene(f"the guest was {at.sentence(view, names)}")]
    chain, before = faults_of(vm)
    fixes: tuple[str, ...] = ()
    if end == End.REFUSED.value:
        fixes = (
            (
                "under direct paging a guest's page tables hold machine addresses, and only its "
                "own frames may "
                "be mapped: let it take its memory from the map it was given, and write PTEs whole"
            ),
        )
    return _post_mortem(vm, view, names, end, message, scenes, (*before, *chain)[-_BEFORE:], fixes)


def _post_mortem(
    vm: VirtualMachine,
    view: View,
    names: at.Namer,
    end: str,
    headline: str,
    scenes: list[Scene],
    before: tuple[Fault, ...],
    fixes: tuple[str, ...],
) -> PostMortem:
    registers = {"RIP": view.rip, "RFLAGS": view.cell(f.GUEST_RFLAGS)}
    registers |= {
        name: view.general(n) for n, name in enumerate(_GENERAL[: 16 if view.long else 8])
    }
    registers |= {
        "CR0": view.cell(f.GUEST_CR0),
        "CR2": view.cr2,
        "CR3": view.cell(f.GUEST_CR3),
        "CR4": view.cell(f.GUEST_CR4),
        "EFER": view.cell(f.GUEST_IA32_EFER),
        "CS": view.cell(f.GUEST_CS_SELECTOR),
        "SS": view.cell(f.GUEST_SS_SELECTOR),
        "TR": view.cell(f.GUEST_TR_SELECTOR),
        "GDTR": view.cell(f.GUEST_GDTR_BASE),
        "IDTR": view.cell(f.GUEST_IDTR_BASE),
    }
    output = bytes(vm.output[-2000:]).decode("latin-1").splitlines()[-_LAST_LINES:]
    shown = tuple("".join(c if c.isprintable() else "." for c in line) for line in output)
    return PostMortem(
        end,
        headline,
        tuple(scenes),
        fixes,
        tuple(_before_words(before, names)),
        registers,
        output=shown,
    )
