"""Define fields, run a guest under them, and see exactly the promised codes exit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance import tiny_guest
from tests.criteria import fault_guest
from trapgate.criteria import define, filter_in, merge, parse_spec
from trapgate.criteria.merge import Party
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm.reasons import ExitReason
from trapgate.trace import Trace, TraceWriter
from trapgate.trace.schema import CRITERIA
from trapgate.vmcs.file import parse_settings
from trapgate.vmcs.vmcs import Vmcs
from trapgate.vmm.actions import End
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine

MEMORY = 16 << 20

SPECS = {
    "supervisor writes": '[PF]\nexit = ["write and present and not user"]\ndefault = "deliver"\n',
    "two conditions": '[PF]\nexit = ["reserved", "fetch and user"]\ndefault = "deliver"\n',
    "numbers": "[PF]\nexit = [0, 3, 0x15]\ndefault = 'deliver'\n",
    "everything": 'PF = "exit"\n',
    "nothing": 'PF = "deliver"\n',
}


def dispositions(trace: Path) -> dict[int, set[str]]:
    """What became of page faults, by error code; injections apart."""
    found: dict[int, set[str]] = {}
    with Trace(trace) as opened:
        for row in opened.table(["vector", "error_code", "disposition", "injected"]).to_pylist():
            if row["vector"] == 14 and not row["injected"]:
                found.setdefault(row["error_code"], set()).add(row["disposition"])
    return found


def run(toml: str, trace: Path) -> dict[int, set[str]]:
    with TraceWriter(trace) as writer:
        vm = VirtualMachine(MEMORY, trace=writer)
        vm.load(parse_guest(fault_guest.image(), file="faults.elf", memory=MEMORY))
        vm.apply(parse_settings(toml))
        stop = vm.run(max_instructions=100_000)
    assert stop.end is End.DEBUG_EXIT, stop
    return dispositions(trace)


@pytest.mark.parametrize("scheme", ["vt-x", "exchanged", "no-bit", "figure-4", "figure-5", "auto"])
@pytest.mark.parametrize("wishes", SPECS)
def test_exactly_the_promised_codes_exit(wishes: str, scheme: str, tmp_path: Path) -> None:
    spec = parse_spec(SPECS[wishes])
    definition = define(spec, scheme)
    seen = run(definition.toml(), tmp_path / "trace.parquet")
    assert set(seen) == set(fault_guest.CASES), "the guest raises all codes"
    codes, goals = spec.vectors[14].goals()
    must = set(codes[goals == 1].tolist())
    promised = must | set(definition.answers[0].needless)
    assert seen == {code: {"EXIT" if code in promised else "DELIVER"} for code in fault_guest.CASES}


@pytest.mark.parametrize("scheme", ["less", "greater-or-equal", "membership", "figure-5-no-bit"])
def test_so_it_is_with_the_other_criteria(scheme: str, tmp_path: Path) -> None:
    definition = define(parse_spec("[PF]\nexit = [9, 11, 13]\ndefault = 'deliver'\n"), scheme)
    seen = run(definition.toml(), tmp_path / "trace.parquet")
    promised = {9, 11, 13, *definition.answers[0].needless}
    assert {code for code, what in seen.items() if what == {"EXIT"}} == promised & set(seen)
    assert all(len(what) == 1 for what in seen.values())


def test_the_command_line_closes_the_loop(tmp_path: Path) -> None:
    def trapgate(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "trapgate", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    guest, wishes, fields = (tmp_path / name for name in ("guest.elf", "w.toml", "f.toml"))
    trace = tmp_path / "trace.parquet"
    guest.write_bytes(fault_guest.image())
    wishes.write_text(SPECS["supervisor writes"])
    answer = json.loads(trapgate("criteria", "define", wishes, "-o", fields, "--json"))
    assert answer["exact"]
    ran = trapgate("run", guest, "--memory", "16M", "--vmcs", fields, "--trace", trace, "--json")
    assert json.loads(ran)["end"] == End.DEBUG_EXIT.value
    seen = dispositions(trace)
    assert {code for code, what in seen.items() if "EXIT" in what} == {0x3, 0xB}
    assert set(seen) == set(fault_guest.CASES)
    with Trace(trace) as opened:
        kept = Vmcs.from_toml(opened.run[CRITERIA])
    given = Vmcs.load(fields)
    for name in ("EXCEPTION_BITMAP", "PAGE_FAULT_ERROR_CODE_MASK", "PAGE_FAULT_ERROR_CODE_MATCH"):
        assert kept[name] == given[name]
    # What was reflected can be learned from: nothing was needed, so nothing exits.
    learned = json.loads(
        trapgate("criteria", "learn", trace, "--hold-out", "0", "--unseen", "free", "--json")
    )
    assert learned["trained"]["exits_before"] == 2
    assert (learned["trained"]["exits_after"], learned["trained"]["missed"]) == (0, 0)
    trapgate("run", guest, "--memory", "16M", "--vmcs", fields, "--json")
    # Without a file the machine's own criteria are kept, and nothing is worse than they.
    bare = tmp_path / "bare.parquet"
    trapgate("run", guest, "--memory", "16M", "--trace", bare, "--json")
    again = json.loads(trapgate("criteria", "learn", bare, "--hold-out", "0", "--json"))
    assert again["whole"]["exits_after"] <= again["whole"]["exits_before"] == 0


def test_merged_fields_exit_for_both(tmp_path: Path) -> None:
    outer = define(parse_spec(SPECS["supervisor writes"])).toml()
    inner = define(parse_spec('[PF]\nexit = ["fetch and user"]\ndefault = "deliver"\n')).toml()
    parties = [Party("outer", Vmcs.from_toml(outer)), Party("inner", Vmcs.from_toml(inner))]
    merged = merge(parties)
    alone = [run(toml, tmp_path / f"{n}.parquet") for n, toml in enumerate((outer, inner))]
    both = run(merged.definition.toml(), tmp_path / "both.parquet")
    asked = {code for seen in alone for code, what in seen.items() if what == {"EXIT"}}
    exits = {code for code, what in both.items() if what == {"EXIT"}}
    assert asked <= exits
    told = {code: share for share in merged.shares if share.vector == 14 for code in share.codes}
    for code in exits:
        assert bool(told[code].asked) == (code in asked), hex(code)
    four = merge(parties, "figure-4")
    exact = run(four.definition.toml(), tmp_path / "four.parquet")
    assert {code for code, what in exact.items() if what == {"EXIT"}} == asked


READ, WRITE, FETCH = (b"\x8a\x03", b"\x88\x03", b"\xff\xe3")  # mov al,[ebx]; mov [ebx],al; jmp ebx
LONG_MODE = {
    0x00: (0, READ, tiny_guest.ABSENT),
    0x02: (0, WRITE, tiny_guest.ABSENT),
    0x03: (0, WRITE, tiny_guest.READ_ONLY),
    0x04: (3, READ, tiny_guest.ABSENT),
    0x05: (3, READ, tiny_guest.SUPERVISOR),
    0x06: (3, WRITE, tiny_guest.ABSENT),
    0x07: (3, WRITE, tiny_guest.READ_ONLY),
    0x09: (0, READ, tiny_guest.RESERVED),
    0x0B: (0, WRITE, tiny_guest.RESERVED),
    0x0D: (3, READ, tiny_guest.RESERVED),
    0x0F: (3, WRITE, tiny_guest.RESERVED),
    0x10: (0, FETCH, tiny_guest.ABSENT),
    0x11: (0, FETCH, tiny_guest.NO_EXECUTE),
    0x14: (3, FETCH, tiny_guest.ABSENT),
    0x15: (3, FETCH, tiny_guest.NO_EXECUTE),
    0x19: (0, FETCH, tiny_guest.RESERVED),
    0x1D: (3, FETCH, tiny_guest.RESERVED),
}


@pytest.mark.parametrize("scheme", ["vt-x", "figure-4"])
def test_the_same_in_64_bit_mode(scheme: str) -> None:
    definition = define(parse_spec(SPECS["two conditions"]), scheme)
    rule = filter_in(Vmcs.from_toml(definition.toml()), 14)
    fields = {field.name: value for field, value in definition.fields.items()}
    for code, (ring, access, page) in LONG_MODE.items():
        guest = tiny_guest.Tiny("l64", ring, access, registers={"rbx": page}, fields=fields)
        outcome = tiny_guest.begin(guest).exit
        assert isinstance(outcome, VmExit)
        if rule.exits_one(code):
            assert outcome.reason is ExitReason.EXCEPTION_OR_NMI, hex(code)
            assert outcome.interruption is not None
            assert outcome.interruption.error_code == code
        else:
            assert outcome.reason is ExitReason.VMCALL, hex(code)
            assert outcome.vmcs["GUEST_RIP"] == tiny_guest.handler(14)
    must = {code for code in LONG_MODE if code & 8 or code & 0x14 == 0x14}
    exits = {code for code in LONG_MODE if rule.exits_one(code)}
    assert must <= exits
    assert exits - must == set(definition.answers[0].needless) & set(LONG_MODE)
