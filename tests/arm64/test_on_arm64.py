"""Trapgate on arm64 Linux, emulated by qemu-user: the same guests, with the same ends as here.

Asked for by `pytest -m arm64`; `tools/fetch-arm64` gets what it needs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.arm64

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "build" / "arm64" / "python"

CONFORMANCE = (
    "conformance/test_translation.py",
    "conformance/test_prefixes.py",
    "conformance/test_exits.py",
    "conformance/test_checked.py",
    "conformance/test_device_pages.py",
    "conformance/test_limits.py",
    "conformance/test_segment_limits.py",
    "conformance/test_sse_state.py",
    "conformance/test_undefined_code.py",
    "conformance/test_engines_agree.py",
    "conformance/test_one_at_a_time.py",
    "conformance/test_completed_writes.py",
    "conformance/test_fault_filters.py",
    "guests/test_small_handlers.py",
)
"""Files whose tests run on both engines."""
NO_SUBPROCESS = "not engines_of_others and not process"
"""A process of the emulated one's is not emulated."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled code is kept from one test to the next."""
    if not PYTHON.is_file():
        pytest.skip("tools/fetch-arm64 was not run")
    return tmp_path_factory.mktemp("cache")


Done = subprocess.CompletedProcess[str]


def on_arm64(cache: Path, *arguments: str, timeout: float = 600) -> Done:
    return subprocess.run(
        [str(PYTHON), *arguments],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def here(*arguments: str) -> Done:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False
    )


def answer(done: Done) -> Any:
    """The JSON that a command printed, without what differs from run to run."""
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    for part in found if isinstance(found, list) else [found]:
        part.pop("seconds")
        part.pop("why_not_native", None)
    return found


def guest(folder: Path, code: str) -> str:
    file = folder / "guest.bin"
    file.write_bytes(bytes.fromhex(code))
    return str(file)


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize(
    "code", ["b000 e6f4 f4", "f00fabc8", "0f0b"], ids=["leaves", "lock bts", "ud2"]
)
def test_a_guest_of_some_bytes(cache: Path, tmp_path: Path, engine: str, code: str) -> None:
    """LOCK BTS of a register makes an unguarded translator abort."""
    run = ("-m", "trapgate", "run", guest(tmp_path, code), "--json", "--engine", engine)
    assert answer(on_arm64(cache, *run)) == answer(here(*run))


@pytest.mark.parametrize("workload", ["fork", "storm"])
def test_the_bundled_guest_takes_the_same_faults(cache: Path, workload: str) -> None:
    run = ("-m", "trapgate", "demo", "--workload", workload, "--json", "--engine", "native")
    assert answer(on_arm64(cache, *run, timeout=1800)) == answer(here(*run))


@pytest.mark.parametrize("file", CONFORMANCE)
def test_conformance(cache: Path, file: str) -> None:
    """With a layout that was measured, stubs that LLVM made for arm64, and both engines."""
    done = on_arm64(
        cache,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"),
        *("-k", NO_SUBPROCESS, f"tests/{file}"),
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
