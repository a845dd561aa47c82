"""HTML pages about traces and answers.

`page` writes the page about a trace from `cube`, a table of counts that its script filters;
`answer` makes a page of any other answer. It may import `replay` and below, and never reaches the
engine. Begin with `page.report`.
"""

from trapgate.report.page import report

__all__ = ["report"]
