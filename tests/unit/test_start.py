"""What is imported when: a command that needs little starts quickly."""

import ast
import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from trapgate.cli import COMMANDS
from trapgate.compiler.library import NAMED


def _loaded_by(arguments: list[str]) -> set[str]:
    code = f"""
import sys
from trapgate.cli import app
try:
    app({arguments!r})
except SystemExit as end:
    assert end.code == 0, end.code
import json
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_help_imports_no_command() -> None:
    loaded = _loaded_by(["--help"])
    assert not {f"trapgate.cli.{name}" for name in COMMANDS} & loaded
    assert not {"numpy", "rich", "unicorn"} & loaded


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_no_other(command: str) -> None:
    loaded = _loaded_by([command, "--help"])
    assert {name for name in COMMANDS if f"trapgate.cli.{name}" in loaded} == {command}
    assert not {"numpy", "rich", "unicorn"} & loaded


def test_a_run_imports_what_it_needs(tmp_path: Path) -> None:
    guest = tmp_path / "hlt.bin"
    guest.write_bytes(b"\xf4")
    arguments = ["run", str(guest), "--memory", "16M", "--json"]
    _loaded_by(arguments)  # compiles, perhaps
    loaded = _loaded_by(arguments)
    unused = {"llvmlite", "pyarrow", "rich", "polars", "html"}
    assert not {*unused, "trapgate.compiler.module"} & loaded


def test_a_run_that_ends_well_imports_no_explanations(tmp_path: Path) -> None:
    guest = tmp_path / "exit.bin"
    guest.write_bytes(bytes.fromhex("fa31c0e6f4"))  # cli; xor eax, eax; out 0f4h, al
    loaded = _loaded_by(["run", str(guest), "--memory", "16M", "--json"])
    assert not {name for name in loaded if name.startswith("trapgate.debug")}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_commands_says_what_they_say(command: str) -> None:
    module = import_module(f"trapgate.cli.{command}")
    told = module.app.info.help if hasattr(module, "app") else getattr(module, command).__doc__
    assert COMMANDS[command] == told.splitlines()[0]


def test_machine_code_depends_on_no_source_that_its_key_leaves_out() -> None:
    """What functions get from other modules of ours comes from rooms that the key looks at."""
    import trapgate.engine.program
    import trapgate.trace.imports.importer
    import trapgate.vmm.direct.linking

    root = Path(trapgate.__file__).parent
    for library in NAMED.values():
        sources = library.sources()
        used: dict[Path, set[str]] = {}
        for function in (*library._core.values(), *library._functions):
            names = used.setdefault(Path(inspect.getfile(function)), set())
            names.update(function.__code__.co_names)
        for file, names in used.items():
            if root not in file.parents:
                continue  # a test's own
            for node in ast.parse(file.read_text()).body:
                if not isinstance(node, ast.ImportFrom):
                    continue
                for one in node.names:
                    if (one.asname or one.name) not in names:
                        continue
                    parts = f"{node.module}.{one.name}".split(".")[1:]
                    places = (root.joinpath(*parts), root.joinpath(*parts[:-1]))
                    found = [place.with_suffix(".py") for place in places]
                    file_of_it = next((place for place in found if place.is_file()), None)
                    if file_of_it is not None:
                        assert file_of_it in sources, f"{file} uses {one.name}"


def test_no_module_of_the_engine_is_too_late_for_the_machine_code() -> None:
    code = """
import pkgutil
from importlib import import_module
from trapgate.compiler.program import LIBRARY
LIBRARY.code
from trapgate import engine
for module in pkgutil.walk_packages(engine.__path__, "trapgate.engine."):
    import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
