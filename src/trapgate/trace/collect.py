"""Ready scripts that record, on a host, what a question needs.

A busy host has a million exits a second: what it can be asked whole is a histogram, which
bpftrace keeps in the kernel, and which `trapgate trace import` reads as weighted rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trapgate.trace.schema import TraceError

TOOLS: Final = ("trace-cmd", "perf", "bpftrace")


@dataclass(frozen=True)
class Question:
    """What is asked, in words, and the trace points that answer it."""

    words: str
    points: tuple[str, ...]


_EXITS = ("kvm_exit", "kvm_entry")
_ACCESSES = ("kvm_msr", "kvm_cr", "kvm_pi_irte_update", "kvm_ple_window_update")

QUESTIONS: Final = {
    "filter": Question(
        "what would another page-fault filter or exception bitmap save?",
        (*_EXITS, "kvm_page_fault", "kvm_inj_exception"),
    ),
    "reflect": Question(
        "which exits does L0 give to L1, and which does it handle itself?",
        (*_EXITS, "kvm_nested_vmexit", "kvm_nested_vmexit_inject"),
    ),
    "inject": Question(
        "what is injected, and what interrupted its delivery?",
        (*_EXITS, "kvm_inj_exception", "kvm_inj_virq"),
    ),
    "controls": Question(
        "which control causes which exits, and what would turning it off save?",
        (*_EXITS, *_ACCESSES, "kvm_nested_vmexit", "kvm_nested_vmexit_inject"),
    ),
    "everything": Question(
        "all that an import reads",
        (
            *_EXITS,
            *("kvm_page_fault", "kvm_inj_exception", "kvm_inj_virq"),
            *("kvm_nested_vmexit", "kvm_nested_vmexit_inject"),
            *_ACCESSES,
        ),
    ),
}

_BPFTRACE = """\
#!/usr/bin/env bpftrace
// {words}
// Counts exits by (vendor, reason, interruption information, error code, level, reflected,
// qualification, MSR), and injections by (type, vector, error code); for kernels from 6.0.
// If bpftrace warns of a full map, set BPFTRACE_MAP_KEYS_MAX=100000 in its environment.
// Run it as root for {seconds} s:  bpftrace {name} > exits.txt
// then:  trapgate trace import exits.txt -o exits.parquet

tracepoint:kvm:kvm_exit{process}
{{
	@isa[tid] = (uint64)args->isa;
	@reason[tid] = (uint64)args->exit_reason;
	@information[tid] = (uint64)args->intr_info;
	@code[tid] = (uint64)args->error_code;
	// Of the qualification what tells accesses apart: ports, registers, rights of pages.
	@access[tid] = args->exit_reason == 30 ? (uint64)args->info1 & 0xffff000f :
		args->exit_reason == 28 ? (uint64)args->info1 & 0x3f :
		args->exit_reason == 48 ? (uint64)args->info1 & 0x1ff : 0;
	if (args->isa == 2) {{
		// AMD: an exception's code is EXITINFO1.
		@code[tid] = args->exit_reason >= 0x40 && args->exit_reason < 0x60 ?
			(uint64)args->info1 : 0;
		@access[tid] = args->exit_reason == 0x7b ? (uint64)args->info1 & 0xffff0071 :
			args->exit_reason == 0x7c ? (uint64)args->info1 & 1 :
			args->exit_reason == 0x400 ? (uint64)args->info1 & 0x30000001f : 0;
	}}
	@msr[tid] = (uint64)0xffffffffffffffff;
	@level[tid] = 1;
	@reflected[tid] = 0;
}}

tracepoint:kvm:kvm_msr /@isa[tid]/
{{
	@msr[tid] = (uint64)args->ecx;
}}

tracepoint:kvm:kvm_inj_exception{process}
{{
	@injections[3, (uint64)args->exception, args->has_error ? (uint64)args->error_code : 0] =
		count();
}}

tracepoint:kvm:kvm_inj_virq{process}
{{
	@injections[0, (uint64)args->vector, 0] = count();
}}

tracepoint:kvm:kvm_nested_vmexit /@isa[tid]/
{{
	@level[tid] = 2;
}}

tracepoint:kvm:kvm_nested_vmexit_inject /@isa[tid]/
{{
	@level[tid] = 2;
	@reflected[tid] = 1;
}}

tracepoint:kvm:kvm_entry /@isa[tid]/
{{
	@exits[@isa[tid], @reason[tid], @information[tid], @code[tid], @level[tid], @reflected[tid],
		@access[tid], @msr[tid]] = count();
	delete(@isa[tid]);
}}

interval:s:{seconds}
{{
	exit();
}}

END
{{
	clear(@isa);
	clear(@reason);
	clear(@information);
	clear(@code);
	clear(@access);
	clear(@msr);
	clear(@level);
	clear(@reflected);
}}
"""


def script(question: str, tool: str, *, seconds: int = 10, process: int | None = None) -> str:
    """A script that records with `tool` what `question` needs, for `seconds`; `process` is
    the process of one virtual machine (all, if None).

    Raises: TraceError for a question or a tool that there is not.
    """
    if question not in QUESTIONS:
        known = ", ".join(QUESTIONS)
        raise TraceError("collect", f"{question!r} is not a question", f"give one of {known}")
    if tool not in TOOLS:
        raise TraceError("collect", f"{tool!r} is not a tool", f"give one of {', '.join(TOOLS)}")
    asked = QUESTIONS[question]
    if tool == "bpftrace":
        return _BPFTRACE.format(
            words=asked.words,
            name=f"{question}.bt",
            seconds=seconds,
            process="" if process is None else f" /pid == {process}/",
        )
    head = f"#!/bin/sh\n# {asked.words}\n# Run it as root.\nset -e\n"
    if tool == "perf":
        events = " ".join(f"-e kvm:{point}" for point in asked.points)
        whose = "-a" if process is None else f"-p {process}"
        return (
            f"{head}perf record -m 4M -o perf.data {whose} {events} -- sleep {seconds}\n"
            "trapgate trace import perf.data -o host.parquet\n"
        )
    events = " ".join(f"-e kvm:{point}" for point in asked.points)
    whose = "" if process is None else f"-P {process} -c "
    return (
        f"{head}trace-cmd record -b 20000 -o trace.dat {whose}{events} sleep {seconds}\n"
        "trapgate trace import trace.dat -o host.parquet\n"
    )
