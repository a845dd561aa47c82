"""Words for what a trace has numbers for."""

from typing import Final

from trapgate.sdm.vectors import ROWS

_HEXADECIMAL: Final = frozenset(
    {"rip", "cr3", "linear_address", "guest_physical", "error_code", "data", "old_value"}
    | {"qualification", "interrupted_error_code", "operand"}
)


def vector_label(vector: int | None) -> str:
    """#PF for 14, `vector 32` for 32, a dash for an event that has none."""
    if vector is None:
        return "-"
    return f"#{ROWS[vector].vector.name}" if vector in ROWS else f"vector {vector}"


def shown_value(column: str, value: object) -> str:
    """A cell as people read it: addresses and codes in hexadecimal, nothing for null and false."""
    if value is None or value is False:
        return ""
    if column in _HEXADECIMAL and isinstance(value, int):
        return f"{value:#x}"
    return "yes" if value is True else str(value)
