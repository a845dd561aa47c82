"""KVM's trace points as text: `trace-cmd report`, ftrace's `trace` file, `perf script`.

The three differ in what precedes the event, and kernels differ in the fields of an event.
Neither is told by a version: a line is taken apart by the names of its fields, in
whatever order and number they come.
"""

import re
from collections.abc import Callable
from typing import Final

from trapgate.sdm.interruption import (
    TYPE_EXTERNAL_INTERRUPT,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_SOFTWARE_INTERRUPT,
)
from trapgate.sdm.vectors import ERROR_CODE_VECTORS
from trapgate.trace.imports.exits import VECTORS, Exit, describe
from trapgate.trace.imports.rows import Counters, Event, Sink

_EVENT = re.compile(r"(kvm_[a-z_]+):\s*")
# What stands before the event: process and thread, CPU, flags, time; perf's period or
# trace-cmd's difference of times. A CPU has brackets, or in the latency format the flags.
# Here and below digits are bounded: what is longer is none of these numbers.
_HEAD = re.compile(
    r"(?:^|[\s-])(?:(?P<process>\d{1,9})/)?(?P<thread>\d{1,9})(?:\s+\(\s*(?P<group>\d{1,9}|-+)\))?"
    r"(?:\s+\[(?P<cpu>\d{1,5})\](?:\s+[^\s:]{1,8})?"
    r"|\s+(?P<bare>\d{1,5})[^\s\d:][^\s:]{3,7})?"
    r"\s+(?P<whole>\d{1,19})(?:\.(?P<fraction>\d{1,9})|(?P<micro>us[+!#*@$]?))?\s*:"
    r"\s+(?:\(\+?\d+\)\s+)?(?:\d+\s+)?$"
)
_LOST = re.compile(
    r"^\s*CPU:\s*(?P<cpu>\d{1,5})\s+\[(?:LOST\s+)?(?P<count>\d{1,18})?\s*EVENTS(?: DROPPED)?\]"
)
_PERF_LOST = re.compile(
    r"\bPERF_RECORD_LOST(?:_SAMPLES)?\b.{0,80}?\blost:?\s+(?P<count>\d{1,18})\b"
)
_ENTRIES = re.compile(r"^# entries-in-buffer/entries-written:\s*(\d{1,18})/(\d{1,18})\b")
_FIELD = re.compile(
    r"\b([a-z][a-z0-9_]*):?\s+(0x[0-9a-f]{1,16}|\d[0-9a-f]{0,15}|[a-f][0-9a-f]{0,15})\b"
)
_REASON = re.compile(r"\breason:?\s+([ -~]{1,60}?)(?=\s+(?:rip|info|info1|ext_inf1|vcpu)\b|\s*$)")
_BARE = re.compile(r"\binfo\s+(?:0x)?([0-9a-f]{1,16})\s+(?:0x)?([0-9a-f]{1,16})\b")
_EXCEPTION = re.compile(
    r"^(?:#(?P<name>[A-Z]{2,3})|0x(?P<number>[0-9a-f]{1,2})\b)(?:\s+\((?P<code>[^)]*)\))?"
)
# So say tools that are older than the kernel.
_RAW_EXCEPTION = re.compile(r"\bexception=(\d{1,3}) has_error=([01]) error_code=(\d{1,10})\b")
_INTERRUPT = re.compile(
    r"^(?:irq (?P<decimal>\d{1,3})|(?:IRQ|(?P<soft>Soft/INTn)) 0x(?P<hex>[0-9a-f]{1,2}))\b"
)

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
    match = _EVENT.search(line)
    if match is None or match[1] not in EVENTS:
        return None
    subsystem = line.endswith("kvm:", 0, match.start())
    head = _HEAD.search(line, 0, match.start() - 4 * subsystem)
    if head is None:
        return None
    if subsystem:
        return "perf-script"
    return "ftrace" if head["group"] or head["micro"] else "trace-cmd"


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
        self._pending: dict[int, Exit] = {}
        # Kernels that print the RIP at entries keep the IDT-vectoring information where
        # older ones had the exit's own interruption information.
        self._vectoring = False
        self._vcpus: dict[int, int] = {}
        self._vms: dict[int, int] = {}
        self._cpus: dict[int, int] = {}
        self._homeless: dict[int, list[Event]] = {}
        self._handlers: dict[str, Callable[[int, int, int, str], bool]] = {
            event: getattr(self, f"_{event}") for event in EVENTS
        }

    def line(self, line: str) -> bool:
        """Take a line; False if it names an event but its fields cannot be read."""
        match = _EVENT.search(line)
        if match is None:
            self._other(line)
            return True
        handle = self._handlers.get(match[1])
        if handle is None:
            self._counters.foreign += 1
            return True
        head = _HEAD.search(line, 0, match.start() - 4 * line.endswith("kvm:", 0, match.start()))
        if head is None:
            return False
        process, number, group, cpu, bare, whole, fraction, micro = head.groups()
        thread = int(number)
        if cpu or bare:
            self._cpus[thread] = int(cpu or bare)
        process = process or group
        vm = 0
        if process is not None and process.isdecimal():
            vm = self._vms.setdefault(int(process), len(self._vms))
        time = int(whole) * 1000 if micro else self._time(whole, fraction)
        if time >> 64:
            return False
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
        waiting = self._pending.pop(thread, None)
        if waiting is not None:
            self._counters.unpaired += 1
            self._settle_exit(waiting)

    def _settle_exit(self, waiting: Exit) -> None:
        event = waiting.settle(vectoring=self._vectoring)
        self._counters.vectorless += event.vector is None and bool(event.code_missing)
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
                if decimal and not (text.isdecimal() and len(text) < 10):
                    continue
                found[name] = int(text) if decimal else int(text, 16)
        if "vcpu" in found:
            self._vcpus[thread] = found["vcpu"]
        return found

    def _kvm_exit(self, thread: int, vm: int, time: int, body: str) -> bool:
        fields = self._fields(thread, body)
        reason = _REASON.search(body)
        bare = _BARE.search(body)
        if reason is None or "rip" not in fields or not (bare or "info1" in fields):
            return False
        self._release(thread)
        event = self._new(thread, vm, time, "EXIT", "KVM_EXIT")
        event.exit_reason = reason[1]
        event.rip = fields["rip"]
        event.level = 1
        if bare is None:
            describe(event, fields)
        info = None if bare is None else (int(bare[1], 16), int(bare[2], 16))
        self._pending[thread] = Exit(event, info)
        return True

    def _kvm_entry(self, thread: int, vm: int, time: int, body: str) -> bool:
        fields = self._fields(thread, body)
        if "vcpu" not in fields:
            return False
        self._vectoring |= "rip" in fields
        waiting = self._pending.pop(thread, None)
        if waiting is not None:
            if time >= waiting.event.time:
                waiting.event.latency = time - waiting.event.time
            else:
                self._counters.unpaired += 1
            self._settle_exit(waiting)
        return True

    def _kvm_page_fault(self, thread: int, vm: int, time: int, body: str) -> bool:
        fields = self._fields(thread, body)
        if "address" not in fields or "error_code" not in fields:
            return False
        if thread in self._pending:
            self._pending[thread].fault = fields["address"], fields["error_code"]
        else:
            self._counters.foreign += 1
        return True

    def _kvm_inj_exception(self, thread: int, vm: int, time: int, body: str) -> bool:
        code: int | None = None
        if raw := _RAW_EXCEPTION.search(body):
            vector = int(raw[1])
            code = int(raw[3]) if int(raw[2]) else None
        elif match := _EXCEPTION.match(body):
            named = VECTORS.get(match["name"]) if match["name"] else int(match["number"], 16)
            if named is None:
                return False
            vector = named
            try:
                code = None if match["code"] is None else int(match["code"], 16)
            except ValueError:
                return False
        else:
            return False
        event = self._new(thread, vm, time, "DELIVER", "KVM_INJECTION")
        event.vector = vector & 0xFF
        event.type = TYPE_HARDWARE_EXCEPTION
        event.injected = True
        # Kernels before 6.0 print a code of 0 for exceptions that have none.
        if code is not None and ERROR_CODE_VECTORS >> event.vector & 1:
            event.error_code = code & 0xFFFFFFFF
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
        waiting = self._pending.get(thread)
        if waiting is None:
            # Recorded without kvm_exit: the event itself is all there is.
            return self._nested(thread, vm, time, body) is not None
        fields = self._fields(thread, body)
        waiting.event.level = 2
        if waiting.bare is not None and "info1" in fields:
            # The same exit, with the names that kvm_exit lacks.
            describe(waiting.event, fields)
            waiting.bare = None
        return True

    def _kvm_nested_vmexit_inject(self, thread: int, vm: int, time: int, body: str) -> bool:
        waiting = self._pending.get(thread) or self._nested(thread, vm, time, body)
        if waiting is None:
            return False
        waiting.event.level = 2
        waiting.event.reflected = True
        return True

    def _nested(self, thread: int, vm: int, time: int, body: str) -> Exit | None:
        fields = self._fields(thread, body)
        reason = _REASON.search(body)
        if reason is None or not ("ext_inf1" in fields or "info1" in fields):
            return None
        event = self._new(thread, vm, time, "EXIT", "KVM_NESTED_EXIT")
        event.exit_reason = reason[1]
        event.rip = fields.get("rip")
        event.level = 2
        describe(event, fields)
        self._pending[thread] = Exit(event)
        return self._pending[thread]
