"""What `monitor` does: looks at the guest as the processor sees it, catchpoints, decisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from trapgate.debug.doctor.words import shown
from trapgate.debug.gdb.catches import CatchError, Catches
from trapgate.debug.gdb.target import Target
from trapgate.debug.gdb.threads import Thread
from trapgate.debug.postmortem.delivery import attempt, descriptor_of, gate_words
from trapgate.debug.postmortem.explain_end import faults_of
from trapgate.debug.postmortem.view import Descriptor
from trapgate.decision.decide import decide
from trapgate.decision.faults import FaultInformation
from trapgate.errors import TrapgateError
from trapgate.sdm import cells as f
from trapgate.sdm.event_words import event_words, hexadecimal
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.vectors import Vector

_HELP = """walk ADDRESS             translate a linear address, entry by entry
idt [VECTOR]             gates of the IDT; of one vector, the whole way to its handler
gdt                      descriptors of the GDT
tss                      stacks in the task-state segment
vmcs [FIELD]             fields of the VMCS, decoded
decide VECTOR [CODE]     would this fault exit, and why
trace [COUNT]            the last events
xp ADDRESS [LENGTH]      physical memory
catch FAULT [if COND]    stop at a fault before it is delivered:
                         catch PF if user and write and address < 0x1000
catch exit [REASON]      stop at VM exits; catch inject: at injections of the VMM
uncatch                  catch nothing
deliver, skip, complete, inject VECTOR [CODE]
                         what becomes of the fault that was caught
