import pytest

from trapgate.decision.decide import (
    REASONS,
    Decision,
    Disposition,
    Reason,
    check_extension_fields,
    decide,
    decide_fault,
    decide_filtered,
    pair_slot,
)
from trapgate.decision.fault_filters import (
    BY_CRITERIA_TABLE,
    BY_FAULT_FILTER,
    BY_KNOWN_TABLE,
    BY_NO_LINK,
    BY_OWN_FRAME,
)
from trapgate.decision.faults import FaultInformation
from trapgate.sdm import checks as ck
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.pagefault import PageFaultCode
from trapgate.vmcs.vmcs import Vmcs

EXIT, DELIVER = Disposition.EXIT, Disposition.DELIVER


def vmcs(**fields: int) -> Vmcs:
    made = Vmcs()
    for name, value in fields.items():
        made[name] = value
    return made


def exiting(made: Vmcs, vector: int, codes: range) -> list[int]:
    return [
        code for code in codes if decide(FaultInformation(vector, code), made).disposition is EXIT
    ]


def test_page_faults_by_figure_3_as_vt_x() -> None:
    made = vmcs(
        EXCEPTION_BITMAP=1 << 14,
        PAGE_FAULT_ERROR_CODE_MASK=0xF,
        PAGE_FAULT_ERROR_CODE_MATCH=PageFaultCode.P | PageFaultCode.W,
    )
    assert exiting(made, 14, range(32)) == [3, 16 + 3]
    made["EXCEPTION_BITMAP"] = 0
    assert exiting(made, 14, range(8)) == [0, 1, 2, 4, 5, 6, 7]
    assert decide(FaultInformation(14, 3), made) == Decision(DELIVER, Reason.FIGURE_3_MATCH)
    assert decide(FaultInformation(14, 2), made) == Decision(EXIT, Reason.FIGURE_3_MISMATCH)


def test_the_mask_and_match_are_for_page_faults_only() -> None:
    made = vmcs(PAGE_FAULT_ERROR_CODE_MASK=0, PAGE_FAULT_ERROR_CODE_MATCH=1)
    assert decide(FaultInformation(13, 0), made) == Decision(DELIVER, Reason.CONTROL_BIT)
    made["EXCEPTION_BITMAP"] = 1 << 13
    assert decide(FaultInformation(13, 0), made) == Decision(EXIT, Reason.CONTROL_BIT)


@pytest.mark.parametrize(
    ("vector", "kind", "disposition"),
    [
        (3, InterruptionType.SOFTWARE_EXCEPTION, EXIT),
        (1, InterruptionType.PRIVILEGED_SOFTWARE_EXCEPTION, EXIT),
        (3, InterruptionType.SOFTWARE_INTERRUPT, DELIVER),
        (14, InterruptionType.SOFTWARE_INTERRUPT, DELIVER),
        (14, InterruptionType.EXTERNAL_INTERRUPT, DELIVER),
        (2, InterruptionType.NMI, DELIVER),
    ],
)
def test_what_the_exception_bitmap_governs(
    vector: int, kind: InterruptionType, disposition: Disposition
) -> None:
    fault = FaultInformation(vector, type=kind)
    assert decide(fault, vmcs(EXCEPTION_BITMAP=0xFFFFFFFF)).disposition is disposition


def test_without_an_error_code_the_bitmap_alone_decides() -> None:
    fault = FaultInformation(14)
    assert decide(fault, vmcs()) == Decision(DELIVER, Reason.CONTROL_BIT)
    assert decide(fault, vmcs(EXCEPTION_BITMAP=1 << 14)) == Decision(EXIT, Reason.CONTROL_BIT)


