"""Error codes by vector: their bits, what these are called, and which values can occur.

Sources: SDM, "Page-Fault Exceptions" (the page fault's bits, and when each is set),
"Error Code" (selector error codes), "Interrupt 21 - Control Protection Exception".
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trapgate.criteria.errors import SpecError, listed
from trapgate.errors import suggestion
from trapgate.sdm.vectors import ERROR_CODE_VECTORS, ROWS, Vector

Codes = NDArray[np.int64]
Truths = NDArray[np.bool_]

LAST_VECTOR = 31
"""The exception bitmap has 32 bits."""


@dataclass(frozen=True)
class CodeBit:
    """One bit of an error code: its position, its name in conditions, other names, words."""

    position: int
    name: str
    others: tuple[str, ...]
    when_set: str
    when_clear: str


PAGE_FAULT_BITS = (
    CodeBit(0, "present", ("p",), "present page", "not-present page"),
    CodeBit(1, "write", ("w", "wr"), "write", "read"),
    CodeBit(2, "user", ("u", "us"), "user", "supervisor"),
    CodeBit(3, "reserved", ("rsvd",), "reserved bit set", "no reserved bit"),
    CodeBit(4, "fetch", ("id", "instruction"), "instruction fetch", "data access"),
    CodeBit(5, "key", ("pk", "protection_key"), "protection key", "no protection key"),
    CodeBit(6, "shadow_stack", ("ss",), "shadow-stack access", "no shadow-stack access"),
    CodeBit(7, "hlat", (), "HLAT paging", "no HLAT paging"),
    CodeBit(15, "sgx", (), "SGX access control", "no SGX"),
)
"""All bits that the SDM defines."""

SEED_BITS = PAGE_FAULT_BITS[:4]
"""The four of the seed (¶30)."""

_SELECTOR_BITS = (
    CodeBit(0, "external", ("ext",), "external event", "no external event"),
    CodeBit(1, "idt", (), "gate in the IDT", "descriptor not in the IDT"),
    CodeBit(2, "local", ("ti",), "LDT", "GDT"),
    *(
        CodeBit(3 + n, f"index_{n}", (), f"bit {n} of the index", f"no bit {n} of the index")
        for n in range(13)
    ),
)
_CONTROL_BITS = (
    CodeBit(0, "kind_0", (), "bit 0 of the kind", "no bit 0 of the kind"),
    CodeBit(1, "kind_1", (), "bit 1 of the kind", "no bit 1 of the kind"),
    CodeBit(2, "kind_2", (), "bit 2 of the kind", "no bit 2 of the kind"),
    CodeBit(15, "enclave", ("encl",), "inside an enclave", "outside an enclave"),
)


def _page_fault_occurs(codes: Any) -> Any:
    def on(bit: int) -> Any:
        return (codes & 1 << bit) != 0

    def off(bit: int) -> Any:
        return (codes & 1 << bit) == 0

    return (
        # Reserved bits are not looked at in an entry that is not present.
        (off(3) | on(0))
        # An instruction fetch neither writes nor uses keys or shadow stacks.
        & (off(4) | (off(1) & off(5) & off(6)))
        # A protection key denies access to what is mapped, and properly so.
        & (off(5) | (on(0) & off(3)))
        # HLAT: for want of a translation only.
        & (off(7) | off(0) | on(3))
        # SGX: only if there is no ordinary page fault.
        & (off(15) | (on(0) & off(3) & off(5) & off(7)))
    )


def _selector_occurs(codes: Any) -> Any:
    # A gate of the IDT has a vector of 8 bits, and TI means nothing for it.
    return ((codes & 2) == 0) | ((codes & 0xF804) == 0)


def _control_occurs(codes: Any) -> Any:
    kind = codes & 7
    return (kind != 0) & (kind != 6) & (kind != 7)


def _always(codes: Any) -> Any:
    return codes == codes  # noqa: PLR0124  true, in the interpreter's own kind


_LAYOUTS: dict[int, tuple[tuple[CodeBit, ...], Callable[[Any], Any]]] = {
    Vector.PF: (PAGE_FAULT_BITS, _page_fault_occurs),
    **dict.fromkeys(
        (Vector.TS, Vector.NP, Vector.SS, Vector.GP), (_SELECTOR_BITS, _selector_occurs)
    ),
    Vector.CP: (_CONTROL_BITS, _control_occurs),
    # The error code of a double fault and of an alignment check is 0.
    Vector.DF: ((), _always),
    Vector.AC: ((), _always),
}


@dataclass(frozen=True)
class Layout:
    """The error codes that are considered for one vector.

    `bits` are those that may be set; all others are 0. `occurs` tells, for an int, an
    array or a z3 term, whether the processor can raise that code.
    """

    bits: tuple[CodeBit, ...]
    occurs: Callable[[Any], Any]

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions of the bits, ascending."""
        return tuple(bit.position for bit in self.bits)

    @property
    def window(self) -> int:
        """All of the bits, as a number of 32 bits."""
        return sum(1 << position for position in self.positions)

    def codes(self) -> Codes:
        """Every value of the bits, ascending, those that cannot occur included."""
        codes: Codes = deposited(np.arange(1 << len(self.bits), dtype=np.int64), self.positions)
        return codes

    def names(self) -> dict[str, int]:
        """What conditions may call the bits, and the masks these stand for."""
        found = {}
        for bit in self.bits:
            for name in (bit.name, *bit.others):
                found[name] = 1 << bit.position
        return found

    def words(self, mask: int, match: int) -> str:
        """A pair in words: `write and not user`; numbers where a bit has no name."""
        parts = []
        for position in range(32):
            if not mask >> position & 1:
                continue
            bit = next((bit for bit in self.bits if bit.position == position), None)
            name = bit.name if bit else f"bit_{position}"
            parts.append(name if match >> position & 1 else f"not {name}")
        return " and ".join(parts) or "any code"

    def describe(self, code: int) -> str:
        """An error code in words: `present page, write, supervisor`."""
        short = self.bits[:3] if self.bits[:1] == PAGE_FAULT_BITS[:1] else ()
        parts = [bit.when_set if code >> bit.position & 1 else bit.when_clear for bit in short]
        parts += [
            bit.when_set
            for bit in self.bits
            if bit not in short
            and code >> bit.position & 1
            and not bit.name.startswith(("index_", "kind_"))
        ]
        if any(bit.name == "index_0" for bit in self.bits):
            parts.append(f"index {code >> 3}")
        return ", ".join(parts) or "none of its bits set"


