"""KVM's trace points as text: `trace-cmd report`, ftrace's `trace` file, `perf script`.

The three differ in what precedes the event, and kernels differ in the fields of an event.
Neither is told by a version: a line is taken apart by the names of its fields, in
whatever order and number they come.
"""

import re
from collections.abc import Callable
from typing import Final

from trapgate.sdm.interruption import (
    INFO_DELIVER_ERROR_CODE,
    INFO_TYPE_MASK,
    INFO_TYPE_SHIFT,
    INFO_VALID,
    INFO_VECTOR_MASK,
    TYPE_EXTERNAL_INTERRUPT,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_NMI,
    TYPE_SOFTWARE_INTERRUPT,
)
from trapgate.sdm.vectors import ERROR_CODE_VECTORS, PF, Vector
from trapgate.trace.imports.rows import Counters, Event, Sink

_PREFIX = re.compile(
    r"\s\[(?P<cpu>\d+)\]\s+(?:(?P<flags>[^\s:]{1,8})\s+)?"
    r"(?P<seconds>\d+)(?:\.(?P<fraction>\d+))?:\s+(?:\d+\s+)?"
    r"(?:kvm:)?(?P<event>kvm_[a-z_]+):\s*"
)
_WHO = re.compile(r"(?:(?P<process>\d+)/)?(?P<thread>\d+)(?:\s+\(\s*(?P<group>\d+|-+)\))?\s*$")
_LOST = re.compile(
    r"^\s*CPU:\s*(?P<cpu>\d+)\s+\[(?:LOST\s+)?(?P<count>\d+)?\s*EVENTS(?: DROPPED)?\]"
)
_PERF_LOST = re.compile(r"\bPERF_RECORD_LOST(?:_SAMPLES)?\b.*?\blost:?\s+(?P<count>\d+)")
_ENTRIES = re.compile(r"^# entries-in-buffer/entries-written:\s*(\d+)/(\d+)")
_FIELD = re.compile(r"\b([a-z][a-z0-9_]*):?\s+(0x[0-9a-f]+|\d[0-9a-f]*|[a-f][0-9a-f]*)\b")
_REASON = re.compile(r"\breason:?\s+(.+?)(?=\s+(?:rip|info|info1|ext_inf1|vcpu)\b|\s*$)")
_OLD_INFO = re.compile(r"\binfo\s+(?:0x)?([0-9a-f]+)\s+(?:0x)?([0-9a-f]+)\b")
_EXCEPTION = re.compile(
    r"^(?:#(?P<name>[A-Z]{2,3})|0x(?P<number>[0-9a-f]+))(?:\s+\((?P<code>[^)]*)\))?"
)
_INTERRUPT = re.compile(
    r"^(?:irq (?P<decimal>\d+)|(?:IRQ|(?P<soft>Soft/INTn)) 0x(?P<hex>[0-9a-f]+))\b"
)
_SVM_EXCEPTION = re.compile(r"^([A-Z]{2}) excp$")

_NAMES: Final = {vector.name: int(vector) for vector in Vector} | {"XF": int(Vector.XM)}
_PATIENCE: Final = 256
"""Events of one thread that wait for its vCPU's number."""

_DECIMAL: Final = frozenset({"vcpu"})

EVENTS: Final = frozenset(
    {
        "kvm_exit",
        "kvm_entry",
        "kvm_page_fault",
        "kvm_inj_exception",
        "kvm_inj_virq",
        "kvm_nested_vmexit",
        "kvm_nested_vmexit_inject",
    }
)
"""The trace points that are read; all others are foreign."""


def recognise(line: str) -> str | None:
    """The name of the format of which `line` is typical, or None."""
    if line.startswith("# tracer:"):
        return "ftrace"
    match = _PREFIX.search(line)
    if match is None or match["event"] not in EVENTS:
        return None
    if f"kvm:{match['event']}:" in match[0]:
        return "perf-script"
    who = _WHO.search(line, 0, match.start())
    return "ftrace" if who and who["group"] else "trace-cmd"