def test_interrupts_and_nmis_by_the_pin_based_controls() -> None:
    external = FaultInformation(0x30, type=InterruptionType.EXTERNAL_INTERRUPT)
    nmi = FaultInformation(2, type=InterruptionType.NMI)
    made = vmcs(PIN_BASED_CONTROLS=0x16 | 1)
    assert decide(external, made) == Decision(EXIT, Reason.EXTERNAL_INTERRUPT_EXITING)
    assert decide(nmi, made) == Decision(DELIVER, Reason.NMI_EXITING)
    made["PIN_BASED_CONTROLS"] = 0x16 | 8
    assert decide(external, made).disposition is DELIVER
    assert decide(nmi, made).disposition is EXIT


def test_figure_3_for_any_vector_with_an_error_code() -> None:
    # Only those #GP exit whose selector is one of the IDT: bit 1 of the code.
    made = vmcs(
        TRANSFER_CRITERION_VECTORS=1 << 13,
        EXCEPTION_BITMAP=1 << 13,
        VECTOR_13_ERROR_CODE_MASK=2,
        VECTOR_13_ERROR_CODE_MATCH=2,
    )
    assert exiting(made, 13, range(8)) == [2, 3, 6, 7]
    assert exiting(made, 12, range(8)) == []


@pytest.mark.parametrize("vector", [8, 10, 11, 12, 13, 14, 17, 21])
def test_each_vector_has_its_own_pair(vector: int) -> None:
    pair = "PAGE_FAULT" if vector == 14 else f"VECTOR_{vector}"
    made = vmcs(
        TRANSFER_CRITERION_VECTORS=1 << vector,
        TRANSFER_CRITERION=2,
        **{f"{pair}_ERROR_CODE_MASK": 3, f"{pair}_ERROR_CODE_MATCH": 1},
    )
    assert exiting(made, vector, range(8)) == [0, 2, 3, 4, 6, 7]


@pytest.mark.parametrize(
    ("fields", "wanted", "reason"),
    [
        ({"TRANSFER_CRITERION": 1}, [1, 5], Reason.EXCHANGED),
        ({"TRANSFER_CRITERION": 2}, [0, 2, 3, 4, 6, 7], Reason.WITHOUT_CONTROL),
        ({"TRANSFER_CRITERION": 8}, [1, 5], Reason.MATCH_EXITS),
        (
            {
                "TRANSFER_CRITERION": 3,
                "SECOND_ERROR_CODE_MASK": 7,
                "SECOND_ERROR_CODE_MATCH": 6,
            },
            [1, 5, 6],
            Reason.FIGURE_4,
        ),
        ({"TRANSFER_CRITERION": 4, "ANY_BIT_MASK": 4}, [0, 2, 3], Reason.FIGURE_5),
        ({"TRANSFER_CRITERION": 5, "ANY_BIT_MASK": 4}, [1, 4, 5, 6, 7], Reason.ANY_OR_MATCH),
        ({"TRANSFER_CRITERION": 6, "COMPARISON_VALUE": 3}, [3], Reason.COMPARISON),
        (
            {"TRANSFER_CRITERION": 6, "COMPARISON_OPERATOR": 1, "COMPARISON_VALUE": 3},
            [0, 1, 2, 4, 5, 6, 7],
            Reason.COMPARISON,
        ),
        (
            {"TRANSFER_CRITERION": 6, "COMPARISON_OPERATOR": 2, "COMPARISON_VALUE": 3},
            [0, 1, 2],
            Reason.COMPARISON,
        ),
        (
            {"TRANSFER_CRITERION": 6, "COMPARISON_OPERATOR": 3, "COMPARISON_VALUE": 3},
            [0, 1, 2, 3],
            Reason.COMPARISON,
        ),
        (
            {"TRANSFER_CRITERION": 6, "COMPARISON_OPERATOR": 4, "COMPARISON_VALUE": 3},
            [4, 5, 6, 7],
            Reason.COMPARISON,
        ),
        (
            {"TRANSFER_CRITERION": 6, "COMPARISON_OPERATOR": 5, "COMPARISON_VALUE": 3},
            [3, 4, 5, 6, 7],
            Reason.COMPARISON,
        ),
        (
            {"TRANSFER_CRITERION": 7, "MEMBERS_USED": 0x83, "MEMBER_0": 2, "MEMBER_7": 7},
            [0, 2, 7],
            Reason.MEMBER,
        ),
        # ¶41: two-bit fields that stand for bits 2:1.
        (
            {"TRANSFER_CRITERION": 2, "ERROR_CODE_FIELD_WIDTH": 2, "ERROR_CODE_FIELD_SHIFT": 1},
            [0, 1, 4, 5, 6, 7],
            Reason.WITHOUT_CONTROL,
        ),
    ],
)
def test_the_other_criteria_through_the_extension_fields(
    fields: dict[str, int], wanted: list[int], reason: Reason
) -> None:
    made = vmcs(
        TRANSFER_CRITERION_VECTORS=1 << 14,
        PAGE_FAULT_ERROR_CODE_MASK=3,
        PAGE_FAULT_ERROR_CODE_MATCH=1,
        **fields,
    )
    assert exiting(made, 14, range(8)) == wanted
    assert decide(FaultInformation(14, 0), made).reason is reason
    assert not check_extension_fields(made.cells)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRANSFER_CRITERION", 9),
        ("COMPARISON_OPERATOR", 6),
        ("TRANSFER_CRITERION_VECTORS", 1 << 6),
        ("MEMBERS_USED", 0x100),
        ("ERROR_CODE_FIELD_WIDTH", 33),
        ("ERROR_CODE_FIELD_SHIFT", 32),
    ],
)
def test_values_that_vm_entry_refuses(name: str, value: int) -> None:
    made = vmcs(**{name: value})
    assert check_extension_fields(made.cells)
    # Nothing breaks all the same.
    made["TRANSFER_CRITERION_VECTORS"] = 0xFFFFFFFF
    assert decide_fault(made.cells, 14, 3, 3)[0] in (0, 1)


