"""Traces of real hosts and of other emulators, read into the fault trace's columns.

`importer` finds out what a file is and hands it to a reader, `points` is what readers of Linux's
traces make of it, `pairing` and `exits` make events of points, `assembler` writes rows. It imports
the rest of `trace`, and `compiler` for its readers. Begin with `importer`.
"""

from trapgate.trace.imports.importer import FORMATS, Imported, import_trace
from trapgate.trace.imports.rows import Counters

__all__ = ["FORMATS", "Counters", "Imported", "import_trace"]
