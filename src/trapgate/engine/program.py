"""The engine's machine code as a whole: importing this marks every function that belongs to it."""

from trapgate.compiler.program import is_kept, machine_code
from trapgate.engine import hooks, translation, unicorn_engine, written_pages

__all__ = ["hooks", "is_kept", "machine_code", "translation", "unicorn_engine", "written_pages"]
