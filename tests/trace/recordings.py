"""Writers of binary recordings, after trace-cmd.dat.v6(5), .v7(5) and perf.data's description.

Events are given as (time, CPU, thread, name, fields); nothing here is recorded.
"""

import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

Given = tuple[int, int, int, str, dict[str, int]]

EVENTS: dict[str, tuple[int, list[tuple[str, str, int]]]] = {
    "kvm_exit": (
        1001,
        [
            ("unsigned int", "exit_reason", 4),
            ("unsigned long", "guest_rip", 8),
            ("u32", "isa", 4),
            ("u64", "info1", 8),
            ("u64", "info2", 8),
            ("u32", "intr_info", 4),
            ("u32", "error_code", 4),
            ("unsigned int", "vcpu_id", 4),
        ],
    ),
    "kvm_entry": (
        1002,
        [
            ("unsigned int", "vcpu_id", 4),
            ("unsigned long", "rip", 8),
            ("u32", "intr_info", 4),
            ("u32", "error_code", 4),
        ],
    ),
    "kvm_page_fault": (
        1003,
        [("unsigned int", "vcpu_id", 4), ("u64", "fault_address", 8), ("u64", "error_code", 8)],
    ),
    "kvm_inj_exception": (
        1004,
        [
            ("u8", "exception", 1),
            ("u8", "has_error", 1),
            ("u32", "error_code", 4),
            ("bool", "reinjected", 1),
        ],
    ),
    "kvm_inj_virq": (
        1005,
        [("unsigned int", "vector", 4), ("bool", "soft", 1), ("bool", "reinjected", 1)],
    ),
    "kvm_fpu": (1006, [("u32", "load", 4)]),
    "kvm_msr": (
        1007,
        [("unsigned", "write", 4), ("u32", "ecx", 4), ("u64", "data", 8), ("u8", "exception", 1)],
    ),
    "kvm_cr": (
        1008,
        [("unsigned int", "rw", 4), ("unsigned int", "cr", 4), ("unsigned long", "val", 8)],
    ),
    "kvm_ple_window_update": (
        1010,
        [("unsigned int", "vcpu_id", 4), ("unsigned int", "new", 4), ("unsigned int", "old", 4)],
    ),
    "kvm_pi_irte_update": (
        1009,
        [
            ("unsigned int", "host_irq", 4),
            ("int", "vcpu_id", 4),
            ("unsigned int", "gsi", 4),
            ("unsigned int", "gvec", 4),
            ("bool", "set", 1),
        ],
    ),
}

PRINTED = {
    "kvm_exit": (
        '"vcpu %u reason %s rip 0x%lx info1 0x%016llx info2 0x%016llx intr_info 0x%08x '
        'error_code 0x%08x", REC->vcpu_id, (REC->isa == 1) ? __print_symbolic(REC->exit_reason, '
        '{ 0, "EXCEPTION_NMI" }, { 12, "HLT" }, { 48, "EPT_VIOLATION" }, { 99, "NEW_ONE" }) : '
        '__print_symbolic(REC->exit_reason, { 0x040 + 14, "PF excp" }, { 0x400, "npf" }), '
        "REC->guest_rip, REC->info1, REC->info2, REC->intr_info, REC->error_code"
    ),
    "kvm_entry": (
        '"vcpu %u, rip 0x%lx intr_info 0x%08x error_code 0x%08x", REC->vcpu_id, REC->rip, '
        "REC->intr_info, REC->error_code"
    ),
    "kvm_page_fault": (
        '"vcpu %u address 0x%016llx error_code 0x%llx", REC->vcpu_id, REC->fault_address, '
        "REC->error_code"
    ),
    "kvm_inj_exception": (
        '"[FAILED TO PARSE] exception=%d has_error=%d error_code=%d reinjected=%d", '
        "REC->exception, REC->has_error, REC->error_code, REC->reinjected"
    ),
    "kvm_inj_virq": (
        '"%s 0x%x%s", REC->soft ? "Soft/INTn" : "IRQ", REC->vector, '
        'REC->reinjected ? " [reinjected]" : ""'
    ),
    "kvm_fpu": '"%s", REC->load ? "load" : "unload"',
    "kvm_msr": (
        '"msr_%s %x = 0x%llx%s", REC->write ? "write" : "read", REC->ecx, REC->data, '
        'REC->exception ? " (#GP)" : ""'
    ),
    "kvm_cr": '"cr_%s %x = 0x%lx", REC->rw ? "write" : "read", REC->cr, REC->val',
    "kvm_ple_window_update": (
        '"vcpu %u old %u new %u (%s)", REC->vcpu_id, REC->old, REC->new, '
        'REC->old < REC->new ? "growed" : "shrinked"'
    ),
    "kvm_pi_irte_update": (
        '"PI is %s for irq %u, vcpu %d, gsi: 0x%x, gvec: 0x%x", REC->set ? "enabled and being '
        'updated" : "disabled", REC->host_irq, REC->vcpu_id, REC->gsi, REC->gvec'
    ),
}

