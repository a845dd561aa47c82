"""The engine's machine code as a whole: importing this marks every function that belongs to it."""

import pkgutil
from importlib import import_module

from trapgate import engine
from trapgate.compiler.program import is_kept, machine_code

__all__ = ["is_kept", "machine_code"]

for _module in pkgutil.walk_packages(engine.__path__, f"{engine.__name__}."):
    import_module(_module.name)
