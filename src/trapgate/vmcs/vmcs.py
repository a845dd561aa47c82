"""The VMCS: named fields over an array of cells, its reset state, and files of it.

The layout and the names are the SDM's ("Virtual-Machine Control Structures"), the
extensions the seed's. A VMM reads and writes fields as unsigned numbers of the
field's width; the processor works on `cells`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Literal, Self

import numpy as np

from trapgate.compiler.dialect import Cells
from trapgate.decision.conditions import Names
from trapgate.decision.criteria_rules import CriteriaTableError, Rule, decode, encode
from trapgate.errors import (
    ExtensionError,
    ReadOnlyFieldError,
    UnknownFieldError,
    VmcsFileError,
)
from trapgate.sdm import controls, state
from trapgate.sdm.cells import LENGTH, TABLE_CELLS, TABLE_START
from trapgate.sdm.event_words import hexadecimal
from trapgate.sdm.fields import Field
from trapgate.vmcs.file import (
    PROFILES,
    Profile,
    Settings,
    check_width,
    field_named,
    parse_settings,
    read_settings,
    write_settings,
)

_BY_ENCODING: dict[int, Field] = {int(field): field for field in Field}
_TABLE_FIELDS = (Field.CRITERIA_TABLE_LENGTH, Field.CRITERIA_TABLE_RULES)
_SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR")


_NO_PLACE = (0, 0, False)
_PLACES: dict[str, dict[Field | str, tuple[int, int, bool]]] = {
    profile: {
        field.name: (field.cell, (1 << field.width) - 1, not field.read_only)
        for field in Field
        if profile == "extended" or not field.extension
    }
    for profile in PROFILES
}
"""By profile, of each field by its name: cell, greatest value, and whether it may be written."""


class Vmcs:
    """A virtual-machine control structure.

    A new one holds the controls that must be set, a host that VM exits accept, and a
    guest as after RESET (real mode, CS:IP = F000:FFF0) with the bits that VMX fixes
    (CR0.NE; CR4.VMXE, hidden from the guest by mask and shadow).

    `vmcs[Field.GUEST_RIP]` and `vmcs["GUEST_RIP"]` are the same; values are unsigned.
    """

    __slots__ = ("cells", "launched", "profile", "words")

    def __init__(self, profile: Profile = "extended") -> None:
        """`profile` is "extended" (all extensions) or "vt-x" (only what Intel ships).

        Raises:
            ExtensionError: there is no such profile.
        """
        if profile not in PROFILES:
            raise ExtensionError(f"{profile!r} is not a profile; use one of {', '.join(PROFILES)}")
        self.profile: Profile = profile
        self.cells: Cells = np.zeros(LENGTH, dtype=np.int64)
        # Python reads a memoryview several times as fast as an array.
        self.words = memoryview(self.cells.data)
        self.launched = False
        self.reset()

    def reset(self) -> None:
        """Give every field its initial value and make the launch state clear."""
        self.cells[:] = 0
        self.launched = False
        for name, value in _RESET.items():
            self._put(Field[name], value)

    def __getitem__(self, field: Field | str) -> int:
        """The field's value, unsigned; UnknownFieldError, ExtensionError."""
        place = _PLACES[self.profile].get(field)
        if place is None:
            return self._get(self._known(field))
        cell, mask, _ = place
        return self.words[cell] & mask

    def __setitem__(self, field: Field | str, value: int) -> None:
        """Write a field.

        Raises:
            UnknownFieldError: no field has that name.
            FieldValueError: `value` is not an unsigned number of the field's width.
            ReadOnlyFieldError: it is VM-exit information.
            ExtensionError: it is an extension and the profile is "vt-x".
        """
        cell, mask, writable = _PLACES[self.profile].get(field, _NO_PLACE)
        if writable and type(value) is int and 0 <= value <= mask:
            self.words[cell] = value - (1 << 64) if value >> 63 else value
        else:
            # What is wrong with it, or an unusual type.
            self._set(self._known(field), value)

    def read(self, encoding: int) -> int:
        """VMREAD: the field with that encoding (an odd one: the upper half of a 64-bit field)."""
        field, high = self._encoded(encoding)
        return self._get(field) >> 32 if high else self._get(field)

    def write(self, encoding: int, value: int) -> None:
        """VMWRITE to that encoding; raises as item assignment does."""
        field, high = self._encoded(encoding)
        if high:
            value = self._get(field) & 0xFFFFFFFF | value << 32
        self._set(field, value)

    def _encoded(self, encoding: int) -> tuple[Field, bool]:
        field = _BY_ENCODING.get(encoding)
        if field is None and encoding & 1:
            field = _BY_ENCODING.get(encoding & ~1)
            if field is not None and field.high != encoding:
                field = None
        if field is None:
            raise UnknownFieldError(
                "no VMCS field has this encoding; see the SDM's field encodings",
                field=f"{encoding:04X}H",
            )
        return self._known(field), field != encoding

    def _known(self, field: Field | str, path: str = "") -> Field:
        if not isinstance(field, Field):
            field = field_named(field, path)
        if field.extension and self.profile == "vt-x":
            raise ExtensionError(
                'is an extension; use profile "extended"', field=field.name, path=path
            )
        return field

    def _get(self, field: Field) -> int:
        return int(self.cells[field.cell]) & (1 << field.width) - 1

    def _set(self, field: Field, value: int, path: str = "") -> None:
        if field.read_only:
            raise ReadOnlyFieldError(
                "is VM-exit information, written by the processor; leave it out",
                field=field.name,
                path=path,
            )
        check_width(field, value, path)
        self._put(field, value)

    def _put(self, field: Field, value: int) -> None:
        # Cells are signed: the upper half of 64-bit values is stored as negative numbers.
        self.cells[field.cell] = value - (1 << 64) if value >> 63 else value

    @property
    def criteria_table(self) -> tuple[Rule, ...]:
        """The rules of the criteria table, as far as the processor has them; () without one.

        The profile "vt-x" has none.

        Setting them puts the table where the processor keeps it and writes its length and number
        of rules.

        Raises:
            CriteriaTableError: it has more than the processor takes, or what lies there is no
            table. ExtensionError: they are set where the profile is "vt-x".
        """
        if self.profile == "vt-x":
            return ()
        length = min(self["CRITERIA_TABLE_LENGTH"], TABLE_CELLS * 8)
        data = self.cells[TABLE_START:].tobytes()[:length]
        return decode(data, self["CRITERIA_TABLE_RULES"])

    @criteria_table.setter
    def criteria_table(self, rules: Sequence[Rule]) -> None:
        data = encode(rules)
        self["CRITERIA_TABLE_RULES"] = len(rules)
        self["CRITERIA_TABLE_LENGTH"] = len(data)
        self["CRITERIA_TABLE_ADDRESS"] = 0
        self.cells[TABLE_START:] = 0
        words = np.frombuffer(data, np.int64)
        self.cells[TABLE_START : TABLE_START + len(words)] = words

    def __iter__(self) -> Iterator[Field]:
        """The fields this profile has."""
        return (field for field in Field if not field.extension or self.profile == "extended")

    def __eq__(self, other: object) -> bool:
        """Same profile and the same in every field."""
        if not isinstance(other, Vmcs):
            return NotImplemented
        return self.profile == other.profile and bool(np.array_equal(self.cells, other.cells))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """What tells one VMCS from another at a glance."""
        shown = (("RIP", "GUEST_RIP"), ("CR3", "GUEST_CR3"), ("exceptions", "EXCEPTION_BITMAP"))
        words = ", ".join(f"{name} {hexadecimal(self[field])}" for name, field in shown)
        return f"<Vmcs {self.profile}: {words}>"

    def _repr_html_(self) -> str:
        """A table of the fields that are not 0, for notebooks."""
        rows = "".join(
            f"<tr><td>{field.name}</td><td>{hexadecimal(self[field])}</td><td>{field.kind}</td></tr>"
            for field in self
            if self[field]
        )
        return f"<table><tr><th>field</th><th>value</th><th>kind</th></tr>{rows}</table>"

    def copy(self) -> Self:
        """Another VMCS with the same fields, its launch state clear."""
        twin = type(self)(self.profile)
        twin.cells[:] = self.cells
        return twin

    def set_flat_segments(self, bits: Literal[32, 64], *, user: bool = False) -> None:
        """Make the guest's segments flat, for protected mode or (`bits` 64) 64-bit mode.

        Code is selector 8 (1BH if `user`), data 10H (23H); base 0, limit 4 GB. Control
        registers are not touched; the "IA-32e mode guest" entry control follows `bits`.
        """
        ring = 3 if user else 0
        size = state.AR_L if bits == 64 else state.AR_DB
        for name in _SEGMENTS[:6]:
            code = name == "CS"
            self[f"GUEST_{name}_SELECTOR"] = (0x1B if code else 0x23) if user else 16 - 8 * code
            self[f"GUEST_{name}_BASE"] = 0
            self[f"GUEST_{name}_LIMIT"] = 0xFFFFFFFF
            self[f"GUEST_{name}_ACCESS_RIGHTS"] = (
                state.AR_P
                | state.AR_S
                | ring << state.AR_DPL_SHIFT
                | state.AR_G
                | (0xB | size if code else 0x3 | state.AR_DB)
            )
        entry = self["VM_ENTRY_CONTROLS"] & ~controls.ENTRY_IA32E_MODE_GUEST
        if bits == 64:
            entry |= controls.ENTRY_IA32E_MODE_GUEST
        self["VM_ENTRY_CONTROLS"] = entry

    @classmethod
    def from_toml(cls, text: str, *, profile: Profile | None = None, path: str = "") -> Self:
        """A VMCS with initial values and the settings in TOML `text` (see `vmcs.file`).

        `profile` overrides the text's. Raises VmcsError subclasses.
        """
        return cls._from_settings(parse_settings(text, path), profile)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        profile: Profile | None = None,
        names: Names | None = None,
    ) -> Self:
        """The same from a file; its conditions may use `names`."""
        return cls._from_settings(read_settings(Path(path), names), profile)

    @classmethod
    def _from_settings(cls, settings: Settings, profile: Profile | None) -> Self:
        named: Profile = "vt-x" if settings.profile == "vt-x" else "extended"
        vmcs = cls(profile or named)
        vmcs.apply(settings)
        return vmcs

    def apply(self, settings: Settings) -> None:
        """Change the fields that `settings` names, and no others; all of them or none.

        Raises:
            VmcsError: one of the subclasses that item assignment raises; also if the
                settings are for the profile "extended" and this VMCS is not.
        """
        if settings.profile == "extended" and self.profile == "vt-x":
            raise VmcsFileError(
                'asks for "extended" but this VMCS is "vt-x"; change one of them',
                field="profile",
                path=settings.path,
            )
        if settings.intercepts is not None:
            raise VmcsFileError(
                "says what lies in memory and not in a VMCS; only `trapgate replay` reads it",
                field="intercepts",
                path=settings.path,
            )
        before = self.cells.copy()
        try:
            for field, (on, off) in settings.bits.items():
                self._set(field, (self._get(field) | on) & ~off, settings.path)
            for field, value in settings.fields.items():
                self._set(self._known(field, settings.path), value, settings.path)
            if settings.rules is not None:
                self._known(Field.CRITERIA_TABLE_RULES, settings.path)
                self.criteria_table = settings.rules
        except Exception:
            self.cells[:] = before
            raise

    def criteria_toml(self) -> str:
        """TOML of what says which exceptions exit: fields that are not at their initial value,
        the exception bitmap, and the criteria table.
        """
        return self._toml(rules_exceptions, {Field.EXCEPTION_BITMAP: self["EXCEPTION_BITMAP"]})

    def to_toml(self) -> str:
        """TOML of every writable field that is not at its initial value."""
        return self._toml(lambda field: not field.read_only, {})

    def _toml(self, wanted: Callable[[Field], bool], always: Mapping[Field, int]) -> str:
        initial = type(self)(self.profile)
        changed = dict(always) | {
            field: self[field] for field in self if wanted(field) and self[field] != initial[field]
        }
        rules: tuple[Rule, ...] = ()
        with suppress(ExtensionError, CriteriaTableError):
            # A length and a number of rules that fit no table are written as they stand.
            rules = self.criteria_table
        if rules:
            changed = {field: changed[field] for field in changed if field not in _TABLE_FIELDS}
        return write_settings(self.profile, changed, rules)


