"""Pages and pictures made from traces.

`page` is a trace as a page that opens offline, `cube` and `chains` count for it, `answer` is the
page around an answer. It imports `replay`, `trace` and below. Begin with `page`.
"""

from trapgate.report.page import report

__all__ = ["report"]
