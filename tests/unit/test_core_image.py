"""Images: linked, kept in one file, trusted only if nobody else could have made them."""

import ctypes
import hashlib
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trapgate.compiler import cache, elf, image
from trapgate.compiler.image import Image, Placed, unpacked
from trapgate.compiler.kinds import INT64
from trapgate.compiler.library import Library
from trapgate.compiler.raw import call
from trapgate.compiler.target import IS_LINUX_X86_64
from trapgate.errors import EngineError

pytestmark = pytest.mark.skipif(not IS_LINUX_X86_64, reason="images are for Linux on x86-64")

_IMAGE = Image(b"\xc3", {"c f": (0, 1)}, None)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "trapgate"


def test_a_file_holds_what_was_kept(home: Path) -> None:
    assert cache.load("core", "key") is None
    cache.save("core", "key", _IMAGE)
    assert cache.load("core", "key") == _IMAGE
    assert cache.load("core", "other") is None
    assert [file.name for file in home.iterdir()] == [cache.file("core").name]
    assert home.stat().st_mode & 0o777 == 0o700
    assert cache.file("core").stat().st_mode & 0o077 == 0


def test_what_is_kept_later_takes_its_place(home: Path) -> None:
    other = Image(b"\x90\xc3", {}, 1)
    cache.save("core", "key", _IMAGE)
    cache.save("core", "later", other)
    assert cache.load("core", "later") == other
    assert len(list(home.iterdir())) == 1