_ABOUT_EXCEPTIONS = (
    *("EXCEPTION_BITMAP", "PAGE_FAULT_", "TRANSFER_", "VECTOR_", "SECOND_ERROR", "ANY_BIT"),
    *("COMPARISON_", "MEMBER", "ERROR_CODE_FIELD", "FAULT_FILTER", "PTBASE", "CRITERIA_TABLE"),
)


def rules_exceptions(field: Field) -> bool:
    """Whether a field has a say in which exceptions exit, go to the guest or complete."""
    return field.name.startswith(_ABOUT_EXCEPTIONS)


def _real_mode_guest() -> Mapping[str, int]:
    fields = {}
    for name in _SEGMENTS:
        fields[f"GUEST_{name}_LIMIT"] = 0xFFFF
        fields[f"GUEST_{name}_ACCESS_RIGHTS"] = 0x93
    return fields | {
        "GUEST_CS_SELECTOR": 0xF000,
        "GUEST_CS_BASE": 0xFFFF0000,
        "GUEST_CS_ACCESS_RIGHTS": 0x9B,
        "GUEST_LDTR_ACCESS_RIGHTS": 0x82,
        "GUEST_TR_ACCESS_RIGHTS": 0x8B,
        "GUEST_GDTR_LIMIT": 0xFFFF,
        "GUEST_IDTR_LIMIT": 0xFFFF,
        "GUEST_CR0": 0x60000010 | state.CR0_NE,
        "GUEST_CR4": state.CR4_VMXE,
        "CR4_GUEST_HOST_MASK": state.CR4_VMXE,
        "GUEST_DR7": state.DR7_FIXED_1,
        "GUEST_RIP": 0xFFF0,
        "GUEST_RFLAGS": state.RFLAGS_FIXED_1,
        "GUEST_IA32_PAT": 0x0007040600070406,
    }