def test_a_field_must_lie_within_the_error_code() -> None:
    assert not check_extension_fields(
        vmcs(ERROR_CODE_FIELD_WIDTH=2, ERROR_CODE_FIELD_SHIFT=30).cells
    )
    assert check_extension_fields(vmcs(ERROR_CODE_FIELD_WIDTH=3, ERROR_CODE_FIELD_SHIFT=30).cells)


def test_exits_through_the_idt_need_bit_31_and_have_a_vector() -> None:
    from trapgate.sdm import cells

    made = Vmcs()
    for value, legal in ((0, True), (1 << 31 | 0x80, True), (0x80, False), (3 << 30, False)):
        made.cells[cells.EXIT_THROUGH_IDT] = value
        assert (check_extension_fields(made.cells) == 0) == legal, value


@pytest.mark.parametrize("name", ["FAULT_FILTER", "FAULT_FILTER_ORDER"])
@pytest.mark.parametrize(("value", "valid"), [(0, True), (3, True), (4, False), (1 << 31, False)])
def test_selectors_of_fault_filters(name: str, value: int, valid: bool) -> None:
    assert (check_extension_fields(vmcs(**{name: value}).cells) == 0) == valid


ORDERS = [
    # order, control bit of page faults: where a write goes that satisfies, and one that does not
    (0, 1, "COMPLETE", "EXIT"),
    (0, 0, "COMPLETE", "DELIVER"),
    (1, 1, "COMPLETE", "EXIT"),
    (1, 0, "DELIVER", "DELIVER"),
    (2, 1, "COMPLETE", "EXIT"),
    (2, 0, "COMPLETE", "EXIT"),
    (3, 1, "EXIT", "EXIT"),
    (3, 0, "COMPLETE", "DELIVER"),
]


