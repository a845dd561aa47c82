"""Takes off what dmesg, consoles, logs, mail programs and forums put around the lines of a dump."""

import re

_PREFIX = re.compile(
    r"""^(?:
      \s+
    | (?:>\s?)+
    | <\d{1,3}>
    | (?:[A-Z][a-z]{2}\s+\d{1,2}\s\d\d:\d\d:\d\d(?:\.\d+)?\s\S+\s)(?=\S*kernel|\S*xen)
    | \d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[^\s|]*(?:[ ]\S+(?=[ ](?:kernel|xen)))?[ ]?
    | \d\d:\d\d:\d\d\.\d+\s
    | (?:kernel|xen\S*)(?:\[\d+\])?:\s
    | \[\s*\d+[.,]\d+\]
    | haxm_\w+:\s
    | \(\d\d:\d\d:\d\d\.\d+\s-\score\s:\s\d+[^)]*\)
    | \[[+*!-]\]\s\w+\s(?:\([^)]*\)\s)?\|\s
    | \[\s*[TC]\d+\]
    | kvm(?:_intel)?(?:\s\[\d+\])?:\s
    | \(XEN\)\s?(?:\[[^\]]*\])?
    | \d+[dieps]\[[^\]]*\]
    | \[CPU\d+\s*\][dieps]\|
    | HM:\sCPU\[\d+\]\s
    | HM:\s
    | \|\s*(?:vcpu-\d+|vmx)\|(?:\s*\w{1,2}\d{3}[:+])?
    )""",
    re.VERBOSE,
)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PRINTABLE = re.compile(r"[^\n\t\x20-\x7e]")


def bare_lines(text: str) -> list[str]:
    """The lines of `text` without what is before them, and without what no dump contains."""
    text = _ANSI.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    if "=3D" in text:  # a mail as it went over the wire
        text = text.replace("=\n", "").replace("=3D", "=")
    return [_bare(line) for line in _PRINTABLE.sub(" ", text).split("\n")]


def _bare(line: str) -> str:
    while found := _PREFIX.match(line):
        line = line[found.end() :]
    return line.rstrip()