class KvmReader:
    """Puts KVM's events together: an exit with what follows it until the vCPU's next entry.

    A vCPU is a thread of the host, so events of one thread belong together even where an
    old kernel does not say which vCPU it is.
    """

    def __init__(self, counters: Counters, sink: Sink) -> None:
        self.unit = "ns"
        self._counters = counters
        self._sink = sink
        self._sequence = 0
        self._pending: dict[int, Event] = {}
        self._vcpus: dict[int, int] = {}
        self._vms: dict[int, int] = {}
        self._cpus: dict[int, int] = {}
        self._homeless: dict[int, list[Event]] = {}
        self._handlers: dict[str, Callable[[int, int, int, str], bool]] = {
            event: getattr(self, f"_{event}") for event in EVENTS
        }

    def line(self, line: str) -> bool:
        """Take a line; False if it names an event but its fields cannot be read."""
        match = _PREFIX.search(line) if "kvm_" in line else None
        if match is None:
            self._other(line)
            return True
        cpu, _, seconds, fraction, event = match.groups()
        handle = self._handlers.get(event)
        if handle is None:
            self._counters.foreign += 1
            return True
        who = _WHO.search(line, 0, match.start())
        if who is None:
            return False
        process, number, group = who.groups()
        thread = int(number)
        self._cpus[thread] = int(cpu)
        process = process or group
        vm = 0
        if process is not None and process.isdecimal():
            vm = self._vms.setdefault(int(process), len(self._vms))
        time = self._time(seconds, fraction)
        return handle(thread, vm, time, line[match.end() :])

    def end(self) -> None:
        """No more lines: exits that still wait have no latency."""
        for thread in list(self._pending):
            self._release(thread)
        for thread in list(self._homeless):
            self._settle(thread)

    def _time(self, seconds: str, fraction: str | None) -> int:
        if fraction is None:
            self.unit = "ticks"
            return int(seconds)
        return int(seconds) * 1_000_000_000 + int(fraction.ljust(9, "0")[:9])

    def _other(self, line: str) -> None:
        if lost := _LOST.match(line):
            self._gap(int(lost["count"] or 0), int(lost["cpu"]))
        elif lost := _PERF_LOST.search(line):
            self._gap(int(lost["count"]), None)
        elif entries := _ENTRIES.match(line):
            kept, written = int(entries[1]), int(entries[2])
            if written > kept:
                self._gap(written - kept, None)
        else:
            self._counters.foreign += 1

    def _gap(self, count: int, cpu: int | None) -> None:
        # What was lost may have been the entry of an exit that waits.
        self._counters.lost += count
        self._counters.gaps += 1
        for thread in list(self._pending):
            if cpu is None or self._cpus.get(thread) == cpu:
                self._release(thread)

    def _new(self, thread: int, vm: int, time: int, disposition: str, reason: str) -> Event:
        self._sequence += 1
        return Event(
            self._sequence - 1,
            time,
            disposition,
            reason,
            vm=vm,
            thread=thread,
            vcpu=self._vcpus.get(thread),
        )

    def _release(self, thread: int) -> None:
        event = self._pending.pop(thread, None)
        if event is not None:
            self._counters.unpaired += 1
            self._emit(event)

    def _emit(self, event: Event) -> None:
        thread = event.thread
        assert thread is not None
        if thread in self._vcpus:
            self._settle(thread)
            event.vcpu = self._vcpus[thread]
            self._sink(event)
            return
        # Older kernels name the vCPU at its entries only, and the first may be far.
        waiting = self._homeless.setdefault(thread, [])
        waiting.append(event)
        if len(waiting) >= _PATIENCE:
            self._settle(thread)

    def _settle(self, thread: int) -> None:
        for event in self._homeless.pop(thread, ()):
            event.vcpu = self._vcpus.get(thread)
            self._sink(event)

    def _fields(self, thread: int, body: str) -> dict[str, int]:
        found = {}
        for name, text in _FIELD.findall(body):
            if name not in found:
                decimal = name in _DECIMAL
                if decimal and not text.isdecimal():
                    continue
                found[name] = int(text) if decimal else int(text, 16)
        if "vcpu" in found:
            self._vcpus[thread] = found["vcpu"]
        return found

    def _kvm_exit(self, thread: int, vm: int, time: int, body: str) -> bool:
        fields = self._fields(thread, body)
        reason = _REASON.search(body)
        old = _OLD_INFO.search(body)
        if reason is None or "rip" not in fields or not (old or "info1" in fields):
            return False
        self._release(thread)
        event = self._new(thread, vm, time, "EXIT", "KVM_EXIT")
        event.exit_reason = reason[1]
        event.rip = fields["rip"]
        event.level = 1
        if old is not None:
            info = int(old[1], 16), int(old[2], 16)
            _decode_old(event, info)
        else:
            _decode(event, fields, "info1", "info2", "intr_info", "error_code")
        self._pending[thread] = event
        return True

    def _kvm_entry(self, thread: int, vm: int, time: int, body: str) -> bool:
        fields = self._fields(thread, body)
        if "vcpu" not in fields:
            return False
        event = self._pending.pop(thread, None)
        if event is not None:
            if time >= event.time:
                event.latency = time - event.time
            else:
                self._counters.unpaired += 1
            self._emit(event)
        return True

    def _kvm_page_fault(self, thread: int, vm: int, time: int, body: str) -> bool:
        fields = self._fields(thread, body)
        if "address" not in fields or "error_code" not in fields:
            return False
        event = self._pending.get(thread)
        if event is None:
            return True
        if event.vector == PF and event.type == TYPE_HARDWARE_EXCEPTION:
            if event.code_missing:
                # Bits from 32 up are KVM's own notes.
                event.error_code = fields["error_code"] & 0xFFFFFFFF
                event.code_missing = None
            event.linear_address = fields["address"]
        elif event.vector is None:
            event.guest_physical = fields["address"]
        return True

    def _kvm_inj_exception(self, thread: int, vm: int, time: int, body: str) -> bool:
        match = _EXCEPTION.match(body)
        if match is None or (match["name"] and match["name"] not in _NAMES):
            return False
        event = self._new(thread, vm, time, "DELIVER", "KVM_INJECTION")
        event.vector = _NAMES[match["name"]] if match["name"] else int(match["number"], 16) & 0xFF
        event.type = TYPE_HARDWARE_EXCEPTION
        event.injected = True
        # Kernels before 6.0 print a code of 0 for exceptions that have none.
        if ERROR_CODE_VECTORS >> event.vector & 1 and match["code"] is not None:
            try:
                event.error_code = int(match["code"], 16)
            except ValueError:
                return False
        self._emit(event)
        return True

    def _kvm_inj_virq(self, thread: int, vm: int, time: int, body: str) -> bool:
        match = _INTERRUPT.match(body)
        if match is None:
            return False
        event = self._new(thread, vm, time, "DELIVER", "KVM_INJECTION")
        event.vector = (int(match["decimal"]) if match["decimal"] else int(match["hex"], 16)) & 0xFF
        event.type = TYPE_SOFTWARE_INTERRUPT if match["soft"] else TYPE_EXTERNAL_INTERRUPT
        event.injected = True
        self._emit(event)
        return True

    def _kvm_nested_vmexit(self, thread: int, vm: int, time: int, body: str) -> bool:
        event = self._pending.get(thread)
        if event is not None:
            self._fields(thread, body)
            event.level = 2
            return True
        # Recorded without kvm_exit: the event itself is all there is.
        return self._nested(thread, vm, time, body) is not None

    def _kvm_nested_vmexit_inject(self, thread: int, vm: int, time: int, body: str) -> bool:
        event = self._pending.get(thread)
        if event is None:
            event = self._nested(thread, vm, time, body)
        if event is None:
            return False
        event.level = 2
        event.reflected = True
        return True

    def _nested(self, thread: int, vm: int, time: int, body: str) -> Event | None:
        fields = self._fields(thread, body)
        reason = _REASON.search(body)
        old = "ext_inf1" in fields
        if reason is None or not (old or "info1" in fields):
            return None
        event = self._new(thread, vm, time, "EXIT", "KVM_NESTED_EXIT")
        event.exit_reason = reason[1]
        event.rip = fields.get("rip")
        event.level = 2
        if old:
            _decode(event, fields, "ext_inf1", "ext_inf2", "ext_int", "ext_int_err")
        else:
            _decode(event, fields, "info1", "info2", "intr_info", "error_code")
        self._pending[thread] = event
        return event


