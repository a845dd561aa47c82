"""SDM, "Checks on Guest Segment Registers"."""

from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs
from trapgate.debug.doctor.fields import SEGMENTS
from trapgate.debug.doctor.processor import ForeignProcessor
from trapgate.debug.doctor.rules import (
    GUEST_FAILS,
    Group,
    Rule,
    canonical,
    fred,
    is_canonical,
    linear_width,
    long_guest,
    unrestricted,
)
from trapgate.sdm import state as st
from trapgate.sdm.check_words import CHECKS
from trapgate.sdm.checks import (
    CODE_OR_SYSTEM,
    DEFAULT_SIZE,
    DPL,
    GRANULARITY_LARGE,
    GRANULARITY_SMALL,
    PRESENT,
    RIGHTS_RESERVED,
    SELECTOR_RPL,
    TYPE,
    UNUSABLE,
    V8086_BASE,
    V8086_LIMIT,
    V8086_RIGHTS,
)

_WRITABLE = 3
_CODE = (9, 11, 13, 15)
_UNSET = (
    "access rights of 0, or copied from a descriptor without shifting; a null selector needs "
    "10000H (unusable)"
)
_DESCRIPTOR_LIMIT = (
    "the limit is in bytes, not pages: with G = 1 it ends in FFFH, with G = 0 it is below 1 MB"
)


def v8086(p: DumpedVmcs) -> bool:
    """Whether the guest will be in virtual-8086 mode."""
    return bool(p["GUEST_RFLAGS"] & st.RFLAGS_VM)


def _rights(p: DumpedVmcs, name: str) -> int:
    return p[f"GUEST_{name}_ACCESS_RIGHTS"]


def _usable(p: DumpedVmcs, name: str) -> bool:
    return not _rights(p, name) & st.AR_UNUSABLE


def _checked(p: DumpedVmcs, name: str) -> bool:
    """Whether the access rights are checked: of CS always, of the others if usable."""
    if name in ("LDTR", "TR"):
        return name == "TR" or _usable(p, name)
    return not v8086(p) and (name == "CS" or _usable(p, name))


def _dpl(p: DumpedVmcs, name: str) -> int:
    return _rights(p, name) >> st.AR_DPL_SHIFT & 3


def _right_type(p: DumpedVmcs, name: str) -> bool:
    kind = _rights(p, name) & st.AR_TYPE
    match name:
        case "CS":
            return kind in _CODE or (kind == _WRITABLE and unrestricted(p))
        case "SS":
            return kind in (3, 7)
        case "LDTR":
            return kind == 2
        case "TR":
            return kind == 11 or (kind == 3 and not long_guest(p))
    return bool(kind & st.AR_ACCESSED) and kind & (st.AR_CODE | st.AR_WRITABLE) != st.AR_CODE


def _right_dpl(p: DumpedVmcs, name: str) -> bool:
    rpl = p[f"GUEST_{name}_SELECTOR"] & 3
    kind = _rights(p, name) & st.AR_TYPE
    if name == "CS":
        if kind == _WRITABLE:
            return _dpl(p, name) == 0
        if kind in (9, 11):
            return _dpl(p, name) == _dpl(p, "SS")
        return kind not in (13, 15) or _dpl(p, name) <= _dpl(p, "SS")
    if name == "SS":
        if _dpl(p, name) != rpl and not unrestricted(p):
            return False
        if _dpl(p, name) == 0:
            return True
        real = _rights(p, "CS") & st.AR_TYPE == _WRITABLE or not p["GUEST_CR0"] & st.CR0_PE
        return not real
    return kind >= 12 or rpl <= _dpl(p, name) or unrestricted(p)


def _right_base(p: DumpedVmcs, name: str, cpu: ForeignProcessor) -> bool:
    base = p[f"GUEST_{name}_BASE"]
    if name in ("FS", "GS", "TR") or (name == "LDTR" and _usable(p, name)):
        return is_canonical(base, linear_width(p, cpu))
    checked = name != "LDTR" and (name == "CS" or _usable(p, name))
    return base >> 32 == 0 or not checked