def test_kinds_are_kept_apart(home: Path) -> None:
    cache.save("core", "key", _IMAGE)
    assert cache.load("core-checked", "key") is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda data: data[:-1], "damaged"),
        (lambda data: data[:20], "too short"),
        (lambda data: b"", "too short"),
        (lambda data: data[:-1] + b"\xcc", "damaged"),
        (lambda data: b"\x7fELF" + data[4:], "something else"),
        (lambda data: data + b"\x90", "damaged"),
    ],
)
def test_a_damaged_file_is_left_out_and_said_once(
    home: Path, caplog: pytest.LogCaptureFixture, change: Any, word: str
) -> None:
    cache.save("core", "key", _IMAGE)
    file = cache.file("core")
    file.write_bytes(change(file.read_bytes()))
    assert cache.load("core", "key") is None
    (line,) = caplog.messages
    assert str(file) in line
    assert word in line
    cache.save("core", "key", _IMAGE)
    assert cache.load("core", "key") == _IMAGE
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("text", [b"null", b'{"key": "key"}', b'{"key": "key", "functions": 3}'])
def test_a_file_of_another_form_is_damaged(text: bytes) -> None:
    rest = struct.pack("<I", len(text)) + text
    with pytest.raises(ValueError, match="another way"):
        unpacked(b"Trapgate" + hashlib.sha256(rest).digest() + rest, "key")


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_could_write_is_not_executed(
    home: Path, caplog: pytest.LogCaptureFixture, what: str, mode: int
) -> None:
    cache.save("core", "key", _IMAGE)
    target = cache.file("core") if what == "file" else home
    target.chmod(0o700 | mode)
    assert cache.load("core", "key") is None
    assert "by others" in caplog.text


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_belongs_to_somebody_else_is_not_executed(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    cache.save("core", "key", _IMAGE)
    if os.geteuid() == 0:
        os.chown(cache.file("core") if what == "file" else home, 65534, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert cache.load("core", "key") is None
    assert "somebody else" in caplog.text


def test_a_link_and_a_pipe_are_not_followed(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.save("core", "key", _IMAGE)
    file = cache.file("core")
    elsewhere = file.with_name("elsewhere")
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    assert cache.load("core", "key") is None
    file.unlink()
    os.mkfifo(file, 0o600)
    assert cache.load("core", "key") is None
    assert len(caplog.messages) == 2


def test_where_nothing_can_be_kept_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere))
    cache.save("core", "key", _IMAGE)
    assert "cannot be kept" in caplog.text
    assert "XDG_CACHE_HOME" in caplog.text


def test_a_relative_folder_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert cache.folder() == Path.home() / ".cache" / "trapgate"


def test_old_images_are_removed(home: Path) -> None:
    cache.save("core", "key", _IMAGE)
    old_folder = home / ("0" * 16)
    old_folder.mkdir()
    (old_folder / "core.image").write_bytes(b"")
    unused, used, foreign = (
        home / f"core-{'1' * 16}.image",
        home / f"core-{'2' * 16}.image",
        home / "x",
    )
    for file in (unused, used, foreign):
        file.write_bytes(b"")
    os.utime(unused, (0, 0))
    os.utime(foreign, (0, 0))
    cache.save("core", "key", _IMAGE)
    assert {file.name for file in home.iterdir()} == {
        cache.file("core").name,
        used.name,
        foreign.name,
    }


def test_what_is_used_is_not_old(home: Path) -> None:
    cache.save("core", "key", _IMAGE)
    os.utime(cache.file("core"), (0, 0))
    assert cache.load("core", "key") == _IMAGE
    assert cache.file("core").stat().st_mtime > 0


# Whole processes.

_RUN = """
from trapgate.engine import program
kept = program.is_kept()
program.machine_code()
print(kept)
"""


def _started(home: Path, **more: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "XDG_CACHE_HOME": str(home.parent), **more}
    return subprocess.Popen(
        [sys.executable, "-c", _RUN],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once_and_a_third_later(home: Path) -> None:
    both = [_started(home) for _ in range(2)]
    for process in both:
        out, errors = process.communicate(timeout=300)
        assert (out, errors, process.returncode) == ("False\n", "", 0)
    out, errors = _started(home).communicate(timeout=300)
    assert (out, errors) == ("True\n", "")
    assert len(list(home.iterdir())) == 1
    # A flipped bit: said in one line, and mended.
    (file,) = home.iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    out, errors = _started(home).communicate(timeout=300)
    assert out == "False\n"
    assert errors.count("\n") == 1
    assert "damaged" in errors
    assert _started(home).communicate(timeout=300) == ("True\n", "")


def test_without_the_compiler_it_is_said_how_to_get_it(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['llvmlite'] = None\n" + _RUN
    done = subprocess.run(
        [sys.executable, "-c", hidden],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'trapgate[compiler]'" in done.stderr.splitlines()[-1]


# Code in memory.


def ask(address: int, number: int) -> int:
    """Call C."""
    return call(address, (number,)) + 1


@pytest.fixture(scope="module")
def asking() -> tuple[Any, Image]:
    """`ask` for Python, and its image."""
    library = Library()
    entry: Any = library.entry(ask)
    return entry, library.made()


def test_code_cannot_be_written(asking: tuple[Any, Image]) -> None:
    placed = Placed(asking[1])
    start = placed.address(next(iter(asking[1].functions)))
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high, rights = re.match(r"(\w+)-(\w+) (\S+)", line).groups()  # type: ignore[union-attr]
        if int(low, 16) <= start < int(high, 16):
            assert rights == "r-xp"
            return
    pytest.fail("it is not in memory")


def test_unwinders_see_through_compiled_code(asking: tuple[Any, Image]) -> None:
    """A backtrace from below compiled code reaches what called it."""
    libc = ctypes.CDLL(None)
    found: list[list[int]] = []

    def look(number: int) -> int:
        frames = (ctypes.c_void_p * 100)()
        count = libc.backtrace(frames, 100)
        found.append([frames[n] or 0 for n in range(count)])
        return number

    callback = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(look)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    assert asking[0](address, 4) == 5
    (frames,) = found
    inside = [n for n, frame in enumerate(frames) if _is_anonymous_code(frame)]
    assert inside, "no frame of compiled code"
    assert len(frames) > max(inside) + 3, "what called compiled code is not seen"


def _is_anonymous_code(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split()
        low, high = (int(end, 16) for end in fields[0].split("-"))
        if low <= address < high:
            return fields[1] == "r-xp" and len(fields) == 5
    return False


def test_perf_is_told_of_functions_on_request(
    asking: tuple[Any, Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(image.PERF_MAP, "1")
    file = Path(f"/tmp/perf-{os.getpid()}.map")
    before = file.read_text() if file.exists() else ""
    try:
        placed = Placed(asking[1])
        lines = file.read_text()[len(before) :].splitlines()
        expected = {
            f"{placed.address(name):x} {size:x} {name}"
            for name, (_, size) in asking[1].functions.items()
        }
        assert set(lines) == expected
        assert len(lines) >= 1
    finally:
        file.unlink()


def test_a_map_that_is_no_file_of_ours_is_refused(
    asking: tuple[Any, Image], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(image.PERF_MAP, "1")
    file = Path(f"/tmp/perf-{os.getpid()}.map")
    victim = tmp_path / "victim"
    victim.write_text("")
    file.symlink_to(victim)
    try:
        with pytest.raises(EngineError, match=r"perf-\d+\.map"):
            Placed(asking[1])
    finally:
        file.unlink()
    assert victim.read_text() == ""


def test_code_that_needs_something_from_outside_is_not_linked() -> None:
    from trapgate.compiler import llvm

    text = """
declare i64 @strlen(ptr)
define i64 @f(ptr %p) {
%n = call i64 @strlen(ptr %p)
ret i64 %n
}
"""
    with pytest.raises(EngineError, match="strlen"):
        elf.linked(*llvm.object_files(text))


def test_code_with_an_address_of_its_own_in_it_is_not_linked() -> None:
    from trapgate.compiler import llvm

    text = "define void @f() {\nret void\n}\n@where = global ptr @f"
    with pytest.raises(EngineError, match=r"'f' \(relocation 1\)"):
        elf.linked(*llvm.object_files(text))


def test_sections_are_aligned_as_they_ask() -> None:
    from trapgate.compiler import llvm

    text = """
@one = hidden constant i8 1
@aligned = hidden constant i64 2, align 64
define i64 @f() {
%sum = ptrtoint ptr @aligned to i64
ret i64 %sum
}
"""
    placed = Placed(elf.linked(*llvm.object_files(text)))
    assert ctypes.CFUNCTYPE(ctypes.c_int64)(placed.address("f"))() % 64 == 0


_TWO_TEMPERATURES = """
@table = private unnamed_addr constant [2 x i64] [i64 30, i64 12]
define internal i64 @seldom(i64 %n) cold {
%place = getelementptr i64, ptr @table, i64 %n
%first = load i64, ptr %place
%second = call i64 @often(i64 1)
%sum = add i64 %first, %second
ret i64 %sum
}
define internal i64 @often(i64 %n) noinline {
%small = icmp ult i64 %n, 2
br i1 %small, label %known, label %unknown
known:
%place = getelementptr i64, ptr @table, i64 %n
%found = load i64, ptr %place
ret i64 %found
unknown:
%asked = call i64 @seldom(i64 0)
ret i64 %asked
}
define i64 @f(i64 %n) {
%found = call i64 @often(i64 %n)
ret i64 %found
}
"""


def test_cold_functions_have_an_object_file_of_their_own_and_are_linked_to_the_others() -> None:
    from trapgate.compiler import llvm

    made = llvm.object_files(_TWO_TEMPERATURES)
    assert len(made) == 2
    whole = elf.linked(*made)
    assert {"seldom", "often", "f"} == set(whole.functions)
    placed = Placed(whole)
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(placed.address("f"))
    assert [function(n) for n in range(3)] == [30, 12, 42]


def test_unwind_information_of_all_object_files_is_one_list() -> None:
    from trapgate.compiler import llvm

    made = elf.linked(*llvm.object_files(_TWO_TEMPERATURES))
    assert made.frames is not None
    at, frames = made.frames, set()
    while length := int.from_bytes(made.code[at : at + 4], "little"):
        if kind := int.from_bytes(made.code[at + 4 : at + 8], "little"):
            start = int.from_bytes(made.code[at + 8 : at + 12], "little", signed=True)
            assert made.code[at + 4 - kind + 4 : at + 8 - kind + 4] == bytes(4)  # its common part
            frames.add(at + 8 + start)
        at += 4 + length
    assert frames == {start for start, _ in made.functions.values()}


def test_hot_functions_are_functions_of_the_core() -> None:
    from trapgate.compiler import program
    from trapgate.compiler.routine import routine

    program.machine_code()
    hot = program.HOT.read_text().split()
    known = {routine(one).symbol for one in program.LIBRARY.functions}
    assert set(hot) <= known, "take these lines out of hot_functions.txt, or rename them there"
    assert hot == sorted(set(hot))


def test_a_callback_is_called_from_c() -> None:
    library = Library()
    made = library.callback(INT64, INT64, INT64)(ask)
    square = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(lambda n: n * n)
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(made.address)
    assert function(ctypes.cast(square, ctypes.c_void_p).value, 7) == 50


_OUTLIVES = """
import gc
from trapgate.compiler import python_call
function = python_call.built_in("name", 1)
vars(python_call).clear()
gc.collect()
print(function.__name__)
"""


def test_functions_outlive_the_module_that_made_them() -> None:
    # At the end of a process modules go first, in some order.
    told = subprocess.run(
        [sys.executable, "-c", _OUTLIVES],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONMALLOC": "debug"},
    )
    assert (told.returncode, told.stdout) == (0, "name\n")