def _decode_old(event: Event, info: tuple[int, int]) -> None:
    """An exit with two bare numbers: no error code on VMX, for it was not recorded."""
    if event.exit_reason in {"EXCEPTION_NMI", "EXTERNAL_INTERRUPT"}:
        _interruption(event, info[1], None)
        if event.vector == PF:
            event.linear_address = info[0]
    else:
        _svm(event, info)


def _decode(event: Event, fields: dict[str, int], *names: str) -> None:
    """An exit with named fields; `names` are qualification, second, interruption, code."""
    first, second, interruption, code = (fields.get(name, 0) for name in names)
    if event.exit_reason is None or event.exit_reason[0].islower() or "excp" in event.exit_reason:
        _svm(event, (first, second))
        # On AMD the interruption field is that of the event that was being delivered.
        event.depth = int(interruption & INFO_VALID != 0)
        return
    if event.exit_reason.split()[0] in {"EXCEPTION_NMI", "EXTERNAL_INTERRUPT"}:
        _interruption(event, interruption, code if names[3] in fields else None)
        if event.vector == PF and event.type == TYPE_HARDWARE_EXCEPTION:
            event.linear_address = first
    if names[1] == "info2":
        # The IDT-vectoring information: the exit met the delivery of another event.
        event.depth = int(second & INFO_VALID != 0 and second >> 32 == 0)


def _interruption(event: Event, information: int, code: int | None) -> None:
    if not information & INFO_VALID:
        return
    event.vector = information & INFO_VECTOR_MASK
    event.type = information >> INFO_TYPE_SHIFT & INFO_TYPE_MASK
    if information & INFO_DELIVER_ERROR_CODE:
        event.error_code = None if code is None else code & 0xFFFFFFFF
        event.code_missing = True if code is None else None


def _svm(event: Event, info: tuple[int, int]) -> None:
    """An exit of AMD's: the reason names the exception, EXITINFO1 is its error code."""
    reason = event.exit_reason or ""
    if match := _SVM_EXCEPTION.match(reason):
        event.vector = _NAMES.get(match[1])
        event.type = TYPE_HARDWARE_EXCEPTION
        if event.vector is not None and ERROR_CODE_VECTORS >> event.vector & 1:
            event.error_code = info[0] & 0xFFFFFFFF
        if event.vector == PF:
            event.linear_address = info[1]
    elif reason == "nmi":
        event.vector, event.type = int(Vector.NMI), TYPE_NMI
    elif reason == "npf":
        event.guest_physical = info[1]
