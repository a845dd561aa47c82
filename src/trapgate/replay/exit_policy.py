"""What a policy says of exits that are not exceptions: each by the control that causes it.

A policy speaks of a control that its file names, and of no other. A trace has exits only:
what a control would add that was off is in no trace, so exits are saved here and never added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from trapgate.replay import accesses
from trapgate.replay.control_table import CONTROLS
from trapgate.sdm.controls import PinControl, PrimaryControl, SecondaryControl
from trapgate.sdm.fields import Field
from trapgate.trace.frames import polars
from trapgate.vmcs.intercepts import Intercepts

if TYPE_CHECKING:
    from polars import Expr

    from trapgate.vmcs.file import Settings

_PRIMARY: Final = Field.PRIMARY_PROCESSOR_BASED_CONTROLS
_SECONDARY: Final = Field.SECONDARY_PROCESSOR_BASED_CONTROLS
_TARGETS: Final = (
    *(Field.CR3_TARGET_VALUE_0, Field.CR3_TARGET_VALUE_1),
    *(Field.CR3_TARGET_VALUE_2, Field.CR3_TARGET_VALUE_3),
)

_OTHER_FIELDS: Final = (
    *(Field.CR0_GUEST_HOST_MASK, Field.CR0_READ_SHADOW, Field.CR4_GUEST_HOST_MASK),
    *(Field.CR4_READ_SHADOW, Field.CR3_TARGET_COUNT, Field.TPR_THRESHOLD),
    *(Field.PLE_GAP, Field.PLE_WINDOW),
)
_ENUMERATIONS: Final = {
    Field.PIN_BASED_CONTROLS: PinControl,
    _PRIMARY: PrimaryControl,
    _SECONDARY: SecondaryControl,
}

OUTSIDE, STAYS, SAVED, UNJUDGED = range(4)
"""What a policy says of an exit."""


@dataclass(frozen=True)
class ExitPolicy:
    """What a policy says of exits: `named` bits of fields, `values` of those and other fields,
    and what bitmaps and EPT entries hold.
    """

    named: Mapping[Field, int] = field(default_factory=dict)
    values: Mapping[Field, int] = field(default_factory=dict)
    intercepts: Intercepts = field(default_factory=Intercepts)

    @classmethod
    def of(cls, settings: Settings) -> ExitPolicy:
        """What `settings` say of exits."""
        named: dict[Field, int] = {}
        values: dict[Field, int] = {}
        for one, (on, off) in settings.bits.items():
            named[one] = on | off
            values[one] = on
        for one, value in settings.fields.items():
            named[one] = (1 << one.width) - 1
            values[one] = value
        return cls(named, values, settings.intercepts or Intercepts())

    @property
    def words(self) -> str:
        """What it says of exits, on one line."""
        parts = []
        for where, kinds in _ENUMERATIONS.items():
            named, held = self.named.get(where, 0), self.values.get(where, 0)
            parts += [f"{bit.name} {'on' if held & bit else 'off'}" for bit in kinds if named & bit]
        for where in (*_OTHER_FIELDS, *_TARGETS):
            if where in self.values:
                parts.append(f"{where.name} {self.values[where]:#x}")
        for name, value in vars(self.intercepts).items():
            if isinstance(value, tuple):
                ends = [f"{a:#x}" + (f"-{b:#x}" if b > a else "") for a, b in value]
                parts.append(f"{name} {', '.join(ends) or 'none'}")
            elif value is not None:
                parts.append(f"{name} {str(value).lower()}")
        return ", ".join(parts)

    @property
    def judges_exits(self) -> bool:
        """Whether it says anything of exits that are not exceptions."""
        return bool(self.rules())

    def names(self, where: Field, bit: int = -1) -> bool:
        """Whether the file names one of those bits of a field (any, if not given)."""
        return bool(self.named.get(where, 0) & bit)

    def has(self, where: Field, bit: int) -> bool:
        """Whether one of the bits is 1; those that are not named are 0."""
        return bool(self.values.get(where, 0) & bit)

    def rules(self) -> list[tuple[Expr, Expr, Expr]]:
        """What it speaks of: (these exits, they still happen, it cannot be told)."""
        return [*_switched(self), *_ports(self), *_msrs(self), *_registers(self), *_others(self)]


def _certain(which: Expr, *, exits: bool) -> tuple[Expr, Expr, Expr]:
    pl = polars()
    return which, pl.lit(exits), pl.lit(value=False)


def _switched(policy: ExitPolicy) -> list[tuple[Expr, Expr, Expr]]:
    """Exits that bits turn on and off."""
    found = []
    for control in CONTROLS:
        if not any(policy.names(*switch) for switch in control.switches):
            continue
        # Registers are told apart below the word.
        accessed = [one.partition(" ")[2] for one in control.reasons if one.startswith("CR_")]
        words = [one for one in control.reasons if "*" not in one and " " not in one]
        which = accesses.word().is_in(words)
        which = which | accesses.register().is_in(accessed).fill_null(value=False)
        for pattern in control.reasons:
            if "*" in pattern:
                which = which | accesses.word().str.contains(_regular(pattern))
        found.append(_certain(which, exits=any(policy.has(*switch) for switch in control.switches)))
    return found


def _regular(pattern: str) -> str:
    return f"^{pattern.replace('*', '.*')}$"


def _ports(policy: ExitPolicy) -> list[tuple[Expr, Expr, Expr]]:
    pl = polars()
    held = policy.intercepts.ports
    unconditional = PrimaryControl.UNCONDITIONAL_IO_EXITING
    bitmaps = PrimaryControl.USE_IO_BITMAPS
    mine = accesses.is_port()
    if held is None and policy.has(_PRIMARY, bitmaps):
        # The bitmaps are in memory: what they hold nobody said.
        return [(mine, pl.lit(value=False), pl.lit(value=True))]
    if held is None or (policy.names(_PRIMARY, bitmaps) and not policy.has(_PRIMARY, bitmaps)):
        if policy.names(_PRIMARY, unconditional | bitmaps):
            return [_certain(mine, exits=policy.has(_PRIMARY, unconditional))]
        return []
    port, size = pl.col("operand"), accesses.port_size()
    exits = accesses.within(port, held, size) | (port + size > 1 << 16)
    unknown = port.is_null() if held else pl.lit(value=False)
    return [(mine, exits.fill_null(value=False), unknown)]


def _msrs(policy: ExitPolicy) -> list[tuple[Expr, Expr, Expr]]:
    pl = polars()
    bitmaps = PrimaryControl.USE_MSR_BITMAPS
    mine = accesses.is_msr()
    reads, writes = policy.intercepts.msr_reads, policy.intercepts.msr_writes
    if policy.names(_PRIMARY, bitmaps) and not policy.has(_PRIMARY, bitmaps):
        return [_certain(mine, exits=True)]
    if reads is None and writes is None:
        if policy.has(_PRIMARY, bitmaps):
            return [(mine, pl.lit(value=False), pl.lit(value=True))]
        return []
    index = pl.col("operand")
    found = []
    for held, which in (
        (reads, mine & ~accesses.is_msr_write()),
        (writes, mine & accesses.is_msr_write()),
    ):
        if held is not None:
            covered = accesses.within(index, _COVERED)
            exits = (~covered | accesses.within(index, held)).fill_null(value=False)
            found.append((which, exits, index.is_null()))
    return found


_COVERED: Final = ((0, 0x1FFF), (0xC0000000, 0xC0001FFF), (0xC0010000, 0xC0011FFF))
"""MSRs that bitmaps have bits for (the last are AMD's); others always exit."""


def _registers(policy: ExitPolicy) -> list[tuple[Expr, Expr, Expr]]:
    pl = polars()
    found = []
    for number, mask_field, shadow_field in (
        (0, Field.CR0_GUEST_HOST_MASK, Field.CR0_READ_SHADOW),
        (4, Field.CR4_GUEST_HOST_MASK, Field.CR4_READ_SHADOW),
    ):
        if not policy.names(mask_field):
            continue
        mask = policy.values[mask_field]
        which = accesses.writes_register(number)
        if mask == 0:
            found.append(_certain(which, exits=False))
            continue
        shadow = pl.col("old_value")
        if policy.names(shadow_field):
            shadow = pl.lit(policy.values[shadow_field], pl.UInt64)
        changed = (pl.col("data") ^ shadow) & pl.lit(mask, pl.UInt64)
        found.append((which, (changed != 0).fill_null(value=False), changed.is_null()))
    load = PrimaryControl.CR3_LOAD_EXITING
    targets = policy.names(Field.CR3_TARGET_COUNT)
    if policy.names(_PRIMARY, load) or targets:
        which = accesses.writes_register(3)
        number = min(policy.values.get(Field.CR3_TARGET_COUNT, 0), len(_TARGETS))
        if policy.names(_PRIMARY, load) and not policy.has(_PRIMARY, load):
            found.append(_certain(which, exits=False))
        elif number == 0:
            found.append(_certain(which, exits=True))
        else:
            data, met = pl.col("data"), pl.lit(value=False)
            for target in _TARGETS[:number]:
                met = met | (data == pl.lit(policy.values.get(target, 0), pl.UInt64))
            found.append((which, ~met.fill_null(value=True), data.is_null()))
    return found


def _others(policy: ExitPolicy) -> list[tuple[Expr, Expr, Expr]]:
    """PAUSE loops, the TPR threshold, EPT entries."""
    pl = polars()
    found = []
    word, held = accesses.word(), policy.intercepts
    pause = word.is_in(["PAUSE_INSTRUCTION", "pause", "EXIT_PAUSE"])
    each, loops = PrimaryControl.PAUSE_EXITING, SecondaryControl.PAUSE_LOOP_EXITING
    windows = policy.names(Field.PLE_WINDOW) or policy.names(Field.PLE_GAP)
    if policy.names(_PRIMARY, each) or policy.names(_SECONDARY, loops) or windows:
        if policy.has(_PRIMARY, each):
            found.append(_certain(pause, exits=True))
        elif policy.has(_SECONDARY, loops) or windows:
            # A loop that was too long for a window is too long for a smaller one.
            longest = policy.values.get(Field.PLE_WINDOW)
            sure = pl.lit(value=False)
            if longest is not None and not policy.names(Field.PLE_GAP):
                sure = (pl.col("data") >= longest).fill_null(value=False)
            found.append((pause, sure, ~sure))
        else:
            found.append(_certain(pause, exits=False))
    tpr = word == "TPR_BELOW_THRESHOLD"
    shadow = PrimaryControl.TPR_SHADOW
    if policy.names(_PRIMARY, shadow) and not policy.has(_PRIMARY, shadow):
        found.append(_certain(tpr, exits=False))
    elif policy.names(Field.TPR_THRESHOLD):
        none = policy.values[Field.TPR_THRESHOLD] & 15 == 0
        found.append((tpr, pl.lit(value=False), pl.lit(not none)))
    access = pl.col("access").cast(pl.String)
    second = word.is_in(["EPT_VIOLATION", "npf", "EXIT_NPF"])
    protected = access.str.contains(r"write to (?:r|present page)").fill_null(value=False)
    if policy.names(_SECONDARY, SecondaryControl.EPT):
        if not policy.has(_SECONDARY, SecondaryControl.EPT):
            found.append(_certain(second | (word == "EPT_MISCONFIG"), exits=False))
        return found
    unknown = access.is_null()
    if held.write_protection is not None:
        found.append((second & (protected | unknown), pl.lit(held.write_protection), unknown))
    if held.late_mapping is not None:
        absent = access.str.contains("absent page").fill_null(value=False)
        found.append((second & (absent | unknown), pl.lit(held.late_mapping), unknown))
    return found


def judgement_of(policy: ExitPolicy) -> Expr:
    """What a policy says of each row that is an exit: OUTSIDE, STAYS, SAVED or UNJUDGED."""
    pl = polars()
    said: Expr = pl.lit(OUTSIDE)
    reflected = pl.col("reflected").fill_null(value=False)
    for which, exits, unknown in policy.rules():
        verdict = pl.when(reflected).then(STAYS).when(unknown).then(UNJUDGED)
        said = pl.when(which).then(verdict.when(exits).then(STAYS).otherwise(SAVED)).otherwise(said)
    return said.cast(pl.UInt8)
