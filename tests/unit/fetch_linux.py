"""tools/fetch-linux as a module: its name is no module's."""

import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType

PROGRAM = Path(__file__).parents[2] / "tools" / "fetch-linux"


def fetch_linux() -> ModuleType:
    """The program, loaded but not run."""
    loader = importlib.machinery.SourceFileLoader("fetch_linux", str(PROGRAM))
    specification = importlib.util.spec_from_loader("fetch_linux", loader)
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    loader.exec_module(module)
    return module
