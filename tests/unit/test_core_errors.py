"""What is not in the core's dialect is told with its line, and with what to write instead."""

import importlib.util
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trapgate.compiler.library import Library
from trapgate.compiler.program import alone
from trapgate.compiler.routine import DialectError, routine

_HEAD = """\
import sys
from typing import Any
import numpy as np
from trapgate.compiler.dialect import Cells, Memory, Rows
from trapgate.compiler import raw
from trapgate.compiler.raw import go_on, peek8, poke8

WIDE = 1 << 63
LEAST = -(1 << 63)
MOST = (1 << 63) - 1
TEXT = "text"
NARROW = np.zeros(3, np.int32)
TABLE = np.zeros((3, 3), np.int64)
NUMBERS = np.arange(3, dtype=np.int64)


def nothing(a: int) -> None:
    return None


def pair(a: int) -> tuple[int, int]:
    return a, a


def any_of(a: Any) -> Any:
    b = a + 1
    return b


def again(a: Any) -> Any:
    return again(a)  # a function with `Any` calls itself; give it types, or a loop


def no_result(a: Any) -> Any:  # it has no result; end it with `return`
    b = a


def statements(a: Any) -> Any:
    if a:  # a function with `Any` has names that get values, and then a result
        pass
    return a


"""
_numbers = iter(range(1 << 20))


def _module(folder: Path, source: str) -> ModuleType:
    name = f"core_errors_{next(_numbers)}"
    file = folder / f"{name}.py"
    file.write_text(_HEAD + textwrap.dedent(source).lstrip("\n"))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_OTHERS = ("nothing", "pair", "any_of", "again", "no_result", "statements")


def _compiled(module: ModuleType) -> Any:
    """The machine code of its `f`."""
    routine(module.f)
    machine_code: Any = alone(module.f, *(vars(module)[name] for name in _OTHERS))
    assert machine_code.built_in
    return machine_code


def _programs(file: str) -> list[tuple[str, str]]:
    """What stands over each program of a file, and the program."""
    text = (Path(__file__).parent / file).read_text()
    parts = [part.partition("\n") for part in text.split("\n## ")[1:]]
    return [(words, source) for words, _, source in parts]


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path) -> None:
    for words, source in _programs("core_wrong.txt"):
        module = _module(tmp_path, source)
        lines = Path(str(module.__file__)).read_text().splitlines()
        marked = next((n for n, line in enumerate(lines, 1) if line.endswith("# here")), None)
        if marked is None:
            marked = next(n for n, line in enumerate(lines, 1) if line.endswith(f"# {words}"))
        with pytest.raises(DialectError) as found:
            _compiled(module)
        assert str(found.value).startswith(f"{module.__file__}:{marked}: "), source
        assert words in str(found.value), source


def test_what_is_right_means_what_python_means(tmp_path: Path) -> None:
    for numbers, source in _programs("core_right.txt"):
        module = _module(tmp_path, source)
        machine_code = _compiled(module)
        for number in map(int, numbers.split(", ")):
            assert machine_code(number) == module.f(number), (source, number)


def test_a_function_inside_of_another_is_none() -> None:
    def inner(a: int) -> int:
        return a

    with pytest.raises(DialectError, match="inner does not stand at the top of its module"):
        alone(inner)(1)


def test_types_of_a_callback_are_as_many_as_its_parameters(tmp_path: Path) -> None:
    from trapgate.compiler.kinds import INT64

    module = _module(tmp_path, "def f(a: int, b: int) -> int:\n    return a")
    library = Library()
    library.callback(INT64, INT64)(module.f)
    with pytest.raises(DialectError, match="the types given to the mark are not as many"):
        library.made()


def test_a_stub_takes_integers_and_has_no_result(tmp_path: Path) -> None:
    for head in ("a: bool) -> None", "a: Cells) -> None", "a: int) -> bool"):
        module = _module(tmp_path, f"def f({head}:\n    return False")
        library = Library()
        library.stub(module.f)
        with pytest.raises(DialectError, match="a stub has parameters of type int, and no result"):
            library.made()