COMMON = [
    ("unsigned short", "common_type", 0, 2, 0),
    ("unsigned char", "common_flags", 2, 1, 0),
    ("unsigned char", "common_preempt_count", 3, 1, 0),
    ("int", "common_pid", 4, 4, 1),
]


def placed(name: str) -> list[tuple[str, str, int, int]]:
    at, found = 8, []
    for kind, field, size in EVENTS[name][1]:
        at = -(-at // size) * size
        found.append((kind, field, at, size))
        at += size
    return found


def description(name: str) -> bytes:
    lines = [f"name: {name}", f"ID: {EVENTS[name][0]}", "format:"]
    rows: list[tuple[str, str, int, int, int]] = [
        *COMMON,
        *((kind, field, at, size, 0) for kind, field, at, size in placed(name)),
    ]
    for kind, field, at, size, sign in rows:
        if at == 8:
            lines.append("")
        lines.append(f"\tfield:{kind} {field};\toffset:{at};\tsize:{size};\tsigned:{sign};")
    return "\n".join([*lines, "", f"print fmt: {PRINTED[name]}", ""]).encode()


def record(event: Given) -> bytes:
    _, _, thread, name, values = event
    fields = placed(name)
    size = fields[-1][2] + fields[-1][3]
    data = bytearray(-(-size // 4) * 4)
    struct.pack_into("<HBBi", data, 0, EVENTS[name][0], 0, 0, thread)
    for _, field, at, width in fields:
        data[at : at + width] = values.get(field, 0).to_bytes(width, "little")
    return bytes(data)


HEADER_PAGE = (
    "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
    "\tfield: local_t commit;\toffset:8;\tsize:{0};\tsigned:1;\n"
    "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
    "\tfield: char data;\toffset:{1};\tsize:{2};\tsigned:0;\n"
)
HEADER_EVENT = (
    b"# compressed entry header\n\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n"
    b"\tarray       :   32 bits\n\n\tpadding     : type == 29\n\ttime_extend : type == 30\n"
    b"\ttime_stamp : type == 31\n\tdata max type_len  == 28\n"
)


def pages(events: Iterable[Given], *, long: int = 8, missed: int = 0, per_page: int = 40) -> bytes:
    """One CPU's ring buffer; `missed` events are lost before its second page."""
    given = list(events)
    whole = b""
    for number, start in enumerate(range(0, len(given), per_page)):
        some = given[start : start + per_page]
        now = some[0][0]
        data = b""
        for event in some:
            delta = event[0] - now
            now = event[0]
            if delta >= 1 << 27:
                data += struct.pack("<II", 30 | (delta & (1 << 27) - 1) << 5, delta >> 27)
                delta = 0
            body = record(event)
            if len(body) <= 112:
                data += struct.pack("<I", len(body) // 4 | delta << 5) + body
            else:
                data += struct.pack("<II", delta << 5, len(body) + 4) + body
        lost = missed if number == 1 else 0
        commit = len(data) | (3 << 30 if lost else 0)
        stored = lost.to_bytes(long, "little") if lost else b""
        page = struct.pack("<Q", some[0][0]) + commit.to_bytes(long, "little") + data + stored
        assert len(page) <= 4096
        whole += page.ljust(4096, b"\0")
    return whole


def sized(data: bytes, width: int = 8) -> bytes:
    return len(data).to_bytes(width, "little") + data


def header_info(long: int = 8) -> bytes:
    page = HEADER_PAGE.format(long, 8 + long, 4096 - 8 - long).encode()
    return b"header_page\0" + sized(page) + b"header_event\0" + sized(HEADER_EVENT)


def event_formats() -> bytes:
    described = b"".join(sized(description(name)) for name in EVENTS)
    return struct.pack("<I", 1) + b"kvm\0" + struct.pack("<I", len(EVENTS)) + described


def initial(version: bytes, long: int = 8) -> bytes:
    return b"\x17\x08\x44tracing" + version + b"\0" + bytes([0, long]) + struct.pack("<I", 4096)


def tracing_data(version: bytes = b"6", long: int = 8) -> bytes:
    return (
        initial(version, long)
        + header_info(long)
        + struct.pack("<I", 0)
        + event_formats()
        + sized(b"", 4)
        + sized(b"", 4)
    )


def by_cpu(events: Sequence[Given]) -> list[list[Given]]:
    cpus = max((event[1] for event in events), default=0) + 1
    return [[event for event in events if event[1] == cpu] for cpu in range(cpus)]


def trace_dat_6(
    events: Sequence[Given], *, long: int = 8, missed: int = 0, instance: bool = False
) -> bytes:
    """With `instance` the buffers are those of an instance (`trace-cmd record -B`)."""
    buffers = [pages(some, long=long, missed=missed) for some in by_cpu(events)]
    clock = b"[local] global counter\n\0"
    options = struct.pack("<HI", 4, len(clock)) + clock
    head = tracing_data(long=long) + sized(b"100 CPU\n")
    head += struct.pack("<I", len(buffers)) + b"options  \0"
    each = 16 * len(buffers)
    lists = len(head) + len(options) + (18 if instance else 0) + 2 + 10 + each
    if instance:
        options += struct.pack("<HIQ", 3, 12, lists) + b"own\0"
    head += options + struct.pack("<H", 0) + b"flyrecord\0"
    start = -(-(lists + 10 + each) // 4096) * 4096
    at, table = start, b""
    for data in buffers:
        table += struct.pack("<QQ", at, len(data))
        at += len(data)
    if instance:
        table = bytes(each) + b"flyrecord\0" + table
    return (head + table).ljust(start, b"\0") + b"".join(buffers)


def packed(data: bytes, codec: str) -> bytes:
    if codec == "zstd":
        return bytes(pa.compress(data, codec="zstd", asbytes=True))
    return zlib.compress(data)


def trace_dat_7(events: Sequence[Given], *, codec: str = "none", missed: int = 0) -> bytes:
    file = bytearray(initial(b"7") + codec.encode() + b"\0" + b"1\0" + bytes(8))
    options_at = len(file) - 8

    def section(number: int, data: bytes, *, squeeze: bool = True) -> int:
        flags = int(codec != "none" and squeeze)
        if flags:
            small = packed(data, codec)
            data = struct.pack("<II", len(small), len(data)) + small
        at = len(file)
        file.extend(struct.pack("<HHIQ", number, flags, 0, len(data)) + data)
        return at

    places = {
        15: section(15, b"\0", squeeze=False),
        16: section(16, header_info()),
        17: section(17, struct.pack("<I", 0)),
        18: section(18, event_formats()),
        19: section(19, sized(b"", 4)),
        20: section(20, sized(b"", 4)),
        21: section(21, sized(b"100 CPU\n")),
    }
    buffers = [pages(some, missed=missed) for some in by_cpu(events)]
    flags = int(codec != "none")
    buffer_at = len(file)
    file.extend(struct.pack("<HHIQ", 3, flags, 0, 0))
    table = b""
    for cpu, data in enumerate(buffers):
        if codec == "none":
            file.extend(bytes(-len(file) % 4096))
        else:
            chunks = [data[at : at + 8192] for at in range(0, len(data), 8192)]
            small = [packed(chunk, codec) for chunk in chunks]
            data = struct.pack("<I", len(chunks)) + b"".join(
                struct.pack("<II", len(a), len(b)) + a for a, b in zip(small, chunks, strict=True)
            )
        table += struct.pack("<IQQ", cpu, len(file), len(data))
        file.extend(data)
    struct.pack_into("<Q", file, buffer_at + 8, len(file) - buffer_at - 16)
    option = struct.pack("<Q", buffer_at) + b"\0" + b"local\0"
    option += struct.pack("<II", 4096, len(buffers)) + table
    options = b"".join(struct.pack("<HIQ", one, 8, at) for one, at in places.items())
    options += struct.pack("<HI", 3, len(option)) + option
    options += struct.pack("<HIQ", 0, 8, 0)
    at = section(0, options)
    struct.pack_into("<Q", file, options_at, at)
    return bytes(file)


_CONTENTS = 1 << 16 | 2 | 4 | 128 | 256 | 1024
"""IDENTIFIER, TID, TIME, CPU, PERIOD, RAW."""


def attribute(tracepoint: int) -> bytes:
    flags = 1 << 18 | 1 << 24  # sample_id_all, the data's own clock
    return struct.pack("<IIQQQQQ", 2, 128, tracepoint, 1, _CONTENTS, 4, flags).ljust(128, b"\0")


def sample(event: Given, one_id: int, process: int) -> bytes:
    time, cpu, thread, _, _ = event
    raw = record(event)
    raw = raw.ljust(-(-(len(raw) + 4) // 8) * 8 - 4, b"\0")
    body = struct.pack("<QIIQIIQ", one_id, process, thread, time, cpu, 0, 1) + sized(raw, 4)
    return struct.pack("<IHH", 9, 0, 8 + len(body)) + body


def perf_records(events: Sequence[Given], *, lost: int = 0) -> bytes:
    ids = {name: 500 + n for n, name in enumerate(EVENTS)}
    data = b"".join(sample(event, ids[event[3]], 4000) for event in events)
    if lost:
        tail = struct.pack("<QIIQIIQ", 500, 0, 0, events[-1][0], 0, 0, 500)[:40]
        data += struct.pack("<IHHQQ", 2, 0, 24 + len(tail), 500, lost) + tail
    return data


def flushed(data: bytes) -> bytes:
    """A zstd stream that is flushed and never ended, as perf leaves it."""
    sink = io.BytesIO()
    stream = pa.CompressedOutputStream(pa.PythonFile(sink, "w"), "zstd")
    for at in range(0, len(data), 20000):
        stream.write(data[at : at + 20000])
        stream.flush()
    whole = sink.getvalue()
    stream.close()
    return whole


def perf_data(
    events: Sequence[Given], *, lost: int = 0, codec: str = "none", killed: bool = False
) -> bytes:
    head_size = 104
    ids = b"".join(struct.pack("<Q", 500 + n) for n in range(len(EVENTS)))
    attributes = b"".join(
        attribute(number) + struct.pack("<QQ", head_size + 8 * n, 8)
        for n, (number, _) in enumerate(EVENTS.values())
    )
    data = perf_records(events, lost=lost)
    if codec == "zstd":
        whole = flushed(data)
        data = b"".join(
            struct.pack("<IHH", 81, 0, 8 + len(part)) + part
            for at in range(0, len(whole), 30000)
            if (part := whole[at : at + 30000])
        )
    start = head_size + len(ids) + len(attributes)
    described = tracing_data(b"0.6") + sized(b"")
    parts = {1: described}
    if codec == "zstd":  # how it was compressed, and how large a perf's buffer was
        parts[27] = struct.pack("<5I", 1, 1, 1, 1, 1 << 20)
    at = start + len(data) + 16 * len(parts)
    features = b""
    for part in parts.values():
        features += struct.pack("<QQ", at, len(part))
        at += len(part)
    described = b"".join(parts.values())
    head = b"PERFILE2" + struct.pack(
        "<QQQQQQQQ4Q",
        head_size,
        len(attributes) // len(EVENTS),
        head_size + len(ids),
        len(attributes),
        start,
        0 if killed else len(data),
        0,
        0,
        *(sum(1 << bit for bit in parts), 0, 0, 0),
    )
    return head + ids + attributes + data + features + described


def perf_pipe(events: Sequence[Given]) -> bytes:
    data = b"PERFILE2" + struct.pack("<Q", 16)
    for n, (number, _) in enumerate(EVENTS.values()):
        body = attribute(number) + struct.pack("<Q", 500 + n)
        data += struct.pack("<IHH", 64, 0, 8 + len(body)) + body
    described = tracing_data(b"0.6") + sized(b"")
    data += struct.pack("<IHHII", 66, 0, 16, len(described), 0)
    data += described.ljust(-(-len(described) // 8) * 8, b"\0")
    return data + perf_records(events)


def workload(rounds: int, cpus: int = 2) -> list[Given]:
    """Exits of several vCPUs whose threads wander between CPUs."""
    found: list[Given] = []
    for number in range(rounds):
        vcpu = number % 3
        cpu, thread = (number // 7 + vcpu) % cpus, 4001 + vcpu
        time = 1_000_000_000 + number * 7_000 + (number // 50) * 400_000_000

        def put(after: int, name: str, place: tuple[int, int, int], **values: int) -> None:
            found.append((place[0] + after, place[1], place[2], name, values))

        here = (time, cpu, thread)
        exit_: dict[str, Any] = {
            "isa": 1,
            "guest_rip": 0xFFFFFFFF81000000 + number,
            "vcpu_id": vcpu,
        }
        if number % 4 == 0:
            put(0, "kvm_exit", here, **exit_, info1=0x7F0000001000 + number, error_code=number % 8,
                intr_info=0x80000B0E)  # fmt: skip
            put(1000, "kvm_inj_exception", here, exception=14, has_error=1, error_code=number % 8)
        elif number % 4 == 1:
            put(0, "kvm_exit", here, **exit_, exit_reason=48, info1=0x181, info2=0x80000301)
            put(500, "kvm_page_fault", here, vcpu_id=vcpu, fault_address=number << 12, error_code=2)
            put(1000, "kvm_inj_virq", here, vector=0xEC, reinjected=1)
        elif number % 4 == 2:
            put(0, "kvm_exit", here, **exit_, exit_reason=12)
            put(500, "kvm_fpu", here, load=1)
        else:
            put(0, "kvm_exit", here, **exit_, exit_reason=99)
        put(3000, "kvm_entry", here, vcpu_id=vcpu, rip=0xFFFFFFFF81000000 + number)
    return found
