"""Wishes over all that faults tell, as they are written.

```toml
default = "deliver"             # what no wish names: "deliver", "exit" or "free"

[[wishes]]                      # the first that matches counts
when = "vector == PF and cpl == 3 and below_stack <= 64"
then = "deliver"                # or "exit", "free"
```
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from trapgate.criteria.errors import SpecError
from trapgate.decision.conditions import Names
from trapgate.decision.criteria_rules import Action, Rule
from trapgate.errors import suggestion
from trapgate.tomlfile import demand_known, parse_toml, read_toml
from trapgate.vmcs.file import rules_of

_GOALS: Final = {"exit": Action.EXIT, "deliver": Action.DELIVER, "free": Action.NEXT}


@dataclass(frozen=True)
class FaultWishes:
    """Wishes in their order: `rules` whose action is EXIT, DELIVER, or NEXT for "free"."""

    rules: tuple[Rule, ...]
    default: Action = Action.DELIVER
    path: str = ""


def read_wishes(path: Path, names: Names | None = None) -> FaultWishes:
    """The wishes in a file, whose conditions may use `names`.

    Raises SpecError, also for a condition that cannot be read.
    """
    return parse_wishes(read_toml(path, partial(SpecError, path=str(path))), str(path), names)


def parse_wishes(text: str, path: str = "", names: Names | None = None) -> FaultWishes:
    """The wishes in TOML `text`; raises as `read_wishes`."""
    wrong = partial(SpecError, path=path)
    document = parse_toml(text, wrong)

    def unknown(problem: str, field: str) -> SpecError:
        return wrong(problem, field=field)

    demand_known(document, ("wishes", "default"), unknown)
    default = document.get("default", "deliver")
    entries = document.get("wishes", [])
    if default not in _GOALS:
        raise wrong(f"{default!r}: {suggestion(str(default), _GOALS)}", field="default")
    about = (names or Names()).about_faults()
    rules = rules_of(entries, "wishes", about, _GOALS, unknown)
    return FaultWishes(tuple(rules), _GOALS[default], path)