def deposited(index: Any, positions: Sequence[int]) -> Any:
    """Bit n of `index` moved to positions[n]; an int or an array."""
    code = index * 0
    for n, position in enumerate(positions):
        code = code | (index >> n & 1) << position
    return code


def plain_layout(width: int, path: str = "", line: int = 0) -> Layout:
    """`width` bits without names (`bit_0` and so on), each value of which may occur."""
    if not 1 <= width <= 16:
        raise SpecError(f"{width} bits; choose from 1 to 16", path=path, line=line, field="bits")
    bits = tuple(CodeBit(n, f"bit_{n}", (), f"bit {n}", f"no bit {n}") for n in range(width))
    return Layout(bits, _always)


def layout_of(vector: int) -> Layout:
    """All error codes that the SDM defines for `vector`; KeyError if it has none."""
    return Layout(*_LAYOUTS[vector])


def narrowed(layout: Layout, names: Sequence[str], path: str = "", line: int = 0) -> Layout:
    """Only the bits with those names; SpecError suggests the nearest for an unknown one."""
    known = layout.names()
    window = 0
    for name in names:
        plain = name.lower().replace("-", "_")
        if plain not in known:
            raise SpecError(
                f"no bit is called {name!r}; {suggestion(plain, known)}",
                path=path,
                line=line,
                field="bits",
            )
        window |= known[plain]
    bits = tuple(bit for bit in layout.bits if window >> bit.position & 1)
    return Layout(bits, layout.occurs)


def vector_named(name: str, path: str = "", line: int = 0) -> int:
    """The vector that `PF`, `#PF`, `14` or `vector-14` means.

    Raises:
        SpecError: there is no such vector, or the exception bitmap does not rule it.
    """
    bare = name.strip().removeprefix("#")
    number = re.fullmatch(r"(?:vector[-_ ]?)?(\d{1,4}|0[xX][0-9a-fA-F]{1,3})", bare)
    if number:
        vector = int(number[1], 0)
        if vector > LAST_VECTOR:
            raise SpecError(
                f"the exception bitmap rules vectors 0 to {LAST_VECTOR} only; name an exception",
                path=path,
                line=line,
                field=name,
            )
    else:
        try:
            vector = Vector[bare.upper().replace("-", "_")].value
        except KeyError:
            nearest = suggestion(bare.upper(), Vector.__members__)
            raise SpecError(
                f"no such vector; {nearest}", path=path, line=line, field=name
            ) from None
    if vector == Vector.NMI:
        raise SpecError(
            "NMIs are ruled by NMI_EXITING, not by the exception bitmap; "
            'set [controls] pin = ["NMI_EXITING"] in the VMCS file',
            path=path,
            line=line,
            field=name,
        )
    return vector


def vector_label(vector: int) -> str:
    """#PF for 14; `vector 15` for one without a name."""
    return f"#{ROWS[vector].vector.name}" if vector in ROWS else f"vector {vector}"


def has_error_code(vector: int) -> bool:
    """Whether events of that vector push an error code."""
    return bool(ERROR_CODE_VECTORS >> vector & 1)


def demand_within(
    layout: Layout, code: int, path: str = "", line: int = 0, field: str = ""
) -> None:
    """Raise SpecError unless all bits of `code` belong to `layout`."""
    outside = code & ~layout.window
    if code < 0 or outside:
        what = "is negative" if code < 0 else f"has bits that the error code lacks ({outside:#x})"
        bits = [1 << position for position in layout.positions]
        remedy = f"its bits are {listed(bits, 16)}" if bits else "it is always 0"
        raise SpecError(f"{code:#x} {what}; {remedy}", path=path, line=line, field=field)