Triple faults always stop.
"""
_MOST = 64


@dataclass(frozen=True)
class Asked:
    """What gdb asks about: a thread, the registers as gdb knows them, what is caught there."""

    thread: Thread
    target: Target
    catches: Catches


def _number(text: str) -> int:
    try:
        text = text.strip()
        return int(text[:-1], 16) if text[-1:] in "hH" else int(text, 0)
    except ValueError:
        raise CatchError(f"{text!r} is not a number; write 0x10, 16 or 10H") from None


def _address(asked: Asked, text: str) -> int:
    """A number, or what a register holds: $cr2, $rsp, $pc."""
    if not text.startswith("$"):
        return _number(text)
    wide = asked.target.wide
    name = {"pc": "rip" if wide else "eip", "sp": "rsp" if wide else "esp"}.get(text[1:], text[1:])
    for register in asked.target.registers:
        if register.name == name and register.bits <= 64:
            value = register.read(asked.thread)
            if value is not None:
                return value
    raise CatchError(f"{text!r} is not a register here; write $cr2, $pc or a number")


def _vector(text: str) -> int:
    name = text.upper().removeprefix("#")
    vector = int(Vector[name]) if name in Vector.__members__ else _number(text)
    if not 0 <= vector < 256:
        raise CatchError(f"{text!r} is not a vector; write PF, GP, or a number below 256")
    return vector


def _walk(asked: Asked, words: list[str]) -> str:
    return f"{asked.thread.view().walk(_address(asked, words[0]) & (1 << 64) - 1)}\n"


def _idt(asked: Asked, words: list[str]) -> str:
    view = asked.thread.view()
    if words:
        vector = _vector(words[0])
        tried = attempt(view, vector, InterruptionType.HARDWARE_EXCEPTION, -1)
        lines = tried.lines + ([] if tried.wrong else ["its handler would be entered"])
        return "\n".join(lines) + "\n"
    base, limit = view.cell(f.GUEST_IDTR_BASE), view.cell(f.GUEST_IDTR_LIMIT)
    size = 16 if view.long else 8
    lines = [f"IDTR base {hexadecimal(base)}, limit {hexadecimal(limit)}"]
    for vector in range(min((limit + 1) // size, 256)):
        data = view.linear(base + size * vector, size)
        if data is not None and any(data):
            gate, upper = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
            lines.append(f"{vector:3}: {gate_words(gate, upper, long=view.long)}")
    return "\n".join(lines) + "\n"


def _gdt(asked: Asked, words: list[str]) -> str:
    view = asked.thread.view()
    base, limit = view.cell(f.GUEST_GDTR_BASE), view.cell(f.GUEST_GDTR_LIMIT)
    lines = [f"GDTR base {hexadecimal(base)}, limit {hexadecimal(limit)}"]
    for selector in range(0, min(limit + 1, 8 * _MOST), 8):
        found = descriptor_of(view, selector)
        if isinstance(found, Descriptor) and found.raw:
            lines.append(f"{selector:04X}H: {found}")
    return "\n".join(lines) + "\n"


def _tss(asked: Asked, words: list[str]) -> str:
    view = asked.thread.view()
    base, limit = view.cell(f.GUEST_TR_BASE), view.cell(f.GUEST_TR_LIMIT)
    lines = [
        (
            f"TR {hexadecimal(view.cell(f.GUEST_TR_SELECTOR))}, base {hexadecimal(base)}, "
            f"limit {hexadecimal(limit)}"
        )
    ]
    if view.long:
        names = [*((f"RSP{n}", 4 + 8 * n) for n in range(3)),
                 *((f"IST{n}", 0x1C + 8 * n) for n in range(1, 8))]  # fmt: skip
        width = 8
    else:
        names = [(f"{name}{n}", 4 + 8 * n + 4 * (name == "SS"))
                 for n in range(3) for name in ("ESP", "SS")]  # fmt: skip
        width = 4
    for name, offset in names:
        value = view.number(base + offset, width)
        lines.append(f"{name} {'not mapped' if value is None else hexadecimal(value)}")
    return "\n".join(lines) + "\n"


def _vmcs(asked: Asked, words: list[str]) -> str:
    wanted = words[0].upper() if words else ""
    lines = [
        shown(field.name, value)
        for field in asked.thread.vm.vmcs
        if wanted in field.name
        and (value := asked.thread.value(field.name)) is not None
        and (wanted or value)
    ]
    if not lines:
        raise CatchError(f"no field of the VMCS has {wanted!r} in its name")
    return "\n".join(lines) + "\n"


def _decide(asked: Asked, words: list[str]) -> str:
    code = _number(words[1]) if len(words) > 1 else None
    decision = decide(FaultInformation(_vector(words[0]), error_code=code), asked.thread.cpu.vmcs)
    reason = decision.reason.name.lower().replace("_", " ")
    return f"{decision.disposition.name}: {reason}\n"


def _trace(asked: Asked, words: list[str]) -> str:
    chain, before = faults_of(asked.thread.vm)
    events = (*before, *chain)
    count = _number(words[0]) if words else len(events)
    lines = [
        f"{'  ' * fault.depth}{event_words(fault.vector, fault.kind, fault.code)} at RIP "
        f"{hexadecimal(fault.rip)}"
        for fault in islice(events, max(0, len(events) - count), None)
    ]
    return "\n".join(lines) + "\n" if lines else "no event yet\n"


def _xp(asked: Asked, words: list[str]) -> str:
    address = _address(asked, words[0])
    length = min(_number(words[1]) if len(words) > 1 else 64, 4096)
    data = asked.thread.view().read(address, length)
    if data is None:
        raise CatchError(f"{hexadecimal(address)} lies beyond the guest's memory")
    return "".join(
        f"{address + n:X}H: {data[n : n + 16].hex(' ')}\n" for n in range(0, len(data), 16)
    )


def _catch(asked: Asked, words: list[str]) -> str:
    if words[0] == "exit":
        return asked.catches.catch_exit(words[1] if len(words) > 1 else "")
    if words[0] == "inject":
        asked.catches.injections = True
        return "injections are caught\n"
    if words[0] == "triple":
        return "triple faults always stop\n"
    condition = " ".join(words[2:]) if words[1:2] == ["if"] else ""
    if words[1:] and not condition:
        raise CatchError("write catch PF, or catch PF if write and user")
    return asked.catches.catch_fault(words[0], condition)


def _uncatch(asked: Asked, words: list[str]) -> str:
    asked.catches.clear()
    return "nothing is caught\n"


def _decision(name: str) -> Command:
    def command(asked: Asked, words: list[str]) -> str:
        return asked.catches.decide(name)

    return command


def _inject(asked: Asked, words: list[str]) -> str:
    code = _number(words[1]) if len(words) > 1 else None
    event = asked.catches.event(_vector(words[0]), code)
    return asked.catches.decide("inject", event)


def _help(asked: Asked, words: list[str]) -> str:
    return _HELP


Command = Callable[[Asked, list[str]], str]
_COMMANDS: dict[str, tuple[int, Command]] = {
    "help": (0, _help),
    "walk": (1, _walk),
    "idt": (0, _idt),
    "gdt": (0, _gdt),
    "tss": (0, _tss),
    "vmcs": (0, _vmcs),
    "decide": (1, _decide),
    "trace": (0, _trace),
    "xp": (1, _xp),
    "catch": (1, _catch),
    "uncatch": (0, _uncatch),
    "deliver": (0, _decision("deliver")),
    "skip": (0, _decision("skip")),
    "complete": (0, _decision("complete")),
    "inject": (1, _inject),
}


def run(asked: Asked, line: str) -> str:
    """Carry out a line of `monitor`; what to print. Never raises for what was written."""
    words = line.split()
    if not words:
        return _HELP
    needs, command = _COMMANDS.get(words[0].lower(), (0, None))
    if command is None:
        return f"no command {words[0][:40]!r}; monitor help lists them\n"
    if len(words) - 1 < needs:
        return f"{words[0]} needs more words; monitor help shows them\n"
    try:
        return command(asked, words[1:])
    except (TrapgateError, ValueError) as error:
        return f"{error}\n"
