"""What a VMCS points to and a VMCS file says for `replay`: bitmaps and EPT entries.

```toml
[intercepts]
ports = [0x60, "0x3F8-0x3FF"]          # bits of the I/O bitmaps that are 1
msr_reads = ["0x800-0x83F"]            # bits of the MSR bitmaps for RDMSR
msr_writes = [0x6E0]                   # and for WRMSR
late_mapping = false                   # EPT: are pages left out until they are touched?
write_protection = false               # EPT: are pages write-protected?
```

A processor finds these in memory, which a file cannot fill; a judge of recorded exits needs
no more than their contents.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from trapgate.errors import VmcsFileError, suggestion

Ranges = tuple[tuple[int, int], ...]
"""First and last of each stretch."""

PORTS: Final = 1 << 16
MSRS: Final = 1 << 32


@dataclass(frozen=True)
class Intercepts:
    """Contents of bitmaps and of EPT entries; None where a file says nothing of them."""

    ports: Ranges | None = None
    msr_reads: Ranges | None = None
    msr_writes: Ranges | None = None
    late_mapping: bool | None = None
    write_protection: bool | None = None


_LIMITS: Final = {"ports": PORTS, "msr_reads": MSRS, "msr_writes": MSRS}
_NAMES: Final = tuple(field.name for field in fields(Intercepts))


def parse_intercepts(table: Mapping[str, object], path: str = "") -> Intercepts:
    """The table `[intercepts]` of a VMCS file.

    Raises: VmcsFileError for a name or a value that is none.
    """
    found: dict[str, object] = {}
    for name, value in table.items():
        where = f"intercepts.{name}"
        if name not in _NAMES:
            problem = f"is not known; {suggestion(name, _NAMES)}"
            raise VmcsFileError(problem, field=where, path=path)
        if name in _LIMITS:
            found[name] = _ranges(value, _LIMITS[name], where, path)
        elif isinstance(value, bool):
            found[name] = value
        else:
            raise VmcsFileError(f"{value!r} is neither true nor false", field=where, path=path)
    return Intercepts(**found)  # type: ignore[arg-type]  # the types are those just checked


def _ranges(value: object, limit: int, where: str, path: str) -> Ranges:
    if not isinstance(value, list):
        problem = 'must be a list of numbers and of stretches like "0x3F8-0x3FF"'
        raise VmcsFileError(problem, field=where, path=path)
    found = []
    for one in value:
        try:
            ends = [int(end, 0) for end in one.split("-")] if isinstance(one, str) else [one]
        except ValueError:
            ends = []
        known = len(ends) in (1, 2) and all(type(end) is int for end in ends)
        if not known or not 0 <= ends[0] <= ends[-1] < limit:
            problem = f"{one!r} is not a number below {limit:#x}, nor a stretch like 0x3F8-0x3FF"
            raise VmcsFileError(problem, field=where, path=path)
        found.append((ends[0], ends[-1]))
    return tuple(sorted(found))