_FLAGS = "GUEST_RFLAGS"
_BESIDE_DPL = {"CS": ("GUEST_SS_ACCESS_RIGHTS",), "SS": ("GUEST_CS_ACCESS_RIGHTS", "GUEST_CR0")}
"""What else the rule about a segment's DPL looks at."""
_KEEP = 0xF0FF | st.AR_UNUSABLE


def _segment(name: str) -> list[Rule]:
    n = SEGMENTS.index(name)
    low = name.lower()
    system = name in ("LDTR", "TR")
    selector, base, limit, rights = (
        f"GUEST_{name}_{part}" for part in ("SELECTOR", "BASE", "LIMIT", "ACCESS_RIGHTS")
    )
    rules: list[Rule] = []

    def says(check: int) -> str:
        return CHECKS[check + n].rule

    if system:
        rules.append(
            Rule(
                f"{low}-selector-ti",
                (selector, rights),
                "TI (bit 2) must be 0" + ("" if name == "TR" else " if usable"),
                lambda p, cpu: not p[selector] & 4 or (name == "LDTR" and not _usable(p, name)),
                "a selector that was never written",
                lambda value, cpu: value & ~4,
            )
        )
    else:
        rules += [
            Rule(
                f"{low}-v8086-base",
                (base, selector, _FLAGS),
                says(V8086_BASE),
                lambda p, cpu: not v8086(p) or p[base] == p[selector] << 4,
                "virtual-8086 mode has no cached bases: write base, limit and rights again",
            ),
            Rule(
                f"{low}-v8086-limit",
                (limit, _FLAGS),
                says(V8086_LIMIT),
                lambda p, cpu: not v8086(p) or p[limit] == 0xFFFF,
                "the guest is in big real mode, which virtual-8086 mode cannot do",
                lambda value, cpu: 0xFFFF,
            ),
            Rule(
                f"{low}-v8086-rights",
                (rights, _FLAGS),
                says(V8086_RIGHTS),
                lambda p, cpu: not v8086(p) or p[rights] == 0xF3,
                "real mode's rights (93H, 9BH) were kept; virtual-8086 mode has F3H for all",
                lambda value, cpu: 0xF3,
            ),
        ]
    rules += [
        Rule(
            f"{low}-base",
            (base, rights),
            "must be canonical"
            if name in ("FS", "GS", "TR", "LDTR")
            else "bits 63:32 must be 0" + ("" if name == "CS" else " if usable"),
            lambda p, cpu: _right_base(p, name, cpu),
            "a 64-bit base was written to a segment that has 32 bits of it; FS and GS have more"
            if not system
            else "a value that was never written",
        ),
        Rule(
            f"{low}-type",
            (rights,),
            says(TYPE),
            lambda p, cpu: not _checked(p, name) or _right_type(p, name),
            "the TSS is available (type 1 or 9), not busy: bit 1 must be set as LTR does"
            if name == "TR"
            else _UNSET,
        ),
        Rule(
            f"{low}-s",
            (rights,),
            says(CODE_OR_SYSTEM),
            lambda p, cpu: not _checked(p, name) or bool(_rights(p, name) & st.AR_S) != system,
            _UNSET,
            lambda value, cpu: value ^ st.AR_S,
        ),
    ]
    if not system:
        rules.append(
            Rule(
                f"{low}-dpl",
                (rights, selector, *_BESIDE_DPL.get(name, ())),
                says(DPL),
                lambda p, cpu: (
                    v8086(p)
                    or not (name in ("CS", "SS") or _usable(p, name))
                    or _right_dpl(p, name)
                ),
                "the CPL is the DPL of SS: CS, SS and their selectors' RPLs must agree",
            )
        )
    rules += [
        Rule(
            f"{low}-present",
            (rights,),
            says(PRESENT),
            lambda p, cpu: not _checked(p, name) or bool(_rights(p, name) & st.AR_P),
            _UNSET,
            lambda value, cpu: value | st.AR_P,
        ),
        Rule(
            f"{low}-rights-reserved",
            (rights,),
            says(RIGHTS_RESERVED),
            lambda p, cpu: not _checked(p, name) or _rights(p, name) & st.AR_RESERVED == 0,
            "bits 19:16 of the descriptor's limit (bits 11:8 here) came along; mask with F0FFH",
            lambda value, cpu: value & _KEEP,
        ),
        Rule(
            f"{low}-granularity-small",
            (rights, limit),
            says(GRANULARITY_SMALL),
            lambda p, cpu: (
                not _checked(p, name) or not _rights(p, name) & st.AR_G or p[limit] & 0xFFF == 0xFFF
            ),
            _DESCRIPTOR_LIMIT,
            lambda value, cpu: value & ~st.AR_G,
        ),
        Rule(
            f"{low}-granularity-large",
            (rights, limit),
            says(GRANULARITY_LARGE),
            lambda p, cpu: (
                not _checked(p, name) or bool(_rights(p, name) & st.AR_G) or p[limit] >> 20 == 0
            ),
            _DESCRIPTOR_LIMIT,
            lambda value, cpu: value | st.AR_G,
        ),
    ]
    if name == "SS":
        rules.append(
            Rule(
                "ss-rpl",
                (selector, "GUEST_CS_SELECTOR"),
                CHECKS[SELECTOR_RPL + n].rule + ' unless "unrestricted guest" is 1',
                lambda p, cpu: (
                    v8086(p) or not (p[selector] ^ p["GUEST_CS_SELECTOR"]) & 3 or unrestricted(p)
                ),
                "CS was switched to another ring without SS",
            )
        )
    if name == "CS":
        rules.append(
            Rule(
                "cs-default-size",
                (rights, "VM_ENTRY_CONTROLS"),
                says(DEFAULT_SIZE),
                lambda p, cpu: (
                    not _checked(p, name)
                    or _rights(p, name) & (st.AR_L | st.AR_DB) != st.AR_L | st.AR_DB
                    or not long_guest(p)
                ),
                "64-bit code has L = 1 and D = 0",
                lambda value, cpu: value & ~st.AR_DB,
            )
        )
    if name == "TR":
        rules.append(
            Rule(
                "tr-unusable",
                (rights,),
                says(UNUSABLE),
                lambda p, cpu: _usable(p, name),
                "a VMX guest always has a task register: write 8BH, limit 67H, if it has none yet",
                lambda value, cpu: value & ~st.AR_UNUSABLE,
            )
        )
    return rules


