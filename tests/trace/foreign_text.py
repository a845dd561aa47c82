"""Foreign traces made from the format strings of their writers; nothing here was recorded.

A `Host` says what happened (exits, entries, injections) and each style says how that
looks as text: what precedes an event, and which fields the event has.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

NAMES = {0: "DE", 1: "DB", 3: "BP", 6: "UD", 7: "NM", 8: "DF", 13: "GP", 14: "PF", 17: "AC"}
WITH_CODE = {8, 10, 11, 12, 13, 14, 17}

PREFIXES = {
    "trace-cmd": (
        " qemu-system-x86-{thread:<5} [{cpu:03}] {seconds:>5}.{micro:06}: {event:<20} {body}"
    ),
    "trace-cmd-flags": (
        "   CPU {vcpu}/KVM-{thread} [{cpu:03}] d..1. {seconds:>5}.{micro:06}: {event:<20} {body}"
    ),
    "trace-cmd-latency": (
        "CPU {vcpu}/KV-{thread:<5}   {cpu}d..2.  {seconds:>5}.{micro:06}: {event:<20} {body}"
    ),
    "trace-cmd-difference": (
        " a b-c 7 [x]-{thread:<5} [{cpu:03}] {seconds:>5}.{micro:06}: (+1500)  {event:<20} {body}"
    ),
    "ftrace": (
        "           <...>-{thread:<7} [{cpu:03}] d..2. {seconds:>5}.{micro:06}: {event} {body}"
    ),
    "ftrace-tgid": (
        " CPU {vcpu}/KVM-{thread:<7} (   {process}) [{cpu:03}] .... {seconds:>5}.{micro:06}: "
        "{event} {body}"
    ),
    "ftrace-latency": "qemu-sys-{thread:<7} {cpu}d.h2. {microseconds}us+: {event} {body}",
    "perf-script": (
        "       CPU {vcpu}/KVM {process}/{thread} [{cpu:03}] {seconds:>5}.{micro:06}: "
        "      kvm:{event} {body}"
    ),
    "perf-script-thread": (
        "       CPU {vcpu}/KVM {thread} [{cpu:03}] {seconds:>5}.{micro:06}{nano:03}: "
        "  kvm:{event} {body}"
    ),
    "perf-script-fields": "vm 12 34 {thread}   {seconds}.{micro:06}:    1   kvm:{event} {body}",
}


@dataclass
class Host:
    """Writes lines in one style; `new` fields of newer kernels, or those of older ones."""

    style: str = "trace-cmd"
    new: bool = True
    svm: bool = False
    time: int = 1_000_000_000
    process: int = 4000
    lines: list[str] = field(default_factory=list)

    def put(self, event: str, body: str, vcpu: int = 0) -> None:
        self.lines.append(
            PREFIXES[self.style].format(
                thread=self.process + 1 + vcpu,
                process=self.process,
                vcpu=vcpu,
                cpu=vcpu + 2,
                seconds=self.time // 1_000_000_000,
                micro=self.time // 1000 % 1_000_000,
                microseconds=self.time // 1000,
                nano=self.time % 1000,
                event=f"{event}:",
                body=body,
            )
        )

    def exit(
        self, reason: str, rip: int, info: tuple[int, int], interruption: int = 0, code: int = 0,
        vcpu: int = 0, event: str = "kvm_exit",
    ) -> None:  # fmt: skip
        if self.new:
            body = (
                f"vcpu {vcpu} reason {reason} rip 0x{rip:x} info1 0x{info[0]:016x} "
                f"info2 0x{info[1]:016x} intr_info 0x{interruption:08x} error_code 0x{code:08x}"
            )
        else:
            second = info[1] if self.svm else interruption
            body = f"reason {reason} rip 0x{rip:x} info {info[0]:x} {second:x}"
        self.put(event, body, vcpu)

    def exception(self, vector: int, code: int, rip: int, address: int = 0, vcpu: int = 0) -> None:
        if self.svm:
            self.exit(f"{NAMES[vector]} excp", rip, (code, address), vcpu=vcpu)
        else:
            with_code = 0x800 if vector in WITH_CODE else 0
            self.exit(
                "EXCEPTION_NMI", rip, (address, 0), 0x80000300 | with_code | vector, code, vcpu
            )

    def page_fault(self, address: int, code: int, rip: int, vcpu: int = 0) -> None:
        if self.new:
            body = f"vcpu {vcpu} rip 0x{rip:x} address 0x{address:016x} error_code 0x{code:x}"
        else:
            body = f"address {address:x} error_code {code:x}"
        self.put("kvm_page_fault", body, vcpu)

    def inject(self, vector: int, code: int = 0, vcpu: int = 0, *, again: bool = False) -> None:
        if self.new:
            shown = f" (0x{code:x})" if vector in WITH_CODE else ""
        else:
            shown = f" (0x{code if vector in WITH_CODE else 0:x})"
        self.put(
            "kvm_inj_exception", f"#{NAMES[vector]}{shown}{' [reinjected]' if again else ''}", vcpu
        )

    def interrupt(self, vector: int, vcpu: int = 0) -> None:
        self.put("kvm_inj_virq", f"IRQ 0x{vector:x}" if self.new else f"irq {vector}", vcpu)

    def entry(self, rip: int = 0x1000, vcpu: int = 0) -> None:
        self.put("kvm_entry", f"vcpu {vcpu}, rip 0x{rip:x}" if self.new else f"vcpu {vcpu}", vcpu)

    def wait(self, nanoseconds: int) -> None:
        self.time += nanoseconds

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)


def workload(host: Host, rounds: int, vcpus: int = 2) -> Iterator[str]:
    """Lines of a plausible workload: page faults, other faults, EPT violations, HLT."""
    for number in range(rounds):
        vcpu = number % vcpus
        rip = 0xFFFFFFFF81000000 + number % 97 * 16
        kind = number % 5
        if kind in {0, 1}:
            code = (2, 6, 7, 4, 0x14)[number // 5 % 5]
            host.exception(14, code, rip, 0x7F0000000000 + number * 4096, vcpu)
            if not host.new:
                host.page_fault(0x7F0000000000 + number * 4096, code, rip, vcpu)
        elif kind == 2:
            host.exception(13, 0, rip, vcpu=vcpu)
        elif kind == 3:
            if host.svm:
                host.exit("npf", rip, (0x100000007, number * 4096), vcpu=vcpu)
            else:
                host.exit("EPT_VIOLATION", rip, (0x181, 0), vcpu=vcpu)
            host.page_fault(number * 4096, 7, rip, vcpu)
        else:
            host.exit("hlt" if host.svm else "HLT", rip, (0, 0), vcpu=vcpu)
        host.wait(1000 + number % 13 * 1000)
        if kind in {0, 2}:
            host.inject(14 if kind == 0 else 13, 2 if kind == 0 else 0, vcpu)
        host.entry(rip, vcpu)
        host.wait(4000)
        yield from (f"{line}\n" for line in host.lines)
        host.lines.clear()


QEMU_DUMP = """\
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00000000
ESI=00000000 EDI=00000000 EBP=00000000 ESP=00001000
EIP=00100010 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
CR0=80000011 CR2={cr2:08x} CR3=00003000 CR4=00000000
DR0=00000000 DR1=00000000 DR2=00000000 DR3=00000000
"""


def qemu(number: int, vector: int, code: int, *, soft: int = 0, cpl: int = 0, cr2: int = 0) -> str:
    """An event as QEMU's `-d int` has it, with the dump that follows."""
    last = f"CR2={cr2:08x}" if vector == 14 else "env->regs[R_EAX]=00000000"
    return (
        f"{number:6d}: v={vector:02x} e={code:04x} i={soft} cpl={cpl} IP=0008:00100010 "
        f"pc=00100010 SP=0010:00001000 {last}\n" + QEMU_DUMP.format(cr2=cr2)
    )


def bochs(time: int, message: str, *, level: str = "d", device: str = "CPU0  ") -> str:
    """A line of Bochs' log."""
    return f"{time:011d}{level}[{device}] {message}\n"
