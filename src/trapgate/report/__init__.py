"""Pages and pictures made from traces."""

from trapgate.report.page import report

__all__ = ["report"]
