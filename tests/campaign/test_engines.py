"""Campaigns on the portable engine: the rows of the native one."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.campaign.plans import HEAD, finished, plan
from trapgate.campaign.bench import make_machine

EVERYTHING = """
[[target]]
event = ["PF(code=6,cr2=0x50000000)", "GP(0)", "NMI", "INT 0x80"]
[[target]]
register = "general"
[[target]]
register = "EAX"
bits = "3"
mode = "stuck 1"
[[target]]
control = ["CR0", "CR3", "CR4"]
[[target]]
entries = "0x40000000-0x40ffffff"
field = ["P", "R/W", "frame"]
[[target]]
descriptor = ["GDT", "IDT"]
index = "0-14"
[[target]]
vmcs = ["GUEST_CS_LIMIT", "GUEST_TR_BASE", "EXCEPTION_BITMAP"]
[[target]]
instruction_bytes = "0-3"
[[target]]
skip = true
[sample]
runs = 160
seed = 4
stratify = "target"
"""


def on(engine: str) -> str:
    return HEAD.replace("[guest]", f'[guest]\nengine = "{engine}"')


def test_the_portable_engine_gives_the_same_rows(tmp_path: Path) -> None:
    tables = []
    for engine in ("native", "portable"):
        results = finished(EVERYTHING, tmp_path / engine, on(engine))
        assert results.facts["environment"]["engine"] == engine
        tables.append(pa.concat_tables(map(pq.read_table, results.parts())).to_pylist())
    native, portable = tables
    assert native == portable
    assert len({row["outcome"] for row in native}) > 4


def test_small_steps_come_through_a_loop_that_polls_a_port() -> None:
    wanted = plan(head=on("portable").replace('"demand"', '"faults"'))
    vm = make_machine(wanted.guest)
    vm.step(55_000)
    moment = vm.processor.time
    for _ in range(200):  # among them those that wait for the serial port
        vm.step(17)
        moment += 17
        assert vm.processor.time == moment
    small = bytes(vm.output)
    other = make_machine(wanted.guest)
    other.step(moment)
    assert small == bytes(other.output)
    vm.step(1 << 40)
    other.step(1 << 40)
    assert vm.output == other.output
    assert vm.processor.time == other.processor.time