@pytest.mark.parametrize(("order", "control", "satisfied", "otherwise"), ORDERS)
@pytest.mark.parametrize(
    ("number", "reason"), [(1, "FIGURE_7"), (2, "FIGURE_8"), (3, "PARAGRAPH_80")]
)
def test_orders(
    order: int, control: int, satisfied: str, otherwise: str, number: int, reason: str
) -> None:
    made = vmcs(FAULT_FILTER=number, FAULT_FILTER_ORDER=order, EXCEPTION_BITMAP=control << 14)
    fault = FaultInformation(14, 3, address=0xC0000000, data=0, old_value=0)
    assert decide(fault, made).disposition.name == otherwise
    decision = decide(fault, made, filtered=True)
    assert decision.disposition.name == satisfied
    if satisfied == "COMPLETE":
        assert decision.reason.name == f"FAULT_FILTER_{reason}"
    alone = decide(fault, made).reason is Reason.FAULT_FILTER_ALONE
    assert alone == (order == 2)


@pytest.mark.parametrize("order", range(4))
def test_orders_are_nothing_without_a_filter_or_a_page_fault(order: int) -> None:
    page_fault, protection = FaultInformation(14, 3), FaultInformation(13, 0)
    none = vmcs(FAULT_FILTER_ORDER=order)
    assert decide(page_fault, none, filtered=True).disposition.name == "DELIVER"
    one = vmcs(FAULT_FILTER=1, FAULT_FILTER_ORDER=order)
    assert decide(protection, one, filtered=True).disposition.name == "DELIVER"


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        (Decision(EXIT, Reason.FIGURE_3_MATCH), "<exits: figure 3 match>"),
        (Decision(DELIVER, Reason.MEMBER), "<is delivered: member>"),
        (Decision(Disposition.COMPLETE, Reason.OWN_FRAME), "<completes: own frame>"),
    ],
)
def test_decisions_in_words(decision: Decision, words: str) -> None:
    assert repr(decision) == words


def test_reasons_have_names() -> None:
    assert REASONS[1] == "FIGURE_3_MATCH"
    assert set(REASONS.values()) == set(Reason.__members__)


@pytest.mark.parametrize(
    ("kind", "pin", "decision"),
    [
        (0, 0, (1, Reason.EXTERNAL_INTERRUPT_EXITING)),
        (0, 1, (0, Reason.EXTERNAL_INTERRUPT_EXITING)),
        (2, 0, (1, Reason.NMI_EXITING)),
        (2, 8, (0, Reason.NMI_EXITING)),
        (4, 9, (1, Reason.SOFTWARE_INTERRUPT)),
        (7, 0, (0, Reason.OTHER_EVENT)),
        (6, 0, (1, Reason.CONTROL_BIT)),
        (5, 0, (1, Reason.CONTROL_BIT)),
    ],
)
def test_events_that_are_no_faults(kind: int, pin: int, decision: tuple[int, int]) -> None:
    made = vmcs(PIN_BASED_CONTROLS=0x16 | pin)
    assert decide_fault(made.cells, 2, kind, -1) == decision


@pytest.mark.parametrize(
    ("name", "good", "bad", "check"),
    [
        ("FAULT_FILTER", 3, 4, 357),
        ("FAULT_FILTER_ORDER", 3, 4, 358),
        ("TRANSFER_CRITERION", 8, 9, 352),
        ("COMPARISON_OPERATOR", 5, 6, 353),
        *(("TRANSFER_CRITERION_VECTORS", 0x227D00, 1 << n, 354) for n in (0, 1, 7, 9, 15, 16, 22)),
        ("MEMBERS_USED", 0xFF, 0x100, 355),
        ("ERROR_CODE_FIELD_WIDTH", 32, 33, 356),
        ("ERROR_CODE_FIELD_SHIFT", 31, 32, 356),
    ],
)
def test_each_check_of_the_extension_fields(name: str, good: int, bad: int, check: int) -> None:
    assert check_extension_fields(vmcs(**{name: good}).cells) == 0
    assert check_extension_fields(vmcs(**{name: bad}).cells) == check


