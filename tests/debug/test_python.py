"""`import trapgate`, what its values say of themselves, and the tutorial."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trapgate
from tests.debug.broken_guests import UD2, flat
from tests.report.test_notebook import parsed
from trapgate.decision.decide import decide
from trapgate.sdm.event_words import code_words, event_words

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = (
    DOCS / "tutorial.ipynb",
    DOCS / "notebooks" / "figures.ipynb",
    DOCS / "notebooks" / "campaign.ipynb",
)


def test_the_names_for_daily_use_are_there_and_cost_nothing_until_used() -> None:
    for name in ("VirtualMachine", "Vmcs", "Processor", "decide", "Fault", "load"):
        assert name in trapgate.__all__
        assert getattr(trapgate, name) is not None
    code = (
        "import sys, trapgate; "
        "print(any(m in sys.modules for m in ('numpy', 'unicorn', 'polars', 'z3')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            trapgate.Fault(14, 7, address=0x40000000, rip=0x401000, cpl=3),
            (
                "<#PF(7H), page fault: write in user mode that the page's rights forbid, address "
                "40000000H, RIP 401000H, CPL 3>"
            ),
        ),
        (
            trapgate.Fault(13, 0x10),
            "<#GP(10H), general protection: selector 10H, entry 2 of the GDT, RIP 0H, CPL 0>",
        ),
        (trapgate.Fault(6), "<#UD, invalid opcode, RIP 0H, CPL 0>"),
        (trapgate.Interruption(0x20, trapgate.InterruptionType(0)), "<external interrupt 20H>"),
        (trapgate.Interruption(0x80, trapgate.InterruptionType(4)), "<INT 80H>"),
        (trapgate.Interruption(8, error_code=0), "<#DF(0), double fault>"),
        (decide(trapgate.Fault(14, 2), trapgate.Vmcs()), "<is delivered: figure 3 match>"),
    ],
)
def test_values_say_what_they_are(value: object, words: str) -> None:
    assert repr(value) == words


@pytest.mark.parametrize(
    ("vector", "code", "words"),
    [
        (14, 0x10, "instruction fetch in supervisor mode of a page that is not present"),
        (14, 0xB, "write in supervisor mode of a page whose entry has a reserved bit set"),
        (13, 0x73, "entry EH of the IDT (vector 14), met while delivering another event"),
        (11, 0x2C, "selector 2CH, entry 5 of the LDT"),
        (13, 0, ""),
        (13, 1, "an event met while delivering another, and no selector"),
        (6, -1, ""),
    ],
)
def test_error_codes_in_words(vector: int, code: int, words: str) -> None:
    assert code_words(vector, code) == words
    assert event_words(vector, 3, code).startswith("#")


def dead(tmp_path: Path) -> trapgate.VirtualMachine:
    (tmp_path / "guest").write_bytes(flat(UD2))
    vm = trapgate.load(tmp_path / "guest", memory=4 << 20)
    vm.run()
    return vm


def test_machines_and_exits_say_how_they_stand(tmp_path: Path) -> None:
    vm = dead(tmp_path)
    assert "4 MB" in repr(vm)
    assert "RIP 100000H, 1 instructions, stopped: triple fault" in repr(vm)
    words = parsed(vm._repr_html_()).words
    assert "#UD deliver" in words
    assert "VM exit: triple fault" in words
    assert "GUEST_RIP" in parsed(vm.vmcs._repr_html_()).words
    processor, vmcs = trapgate.Processor(1 << 20), trapgate.Vmcs()
    vmcs["EXCEPTION_BITMAP"] = 1 << 6
    vmcs.set_flat_segments(32)
    vmcs["GUEST_CR0"] = 0x31
    vmcs["GUEST_RIP"] = 0x1000
    vmcs["GUEST_TR_LIMIT"] = 0x67
    processor.memory.write(0x1000, UD2)
    vmexit = processor.vmlaunch(vmcs)
    assert repr(vmexit) == "<VM exit: exception or nmi, #UD, invalid opcode, RIP 1000H>"
    assert isinstance(vmexit, trapgate.VmExit)
    words = parsed(vmexit._repr_html_()).words
    assert "0 exception or nmi" in words
    assert "#UD, invalid opcode" in words
    assert vmexit.interruption is not None
    assert parsed(vmexit.interruption._repr_html_()).words == ["#UD, invalid opcode"]
    fault = trapgate.Fault(14, 2, address=0x40000000)
    assert "address 40000000H" in fault._repr_html_()


def test_events_are_a_frame(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    frame = dead(tmp_path).events()
    assert frame["vector"].to_list() == [6, 13, 13, 8, 13]
    assert frame["depth"].to_list() == [0, 1, 2, 3, 4]
    assert frame["error_code"].to_list() == [None, 0x33, 0x6B, 0, 0x43]
    assert frame["disposition"].to_list() == ["DELIVER"] * 4 + ["EXIT"]
    assert len(dead(tmp_path).events(2)) == 2


def test_definitions_show_in_notebooks() -> None:
    from trapgate.criteria import define, parse_spec

    definition = define(parse_spec('[PF]\nexit = ["write"]\ndefault = "deliver"\n'), "vt-x")
    assert "PAGE_FAULT_ERROR_CODE_MASK" in parsed(definition._repr_html_()).words


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_shows_what_it_says(path: Path) -> None:
    for extra in ("polars", "z3", "pysat"):
        pytest.importorskip(extra)
    notebook = json.loads(path.read_text())
    names: dict[str, Any] = {}
    shown = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, path.name, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), path.name, "eval"), names)
            (output,) = cell["outputs"]
            assert "".join(output["data"]["text/plain"]) == repr(value)
            shown += 1
    assert shown > 10
