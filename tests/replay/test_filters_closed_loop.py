"""A trace made without fault filters, replayed with one, says what a run with it does."""

import random
from pathlib import Path
from struct import pack

import pytest

from tests.conformance.self_mapped_guest import CODE, TWO_LEVEL, Bench
from trapgate.decision.criteria_rules import Rule
from trapgate.events.journal import HEAD_COUNTS
from trapgate.processor.processor import VmExit
from trapgate.replay import Policy, replay
from trapgate.trace import TraceWriter
from trapgate.vmcs.file import parse_settings

ENTRIES = (0, 0x123067, 0x123065, 0x123007, 0x123066, 0x124067, 0x1230E7, 0x4560E8)
WIDTHS = {1: "c605", 2: "66c705", 4: "c705"}
"""MOV of an immediate to an address, by width in bytes."""


def program(seed: int) -> tuple[bytes, dict[int, tuple[int, bytes]]]:
    """Code that edits entries at random; what is stored where, by RIP, and its length."""
    choose = random.Random(seed)
    code, stores = b"", {}
    for _ in range(80):
        width = choose.choice([1, 2, 4, 4, 4])
        at = choose.randrange(16) * 4 + choose.randrange(4 // width) * width
        value = pack("<I", choose.choice(ENTRIES))[at % 4 :][:width].ljust(width, b"\0")
        stores[CODE + len(code)] = (TWO_LEVEL.frames[0] + at, value)
        code += bytes.fromhex(WIDTHS[width]) + pack("<I", TWO_LEVEL.tables + at) + value
    return code, stores


def run(
    seed: int, sink: TraceWriter | None, *, rules: tuple[Rule, ...] = (), **fields: int
) -> tuple[list[int], bytes]:
    """Exits, deliveries and completions of page faults, and the table as it is at last."""
    code, stores = program(seed)
    bench = Bench(TWO_LEVEL, "auto")
    processor = bench.processor
    if sink is not None:
        processor.trace_to(sink.append)
    choose = random.Random(~seed)
    table = b"".join(pack("<I", choose.choice(ENTRIES)) for _ in range(1024))
    memory = {TWO_LEVEL.frames[0]: table}
    # Without CR4.PSE, about which a trace says nothing (docs/guide/replay.md).
    fields |= {"GUEST_CR4": 0x2600}
    outcome = bench.run(
        code, writable=False, memory=memory, registers={}, fields=fields, rules=rules
    )
    exit_ = outcome.exit
    while exit_.reason.name != "VMCALL":
        assert exit_.interruption is not None
        assert exit_.interruption.vector == 14
        where, value = stores[exit_.vmcs["GUEST_RIP"]]
        processor.memory.write(where, value)
        length = len(value) + (7 if len(value) == 2 else 6)
        exit_.vmcs["GUEST_RIP"] += length
        resumed = processor.vmresume(exit_.vmcs)
        assert isinstance(resumed, VmExit)
        exit_ = resumed
    processor.drain()
    counts = processor.head[HEAD_COUNTS + (3 * 256 + 14) * 3 :][:3].tolist()
    return counts, processor.memory.read(TWO_LEVEL.frames[0], 0x1000)


@pytest.mark.parametrize("seed", range(2))
def test_a_replay_of_a_run_without_filters_tells_the_filtered_run(
    tmp_path: Path, seed: int
) -> None:
    with TraceWriter(tmp_path / "run.parquet") as writer:
        (exits, delivered, completed), table = run(seed, writer, FAULT_FILTER=0)
    assert (exits, delivered, completed) == (80, 0, 0)
    found = set()
    for name in ("figure-7", "figure-8", "paragraph-80"):
        for order in ("figure-6", "paragraph-60", "paragraph-66", "paragraph-67"):
            text = f"""
            [controls]
            exceptions = ["PF"]
            [fields]
            FAULT_FILTER = "{name}"
            FAULT_FILTER_ORDER = "{order}"
            PTBASE = 0xC0000000
            """
            settings = parse_settings(text)
            (said,) = replay(
                [tmp_path / "run.parquet"], [Policy.from_settings(name, settings)]
            ).outcomes
            named = {field.name: value for field, value in settings.fields.items()}
            counts, after = run(seed, None, rules=(), **named)
            assert counts == [said.exits, said.deliveries, said.completions]
            assert after == table
            found.add(tuple(counts))
    assert len(found) == 3