@pytest.mark.parametrize(
    ("fields", "good", "check"),
    [
        (
            {},
            {"FRAME_MAP_ADDRESS": [0xFF_FFFF_F000, 0x1000], "FRAME_MAP_LENGTH": [1 << 28]},
            ck.FRAME_MAP,
        ),
        ({"FRAME_MAP_LENGTH": 1}, {"FRAME_FILTERS": [1, 2, 4, 7, 8, 16, 31]}, ck.FRAME_FILTERS),
        (
            {"FRAME_MAP_LENGTH": 1},
            {"ALIAS_BASE": [0xFF_FFE0_0000, 0x20_0000], "ALIAS_LENGTH": [0xFF_FFFF_F000, 0x1000]},
            ck.ALIAS,
        ),
        ({}, {"EXIT_THROUGH_IDT": [0x8000_0000, 0x8000_00FF]}, ck.EXTENSION_RESERVED),
        ({}, {"ERROR_CODE_FIELD_WIDTH": [0, 32], "ERROR_CODE_FIELD_SHIFT": [0, 31]}, 356),
    ],
)
def test_good_values_of_the_extension_fields(
    fields: dict[str, int], good: dict[str, list[int]], check: int
) -> None:
    for name, values in good.items():
        for value in values:
            assert check_extension_fields(vmcs(**fields, **{name: value}).cells) == 0, (name, value)
    for name, value in BAD[check]:
        assert check_extension_fields(vmcs(**fields, **{name: value}).cells) == check, (name, value)
    if fields:
        # Neither means anything without a map.
        for name in ("FRAME_FILTERS", "ALIAS_LENGTH"):
            if name in good:
                assert check_extension_fields(vmcs(**{name: good[name][0]}).cells) == check


BAD = {
    ck.FRAME_MAP: [
        *(("FRAME_MAP_ADDRESS", 1 << n) for n in (0, 11, 40, 62)),
        ("FRAME_MAP_LENGTH", (1 << 28) + 1),
    ],
    ck.FRAME_FILTERS: [("FRAME_FILTERS", 32), ("FRAME_FILTERS", 1 << 31)],
    ck.ALIAS: [
        *(("ALIAS_BASE", 1 << n) for n in (0, 12, 20, 40)),
        *(("ALIAS_LENGTH", 1 << n) for n in (0, 11, 40)),
    ],
    ck.EXTENSION_RESERVED: [
        ("EXIT_THROUGH_IDT", value) for value in (1, 0xFF, 0x8000_0100, 0xC000_0000)
    ],
    ck.EXTENSION_CODE_FIELD: [("ERROR_CODE_FIELD_WIDTH", 33), ("ERROR_CODE_FIELD_SHIFT", 32)],
}


@pytest.mark.parametrize(
    ("which", "reason"),
    [
        (BY_FAULT_FILTER, Reason.FAULT_FILTER_FIGURE_8),
        (BY_OWN_FRAME, Reason.OWN_FRAME),
        (BY_NO_LINK, Reason.NO_LINK),
        (BY_KNOWN_TABLE, Reason.KNOWN_TABLE),
        (BY_CRITERIA_TABLE, Reason.CRITERIA_TABLE),
    ],
)
def test_who_completes_a_write_is_told(which: int, reason: Reason) -> None:
    made = vmcs(FAULT_FILTER=2)
    assert decide_filtered(made.cells, 3, which) == (int(Disposition.COMPLETE), reason)


def test_a_rule_that_completes_does_so_in_every_order() -> None:
    for order, control in ((1, 0), (3, 1 << 14)):
        made = vmcs(FAULT_FILTER=2, FAULT_FILTER_ORDER=order, EXCEPTION_BITMAP=control)
        assert decide_filtered(made.cells, 3, BY_CRITERIA_TABLE)[0] == Disposition.COMPLETE
        assert decide_filtered(made.cells, 3, BY_OWN_FRAME)[0] != Disposition.COMPLETE


