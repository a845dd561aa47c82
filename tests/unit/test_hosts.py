"""Hosts that are not Linux on x86-64, simulated: what they lack is taken away here."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from trapgate.engine import emission
from trapgate.engine.library import host, layout, native
from trapgate.engine.translator import calibration
from trapgate.engine.unicorn_engine import open_engine
from trapgate.errors import EngineError

TINY = bytes.fromhex("b000 e6f4 f4")
"""Leaves with status 0: mov al, 0; out F4H, al; hlt."""

NO_PROC = """
from pathlib import Path
from trapgate.engine import emission
from trapgate.engine.translator import calibration
from trapgate.engine.library import host
from trapgate.engine.library import layout
from trapgate.engine.library import native
native._OWN_MEMORY = Path("no such file")
"""
"""As on macOS, and on Linux where a process may not look at its memory."""
NO_TERMIOS = """
import signal, sys
sys.modules["termios"] = None
del signal.SIGHUP
"""
"""As on Windows."""


def trapgate(setup: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = f"{setup}\nimport sys\nfrom trapgate.cli import app\napp(sys.argv[1:])"
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False
    )


@pytest.fixture
def guest(tmp_path: Path) -> str:
    file = tmp_path / "tiny.bin"
    file.write_bytes(TINY)
    return str(file)


def test_a_host_that_hides_memory_has_a_portable_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "_OWN_MEMORY", tmp_path / "absent")
    with pytest.raises(EngineError, match="does not show a process its memory"):
        open_engine(1 << 20, "native")
    engine = open_engine(1 << 20, "auto")
    assert engine.kind == "portable"
    assert "does not show a process its memory" in engine.why_not_native
    assert open_engine(1 << 20, "portable").why_not_native == "it was requested"


@pytest.mark.native
def test_the_native_engine_gives_no_reason() -> None:
    engine = open_engine(1 << 20, "auto")
    assert (engine.kind, engine.why_not_native) == ("native", "")


@pytest.mark.skipif(
    (sys.platform, sys.maxsize > 1 << 32) != ("linux", True), reason="native is for Linux"
)
def test_linux_has_the_native_engine_unless_memory_is_hidden() -> None:
    """Elsewhere tests that need it are skipped: here that must not go unnoticed."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("there is no /proc/self/mem")
    assert open_engine(1 << 20, "native").kind == "native"


@pytest.mark.parametrize("setup", [NO_PROC, NO_TERMIOS, NO_PROC + NO_TERMIOS])
@pytest.mark.parametrize("kind", ["auto", "portable"])
def test_run_elsewhere(setup: str, kind: str, guest: str) -> None:
    done = trapgate(setup, "run", guest, "--engine", kind, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    fell_back = kind == "auto" and NO_PROC in setup
    wanted = "portable" if fell_back or kind == "portable" else open_engine(1 << 20, "auto").kind
    assert answer["engine"] == wanted
    assert ("no native engine here" in done.stderr) == fell_back
    if answer["engine"] == "portable":
        assert answer["why_not_native"]
    else:
        assert "why_not_native" not in answer


def test_run_says_which_engine(guest: str) -> None:
    done = trapgate("", "run", guest, "--engine", "portable")
    assert done.returncode == 0, done.stderr
    assert "engine: portable: it was requested" in done.stderr
    done = trapgate(NO_PROC, "run", guest, "--engine", "native")
    assert done.returncode == 2
    assert "does not show a process its memory" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# The native engine's hosts.

X86_64_CODE = bytes.fromhex("4c8b87b8010000 418b80b08a0000 85c0")
"""mov r8, [rdi+1B8H]; mov eax, [r8+8AB0H]; test eax, eax."""
ARM64_CODE = bytes.fromhex("02dc40f9 034690d2 4300038b 638048b9")
"""ldr x2, [x0, #440]; mov x3, #33328; add x3, x2, x3; ldr w3, [x3, #2176]."""


@pytest.mark.parametrize(
    ("machine", "code", "place"),
    [
        ("x86_64", X86_64_CODE, 0x8AB0),
        ("x86_64", X86_64_CODE[:1] + b"\x8a" + X86_64_CODE[2:], -1),
        ("x86_64", X86_64_CODE.replace(b"\xb8\x01", b"\xc0\x01"), -1),
        ("x86_64", ARM64_CODE, -1),
        ("aarch64", ARM64_CODE, 33328 + 2176),
        ("aarch64", bytes([ARM64_CODE[0] + 4]) + ARM64_CODE[1:], -1),
        ("aarch64", X86_64_CODE + b"\x78\x00", -1),
    ],
)
def test_where_a_request_to_exit_stands(machine: str, code: bytes, place: int) -> None:
    assert host.HOSTS[machine].request(code) == place


def test_a_host_that_nobody_has_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(EngineError, match=r"x86-64 and arm64, not on .* on riscv64"):
        open_engine(1 << 20, "native")
    assert open_engine(1 << 20, "auto").kind == "portable"


@pytest.mark.native
def test_another_c_library_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CPU_SIZE", layout.CPU_SIZE + 112)
    with pytest.raises(EngineError, match=f"{layout.CPU_SIZE - 112} bytes into it"):
        open_engine(1 << 20, "native")
    assert open_engine(1 << 20, "auto").kind == "portable"


@pytest.mark.native
@pytest.mark.parametrize("name", ["UC", "LAST_OP", "ARGUMENTS"])
def test_another_layout_of_the_translator_is_noticed(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    calibration.check_translator()
    monkeypatch.setattr(emission, name, getattr(emission, name) + 8)
    with pytest.raises(EngineError, match="translator has another layout"):
        calibration.check_translator()