_RESET: Mapping[str, int] = {
    **_real_mode_guest(),
    "VMCS_LINK_POINTER": (1 << 64) - 1,
    "PIN_BASED_CONTROLS": controls.PIN_ALLOWED_0,
    "PRIMARY_PROCESSOR_BASED_CONTROLS": (
        controls.PRIMARY_ALLOWED_0 | controls.PRIMARY_SECONDARY_CONTROLS
    ),
    "SECONDARY_PROCESSOR_BASED_CONTROLS": controls.SECONDARY_UNRESTRICTED_GUEST,
    "VM_EXIT_CONTROLS": (
        controls.EXIT_ALLOWED_0
        | controls.EXIT_SAVE_DEBUG_CONTROLS
        | controls.EXIT_HOST_ADDRESS_SPACE_SIZE
        | controls.EXIT_SAVE_EFER
        | controls.EXIT_LOAD_EFER
    ),
    "VM_ENTRY_CONTROLS": (
        controls.ENTRY_ALLOWED_0 | controls.ENTRY_LOAD_DEBUG_CONTROLS | controls.ENTRY_LOAD_EFER
    ),
    "HOST_CR0": state.CR0_PG | state.CR0_WP | state.CR0_NE | state.CR0_ET | state.CR0_PE,
    "HOST_CR4": state.CR4_PAE | state.CR4_VMXE,
    "HOST_IA32_EFER": state.EFER_LME | state.EFER_LMA | state.EFER_NXE | state.EFER_SCE,
    "HOST_IA32_PAT": 0x0007040600070406,
    "HOST_CS_SELECTOR": 0x08,
    "HOST_SS_SELECTOR": 0x10,
    "HOST_DS_SELECTOR": 0x10,
    "HOST_ES_SELECTOR": 0x10,
    "HOST_FS_SELECTOR": 0x10,
    "HOST_GS_SELECTOR": 0x10,
    "HOST_TR_SELECTOR": 0x18,
}
"""What a new VMCS holds; everything else is 0."""