@pytest.mark.parametrize("filters", [{"FAULT_FILTER": 1}, {"FRAME_FILTERS": 1}])
def test_paragraph_66_lets_a_filter_alone_decide(filters: dict[str, int]) -> None:
    made = vmcs(EXCEPTION_BITMAP=1 << 14, FAULT_FILTER_ORDER=2, **filters)
    assert decide_fault(made.cells, 14, 3, 3)[1] == Reason.FAULT_FILTER_ALONE
    none = vmcs(EXCEPTION_BITMAP=1 << 14, FAULT_FILTER_ORDER=2, FRAME_MAP_LENGTH=1)
    assert decide_fault(none.cells, 14, 3, 3)[1] != Reason.FAULT_FILTER_ALONE


@pytest.mark.parametrize("n", range(8))
def test_each_member_has_its_value_and_its_bit(n: int) -> None:
    values = {f"MEMBER_{m}": 0x8000_0000 | m for m in range(8)}
    made = vmcs(
        TRANSFER_CRITERION_VECTORS=1 << 14, TRANSFER_CRITERION=7, MEMBERS_USED=1 << n, **values
    )
    codes = [0x8000_0000 | m for m in range(8)]
    exits = [code for code in codes if decide_fault(made.cells, 14, 3, code)[0] == EXIT]
    assert exits == [0x8000_0000 | n]
    assert decide_fault(made.cells, 14, 3, 1 << 16)[1] == Reason.MEMBER


@pytest.mark.parametrize("n", range(8))
def test_members_are_narrow_fields_too(n: int) -> None:
    made = vmcs(
        TRANSFER_CRITERION_VECTORS=1 << 14,
        TRANSFER_CRITERION=7,
        MEMBERS_USED=1 << n,
        ERROR_CODE_FIELD_WIDTH=2,
        ERROR_CODE_FIELD_SHIFT=1,
        **{f"MEMBER_{n}": 7},
    )
    assert exiting(made, 14, range(16)) == [6, 7, 14, 15]


@pytest.mark.parametrize("vector", [13, 14])
def test_figure_3_by_the_extension_says_which_way_it_went(vector: int) -> None:
    pair = "PAGE_FAULT" if vector == 14 else f"VECTOR_{vector}"
    made = vmcs(
        TRANSFER_CRITERION_VECTORS=1 << vector,
        **{f"{pair}_ERROR_CODE_MASK": 3, f"{pair}_ERROR_CODE_MATCH": 1},
    )
    assert decide(FaultInformation(vector, 5), made) == Decision(DELIVER, Reason.FIGURE_3_MATCH)
    assert decide(FaultInformation(vector, 7), made) == Decision(EXIT, Reason.FIGURE_3_MISMATCH)


@pytest.mark.parametrize("vector", range(32))
def test_vectors_without_a_pair(vector: int) -> None:
    wanted = {8: 0, 10: 1, 11: 2, 12: 3, 13: 4, 17: 5, 21: 6}.get(vector, -1)
    assert pair_slot(vector) == wanted


@pytest.mark.parametrize(
    ("width", "shift", "mapped"),
    [(32, 0, 0xFFFF_FFFF), (31, 1, 0xFFFF_FFFE), (1, 31, 0x8000_0000), (16, 8, 0xFF_FF00)],
)
def test_where_narrow_fields_lie(width: int, shift: int, mapped: int) -> None:
    made = vmcs(
        TRANSFER_CRITERION_VECTORS=1 << 14,
        TRANSFER_CRITERION=6,
        COMPARISON_VALUE=0,
        ERROR_CODE_FIELD_WIDTH=width,
        ERROR_CODE_FIELD_SHIFT=shift,
    )
    for bit in range(32):
        exits = decide_fault(made.cells, 14, 3, 1 << bit)[0] == EXIT
        assert exits == (not mapped >> bit & 1)
    made["COMPARISON_VALUE"] = 0xFFFF_FFFF
    assert decide_fault(made.cells, 14, 3, mapped)[0] == EXIT
