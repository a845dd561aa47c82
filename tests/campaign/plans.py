"""Small plans for the bundled guest."""

from pathlib import Path

from trapgate.campaign.campaign import create, prepare, run
from trapgate.campaign.plan import Plan, parse_plan
from trapgate.campaign.results import Results

HEAD = """
title = "small"
[guest]
kernel = "bundled"
workload = "demand"
append = "timer=off"
[golden]
begin = { instructions = 10_200_000 }
end = { instructions = 3000 }
[outcomes]
detected = ["panic: "]
"""
EVENTS = """
[[target]]
event = ["PF(code=2,cr2=0x1000)", "GP(0x10)", "NMI"]
[when]
every = 20
"""
REGISTERS = """
[[target]]
register = ["EAX", "ESP"]
bits = "0-15"
[when]
every = 100
"""


def plan(body: str = EVENTS, head: str = HEAD) -> Plan:
    return parse_plan(head + body, "plan.toml", Path())


def finished(body: str, folder: Path, head: str = HEAD, workers: int = 1) -> Results:
    """The results of a campaign that has been run to its end."""
    wanted = plan(body, head)
    results = create(prepare(wanted), folder)
    for _ in run(wanted, results, workers):
        pass
    return results
