"""The names of VMCS fields, and what an encoding says about a field.

Source: SDM, "VMCS Field Encoding": bit 0 access to the high half of a 64-bit field,
bits 9:1 index, 11:10 type, 14:13 width. Indexes from 180H up are our extensions.
"""

from enum import EnumMeta, IntEnum
from typing import TYPE_CHECKING

from trapgate.sdm.cells import ENCODINGS

EXTENSION_INDEX = 0x180
"""The first index of extension fields."""

FAILED_CHECK = "FAILED_CHECK"
"""The extension field, VM-exit information, with the number of the check that the last failed
VM entry did not pass (`sdm.checks`)."""

EPT_POINTER_IN_FORCE = "EPT_POINTER_IN_FORCE"
"""The extension field, read-only, with the EPT pointer that translates the guest's physical
addresses: EPT_POINTER if "enable EPT" is 1, else 0. VM entry writes it."""

APIC_ACCESS_PAGE_IN_FORCE = "APIC_ACCESS_PAGE_IN_FORCE"
"""The extension field, read-only, with 1 + the address of the page whose accesses exit, or 0
without "virtualize APIC accesses". VM entry writes it."""

PML_ADDRESS_IN_FORCE = "PML_ADDRESS_IN_FORCE"
"""The extension field, read-only, with 1 + the address of the page-modification log, or 0 without
"enable PML". VM entry writes it."""

READ_ONLY = 1
"""Bits 11:10 of the encodings of VM-exit information."""

_WIDTHS = (16, 64, 32, 64)
_KINDS = ("control", "exit information", "guest state", "host state")

if TYPE_CHECKING:

    class _Named(EnumMeta):
        def __getattr__(cls, name: str) -> "Field": ...

else:
    _Named = EnumMeta


class Field(IntEnum, metaclass=_Named):
    """A VMCS field; the value is its encoding, the members are those of `cells.ENCODINGS`."""

    _ignore_ = ["members", "label", "number"]  # noqa: RUF012  enum reads and drops it

    members = vars()
    for label, number in ENCODINGS.items():
        members[label] = number

    @property
    def cell(self) -> int:
        """Its place in a VMCS's array of cells."""
        return _CELLS[self.name]

    @property
    def width(self) -> int:
        """Bits: 16, 32 or 64 (natural-width fields are 64)."""
        return _WIDTHS[self >> 13 & 3]

    @property
    def kind(self) -> str:
        """`control`, `exit information`, `guest state` or `host state`."""
        return _KINDS[self >> 10 & 3]

    @property
    def read_only(self) -> bool:
        """Whether it tells of VM entries and exits (VM-exit information), which write it."""
        return self >> 10 & 3 == READ_ONLY

    @property
    def extension(self) -> bool:
        """Whether it is one of ours that no shipped processor has."""
        return (self >> 1 & 0x1FF) >= EXTENSION_INDEX

    @property
    def high(self) -> int | None:
        """The encoding of its upper half, for fields of exactly 64 bits."""
        return self | 1 if self >> 13 & 3 == 1 else None


_CELLS: dict[str, int] = {name: cell for cell, name in enumerate(ENCODINGS)}

EXTENSION_FIELDS: frozenset[Field] = frozenset(field for field in Field if field.extension)
"""The extension fields."""
