"""The command line as users meet it: whole processes, real terminals, bad input."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trapgate import guests
from trapgate.trace import Trace

LOOP = b"\xeb\xfe" + bytes(30)
# LIDT of a null IDT, then UD2: every delivery fails.
NO_IDT = bytes.fromhex("0f011d20001000 0f0b") + bytes(39)


def trapgate(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trapgate", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    path = tmp_path / "loop.bin"
    path.write_bytes(LOOP)
    return path


def test_the_bundled_guest_runs_and_its_summary_is_json() -> None:
    done = trapgate(
        "run", str(guests.IMAGE_PATH), "--memory", "16M", "--append", "workload=swap", "--json"
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["end"] == "debug exit"
    assert answer["faults"]["14"]["DELIVER"] > 1000
    assert "workload swap checksum DC0E67A8" in done.stderr


def test_the_demo_says_that_the_output_was_the_same() -> None:
    done = trapgate("demo", "--paging", "own", "--workload", "swap", "--json")
    assert done.returncode == 0, done.stderr
    every, some, none = json.loads(done.stdout)
    assert every["output_sha256_12"] == some["output_sha256_12"] == none["output_sha256_12"]
    assert every["faults"]["14"]["EXIT"] > some["faults"]["14"].get("EXIT", 0)
    assert "EXIT" not in none["faults"]["14"]


def test_a_failing_guest_gives_status_1() -> None:
    done = trapgate("run", str(guests.IMAGE_PATH), "--append", "workload=nonsense")
    assert done.returncode == 1
    assert "unknown workload 'nonsense'" in done.stdout


@pytest.mark.parametrize(("options", "status"), [((), 127), (("--testdev",), 10)])
def test_what_test_guests_look_for_has_to_be_asked_for(
    options: tuple[str, ...], status: int, tmp_path: Path
) -> None:
    # mov al, 10; out E0H, al; in al, E0H; out F4H, al. Without the device the port reads as ones.
    guest = tmp_path / "guest.bin"
    guest.write_bytes(bytes.fromhex("b00a e6e0 e4e0 e6f4"))
    done = trapgate("run", str(guest), "--memory", "16M", "--json", *options)
    assert json.loads(done.stdout)["message"] == f"the guest exited with status {status}"


def test_a_triple_fault_prints_the_whole_chain(tmp_path: Path) -> None:
    path = tmp_path / "no-idt.bin"
    path.write_bytes(NO_IDT)
    done = trapgate("run", str(path))
    assert done.returncode == 1
    line = next(line for line in done.stderr.splitlines() if line.startswith("triple fault"))
    assert re.findall(r"#\w+", line) == ["#UD", "#GP", "#GP", "#DF", "#GP"]
    assert "fault #UD at RIP 0x100007" in line
    assert "nested fault #GP at RIP 0x100007, error code 0x33" in line


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--max-instructions", "100000", "instructions executed"),
        ("--timeout", "0.3", "out of time"),
    ],
)
def test_a_guest_that_never_ends_is_ended(flat: Path, option: str, value: str, word: str) -> None:
    done = trapgate("run", str(flat), option, value)
    assert done.returncode == 1
    assert word in done.stderr


BAD = {
    "no file": (["run", "missing.bin"], "missing.bin: file: No such file"),
    "no size": (["run", "{guest}", "--memory", "lots"], "--memory: 'lots' is not a size"),
    "little memory": (["run", "{guest}", "--memory", "1M"], "--memory 2M or more"),
    "bad expression": (["run", "{guest}", "--until", "("], "--until"),
    "no such folder": (["run", "{guest}", "--trace", "/nowhere/x.parquet"], "/nowhere/x.parquet"),
    "bad TOML": (["run", "{guest}", "--vmcs", "{toml:fields=[}"], "TOML"),
    "unknown field": (
        ["run", "{guest}", "--vmcs", "{toml:[fields]\nEXCEPTION_BITMAPP = 1}"],
        "did you mean EXCEPTION_BITMAP?",
    ),
    "too wide": (
        ["run", "{guest}", "--vmcs", "{toml:[fields]\nEXCEPTION_BITMAP = 0x1_0000_0000}"],
        "32 bits",
    ),
    "PTBASE is not aligned": (
        ["run", "{guest}", "--paging", "direct", "--vmcs", "{toml:[fields]\nPTBASE = 0xC0000123}"],
        "PTBASE: 0xc0000123 is not 4 MB aligned; give the self-mapped tables' linear address",
    ),
    "a filter under vt-x": (
        [
            "run",
            "{guest}",
            "--vmcs",
            '{toml:profile="vt-x"\n[fields]\nFAULT_FILTER="figure-8"}',
        ],
        'FAULT_FILTER: is an extension; use profile "extended"',
    ),
    "memory for direct paging": (
        ["run", "{guest}", "--paging", "direct", "--protect", "entries", "--memory", "15M"],
        "not a multiple of 4 MiB, the unit of direct paging; ask for 16M",
    ),
    "protection without direct paging": (
        ["run", "{guest}", "--protect", "frames"],
        "--protect is for direct paging; give --paging direct, too",
    ),
    "a frame map on the portable engine": (
        ["run", "{guest}", "--paging", "direct", "--protect", "frames", "--engine", "portable"],
        "a frame map needs the native engine",
    ),
    "a folder to save in": (
        ["run", "{guest}", "--save", "/"],
        "/ is a directory; name a file in it",
    ),
    "a number that is none": (["run", "{guest}", "--inject", "PF(cr2=x)@5"], "write it as PF("),
    "a report that is a folder": (
        ["demo", "--paging", "own", "--report", "/"],
        "--report: / cannot be a file; name one in an existing folder",
    ),
    "no workload": (["demo", "--workload", "nonsense"], "choose from"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(name: str, tmp_path: Path) -> None:
    arguments, words = BAD[name]
    given = []
    for argument in arguments:
        if argument.startswith("{toml:"):
            path = tmp_path / "bad.toml"
            path.write_text(argument[6:-1])
            argument = str(path)
        given.append(argument.replace("{guest}", str(guests.IMAGE_PATH)))
    done = trapgate(*given)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


FIGURE_8 = """
[controls]
exceptions = ["PF"]
[fields]
FAULT_FILTER = "figure-8"
PTBASE = {base}
"""
IN_VAIN = {
    "no paging": (["--paging", "direct"], "{flat}", 0xC000_0000, "never turned paging on"),
    "not self-mapping": (
        [],
        "{guest}",
        0xC040_0000,
        "not where the guest's page directory maps",
    ),
    "not self-mapping, direct": (
        ["--paging", "direct"],
        "{guest}",
        0xC040_0000,
        "set PTBASE to that address",
    ),
    "writable tables": ([], "{guest}", 0xC000_0000, "with --paging direct the VMM makes"),
}


@pytest.mark.parametrize("name", IN_VAIN)
def test_who_asks_for_a_filter_in_vain_is_told_so(name: str, tmp_path: Path) -> None:
    options, guest, base, words = IN_VAIN[name]
    (tmp_path / "halt.bin").write_bytes(b"\xfa\xf4" + bytes(30))
    (tmp_path / "filter.toml").write_text(FIGURE_8.format(base=base))
    path = {"{flat}": str(tmp_path / "halt.bin"), "{guest}": str(guests.IMAGE_PATH)}[guest]
    done = trapgate(
        *("run", path, "--memory", "16M", "--append", "workload=aging"),
        *("--vmcs", str(tmp_path / "filter.toml"), *options),
    )
    assert done.returncode in (0, 1)
    assert sum(words in line for line in done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("contents", [b"", b"\x7fELF", b"\x7fELF" + b"\xff" * 200, b"MZ" * 300])
def test_nonsense_for_a_guest_is_refused(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "guest"
    path.write_bytes(contents)
    done = trapgate("run", str(path), "--max-instructions", "1000")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_interrupting_ends_the_run_with_a_summary_and_a_readable_trace(
    flat: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.parquet"
    command = [sys.executable, "-m", "trapgate", "run", str(flat), "--trace", str(trace), "--json"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        # The trace is made right before the guest starts.
        for _ in range(600):
            if trace.exists():
                break
            time.sleep(0.05)
        time.sleep(0.7)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=30)
    assert running.returncode == 1
    assert json.loads(out)["end"] == "interrupted"
    assert Trace(trace).complete


def read_until(terminal: int, text: bytes, seconds: float = 60) -> bytes:
    seen = b""
    end = time.monotonic() + seconds
    while text not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                seen += os.read(terminal, 4096)
            except OSError:
                break
    return seen


# Reads a byte from the serial port when there is one, adds one, and sends it back.
ECHO = bytes.fromhex("66bafd03 ec a801 74f7 66baf803 ec fec0 ee ebed") + bytes(30)


def test_an_interactive_run_echoes_and_is_left_with_ctrl_a_x(tmp_path: Path) -> None:
    path = tmp_path / "echo.bin"
    path.write_bytes(ECHO)
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "trapgate", "run", str(path)])
    try:
        time.sleep(2)
        os.write(terminal, b"HAL")
        assert b"IBM" in read_until(terminal, b"IBM")
        os.write(terminal, b"\x01x")
        assert b"ended by Ctrl-A x" in read_until(terminal, b"million/s)")
        _, status = os.waitpid(child, 0)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("how", ["frames", "entries"])
def test_direct_paging_says_what_filters_saved(how: str) -> None:
    done = trapgate(
        *("run", str(guests.IMAGE_PATH), "--append", guests.command_line("swap")),
        *("--paging", "direct", "--protect", how, "--memory", "16M", "--json"),
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    if how == "frames":
        writes = answer["table_writes"]
        # The default leaves last-level tables open, so that hardly a write is stopped.
        assert sum(writes["completed"].values()) < 200
        assert sum(writes["exited"].values()) < 20
    else:
        assert "table_writes" not in answer
