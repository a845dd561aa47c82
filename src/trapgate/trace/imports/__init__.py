"""Traces of real hosts and of other emulators, read into the fault trace's columns."""

from trapgate.trace.imports.importer import FORMATS, Imported, import_trace
from trapgate.trace.imports.rows import Counters

__all__ = ["FORMATS", "Counters", "Imported", "import_trace"]
