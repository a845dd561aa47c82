"""Recordings of real hosts and of other emulators, read into the fault trace's columns.

A reader for each format produces points, one for each trace-point record, which `pairing` combines
into events; docs/architecture.md has the whole sequence. It may import what `trace` may. Begin with
`importer.import_trace`.
"""

from trapgate.trace.imports.importer import FORMATS, Imported, import_trace
from trapgate.trace.imports.rows import Counters

__all__ = ["FORMATS", "Counters", "Imported", "import_trace"]
