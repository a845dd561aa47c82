"""The fault trace: its schema, writing it while the machine runs, reading it."""

from trapgate.trace.reader import Trace
from trapgate.trace.schema import SCHEMA, VERSION, TraceError
from trapgate.trace.writer import TraceWriter

__all__ = ["SCHEMA", "VERSION", "Trace", "TraceError", "TraceWriter"]
