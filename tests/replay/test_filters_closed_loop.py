"""A trace made without fault filters, replayed with one, says what a run with it does."""

import random
from pathlib import Path
from struct import pack

import pytest

from tests.conformance.self_mapped_guest import CODE, FOUR_LEVEL, PAE, TWO_LEVEL, Bench, Layout
from trapgate.decision.criteria_rules import Rule
from trapgate.events.journal import HEAD_COUNTS
from trapgate.processor.vm_exit import VmExit
from trapgate.replay import Policy, replay
from trapgate.trace import TraceWriter
from trapgate.vmcs.file import parse_settings

ENTRIES = (0, 0x123067, 0x123065, 0x123007, 0x123066, 0x124067, 0x1230E7, 0x4560E8)
WIDTHS = {1: "c687", 2: "66c787", 4: "c787"}
"""MOV of an immediate to an address in EDI or RDI with a displacement, by width in bytes."""
EXECUTE_DISABLE = 1 << 63
LAYOUTS = {"two-level": TWO_LEVEL, "pae": PAE, "four-level": FOUR_LEVEL}


def program(seed: int, layout: Layout) -> tuple[bytes, dict[int, tuple[int, bytes]]]:
    """Code that edits entries at random; what is stored where, by RIP, and its length."""
    choose = random.Random(seed)
    code, stores = b"", {}
    for _ in range(80):
        width = choose.choice([1, 2, 4, 4, 4])
        at = choose.randrange(16) * 4 + choose.randrange(4 // width) * width
        entry = choose.choice(ENTRIES) | choose.choice([0, EXECUTE_DISABLE])
        value = pack("<Q", entry)[at % layout.width :][:width]
        stores[CODE + len(code)] = (layout.frames[0] + at, value)
        code += bytes.fromhex(WIDTHS[width]) + pack("<I", at) + value
    return code, stores


def run(
    seed: int,
    sink: TraceWriter | None,
    *,
    layout: Layout = TWO_LEVEL,
    rules: tuple[Rule, ...] = (),
    **fields: int,
) -> tuple[list[int], bytes]:
    """Exits, deliveries and completions of page faults, and the table as it is at last."""
    code, stores = program(seed, layout)
    bench = Bench(layout, "auto")
    processor = bench.processor
    if sink is not None:
        processor.trace_to(sink.append)
    choose = random.Random(~seed)
    entry = "<I" if layout.width == 4 else "<Q"
    high = (0,) if layout.width == 4 else (0, EXECUTE_DISABLE)
    entries = [choose.choice(ENTRIES) | choose.choice(high) for _ in range(0x1000 // layout.width)]
    memory = {layout.frames[0]: b"".join(pack(entry, one) for one in entries)}
    registers = {"rdi": layout.tables}
    outcome = bench.run(
        code, writable=False, memory=memory, registers=registers, fields=fields, rules=rules
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
    return counts, processor.memory.read(layout.frames[0], 0x1000)


@pytest.mark.parametrize(
    ("name", "seed", "cr4"),
    [
        ("two-level", 0, 0x2600),
        ("two-level", 1, 0x2610),
        ("pae", 2, 0x2630),
        ("four-level", 3, 0x2630),
    ],
)
def test_a_replay_of_a_run_without_filters_tells_the_filtered_run(
    tmp_path: Path, name: str, seed: int, cr4: int
) -> None:
    layout = LAYOUTS[name]
    with TraceWriter(tmp_path / "run.parquet") as writer:
        (exits, delivered, completed), table = run(
            seed, writer, layout=layout, FAULT_FILTER=0, GUEST_CR4=cr4
        )
    assert (exits, delivered, completed) == (80, 0, 0)
    found = set()
    for kind in ("figure-7", "figure-8", "paragraph-80"):
        for order in ("figure-6", "paragraph-60", "paragraph-66", "paragraph-67"):
            text = f"""
            [controls]
            exceptions = ["PF"]
            [fields]
            FAULT_FILTER = "{kind}"
            FAULT_FILTER_ORDER = "{order}"
            PTBASE = {layout.ptbase:#x}
            """
            settings = parse_settings(text)
            (said,) = replay(
                [tmp_path / "run.parquet"], [Policy.from_settings(kind, settings)]
            ).outcomes
            named = {field.name: value for field, value in settings.fields.items()}
            counts, after = run(seed, None, layout=layout, rules=(), GUEST_CR4=cr4, **named)
            assert counts == [said.exits, said.deliveries, said.completions]
            assert after == table
            found.add(tuple(counts))
    assert len(found) == 3