_FRED = (
    Rule(
        "fred-ss-dpl",
        ("GUEST_SS_ACCESS_RIGHTS", "GUEST_CR4"),
        "DPL (bits 6:5) must be 0 or 3 if CR4.FRED is 1",
        lambda p, cpu: not fred(p) or _dpl(p, "SS") in (0, 3),
        "rings 1 and 2 do not exist with FRED",
    ),
    Rule(
        "fred-cs-l",
        ("GUEST_CS_ACCESS_RIGHTS", "GUEST_CR4", "GUEST_SS_ACCESS_RIGHTS"),
        "L (bit 13) must be 1 if CR4.FRED is 1 and the DPL of SS is 0",
        lambda p, cpu: not fred(p) or _dpl(p, "SS") != 0 or bool(_rights(p, "CS") & st.AR_L),
        "with FRED a supervisor runs 64-bit code only",
        lambda value, cpu: value & ~st.AR_DB | st.AR_L,
    ),
)

SEGMENTS_GROUP = Group(
    "Checks on Guest Segment Registers",
    GUEST_FAILS,
    (*(rule for name in SEGMENTS for rule in _segment(name)), *_FRED),
)

TABLES = Group(
    "Checks on Guest Descriptor-Table Registers",
    GUEST_FAILS,
    (
        *(canonical(f"{name.lower()}-base", f"GUEST_{name}_BASE") for name in ("GDTR", "IDTR")),
        *(
            Rule(
                f"{name.lower()}-limit",
                (f"GUEST_{name}_LIMIT",),
                "bits 31:16 must be 0",
                lambda p, cpu, field=f"GUEST_{name}_LIMIT": p[field] >> 16 == 0,  # type: ignore[misc]
                "a limit of 32 bits, as segments have; tables end at FFFFH",
                lambda value, cpu: value & 0xFFFF,
            )
            for name in ("GDTR", "IDTR")
        ),
    ),
)

GROUPS = (SEGMENTS_GROUP, TABLES)
