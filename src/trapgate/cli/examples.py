"""The end of the `--help` of commands in groups: examples, one a line."""

from typing import Final

_LINES: Final = {
    "campaign plan": ("fault-handler", "flips.toml --json"),
    "campaign run": ("fault-handler", "flips.toml --output flips --workers 8"),
    "campaign stat": ("flips",),
    "campaign diff": ("isolation-exit-on-all.campaign isolation-figure-8.campaign",),
    "campaign report": ("flips -o flips.html",),
    "campaign show": ("flips 4711 --trace run.parquet", "flips 4711 --gdb 1234"),
    "campaign sql": ('flips "select outcome, sum(weight) from runs group by all"',),
    "criteria define": (
        "wishes.toml -o filter.toml",
        "wishes.toml --scheme auto --fields 4 --weights faults.parquet",
    ),
    "criteria merge": (
        "l0.toml l1.toml -o both.toml",
        "l0.toml l1.toml --format kvm-c -o merge.c",
    ),
    "criteria explain": ("filter.toml --no-table", "filter.toml --html filter.html"),
    "criteria check": ("wishes.toml filter.toml", "l0.toml l1.toml vmcs02.toml"),
    "criteria learn": ("faults.parquet --hold-out 0.25", "marked.parquet --by page --by cpl"),
    "trace stat": (
        "host.parquet --symbols System.map",
        "monday.parquet --beside tuesday.parquet --html compared.html",
    ),
    "trace head": ("faults.parquet -n 20",),
    "trace export": ("host.parquet --perfetto host.perfetto --csv host.csv",),
}
"""Of each command, what may follow its name."""


def examples(command: str) -> str:
    """What is below a command's options. Typer makes a paragraph of each line."""
    lines = (f"  trapgate {command} {line}" for line in _LINES[command])
    return "\n\n".join(("\nExamples:", *lines))
