"""The fault trace: its schema, the writer, the reader, and conversions.

`schema` has the columns, `writer` appends rows while the machine runs, `reader` reads them;
`imports` reads recordings of other tools, `stat` and `export` evaluate and convert traces. It may
import `vmcs`, `decision` and below. Begin with `schema`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapgate.trace.reader import Trace
    from trapgate.trace.schema import SCHEMA, VERSION, TraceError
    from trapgate.trace.writer import TraceWriter

__all__ = ["SCHEMA", "VERSION", "Trace", "TraceError", "TraceWriter"]

_HOMES = {
    "SCHEMA": "schema",
    "VERSION": "schema",
    "Trace": "reader",
    "TraceError": "schema",
    "TraceWriter": "writer",
}
"""Which module each name comes from: with all of them comes pyarrow, which few runs need."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
