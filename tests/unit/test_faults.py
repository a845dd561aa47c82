import dataclasses

import pytest

from trapgate.decision.faults import FaultInformation, Interruption
from trapgate.errors import FieldValueError
from trapgate.sdm.interruption import InterruptionType


@pytest.mark.parametrize(
    ("event", "information", "code"),
    [
        (Interruption(14, error_code=2), 0x80000B0E, 2),
        (Interruption(13, error_code=0), 0x80000B0D, 0),
        (Interruption(6), 0x80000306, 0),
        (Interruption(0x20, InterruptionType.EXTERNAL_INTERRUPT), 0x80000020, 0),
        (Interruption(2, InterruptionType.NMI), 0x80000202, 0),
        (Interruption(3, InterruptionType.SOFTWARE_EXCEPTION), 0x80000603, 0),
    ],
)
def test_information_words(event: Interruption, information: int, code: int) -> None:
    assert event.encode() == (information, code)
    assert Interruption.decode(information, code) == event


def test_an_invalid_word_is_no_event() -> None:
    assert Interruption.decode(0x00000B0E, 2) is None


def test_types_are_enumerated() -> None:
    assert Interruption(3, 6).type is InterruptionType.SOFTWARE_EXCEPTION  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"vector": 256},
        {"vector": -1},
        {"vector": 14, "error_code": 1 << 32},
        {"vector": 14, "cpl": 4},
        {"vector": 14, "address": -1},
        {"vector": 14, "type": 8},
        {"vector": 14, "address": 1 << 64},
        {"vector": 14, "cr3": 1 << 64},
    ],
)
def test_what_no_processor_could_produce(wrong: dict[str, int]) -> None:
    with pytest.raises(FieldValueError, match="unsigned number"):
        FaultInformation(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{"vector": 256}, {"vector": -1}, {"vector": 14, "error_code": 1 << 32},
     {"vector": 14, "error_code": -1}, {"vector": 14, "type": 8}],
)  # fmt: skip
def test_what_no_interruption_field_holds(wrong: dict[str, int]) -> None:
    with pytest.raises(FieldValueError, match="unsigned number"):
        Interruption(**wrong)  # type: ignore[arg-type]


def test_the_greatest_and_least_numbers_fit() -> None:
    greatest = FaultInformation(
        255, (1 << 32) - 1, InterruptionType(7), cpl=3, **dict.fromkeys(_WIDE, (1 << 64) - 1)
    )
    assert (greatest.vector, greatest.cpl, greatest.cr3) == (255, 3, (1 << 64) - 1)
    assert greatest.interruption.encode() == (0x80000FFF, (1 << 32) - 1)
    least = FaultInformation(0, 0, InterruptionType(0), cpl=0, **dict.fromkeys(_WIDE, 0))
    assert least.interruption.encode() == (0x80000800, 0)


_WIDE = ("address", "data", "old_value", "rip", "cr3")


def test_words_with_and_without_an_error_code() -> None:
    # Made here, not when the tests are collected.
    with_code, without = Interruption(13, error_code=2), Interruption(6)
    assert with_code.encode() == (0x80000B0D, 2)
    assert without.encode() == (0x80000306, 0)
    assert Interruption.decode(0x80000B0D, 2) == with_code
    assert Interruption.decode(0x80000306, 2) == without


def test_faults_in_words() -> None:
    assert repr(Interruption(13, error_code=0x10)) == "<#GP(10H), general protection>"
    assert repr(Interruption(6)) == "<#UD, invalid opcode>"
    assert Interruption(6)._repr_html_() == "<p>#UD, invalid opcode</p>"
    fault = FaultInformation(14, 2, address=0x1000, old_value=5, rip=0x20, cpl=1)
    words = (
        "#PF(2H), page fault: write in supervisor mode of a page that is not present, "
        "address 1000H, old value 5H, RIP 20H, CPL 1"
    )
    assert repr(fault) == f"<{words}>"
    assert fault._repr_html_() == f"<p>{words}</p>"
    assert repr(FaultInformation(6)) == "<#UD, invalid opcode, RIP 0H, CPL 0>"
    # What an error code says is said of exceptions only.
    external = FaultInformation(14, 2, InterruptionType.EXTERNAL_INTERRUPT)
    assert repr(external) == "<external interrupt EH, RIP 0H, CPL 0>"


def test_the_type_of_a_fault_is_enumerated() -> None:
    assert FaultInformation(3, None, 6).type is InterruptionType.SOFTWARE_EXCEPTION  # type: ignore[arg-type]


def test_a_fault_becomes_an_event() -> None:
    fault = FaultInformation(14, 7, address=0xC0300000, data=0x1000, rip=0x1234, cpl=3)
    assert fault.interruption == Interruption(14, error_code=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fault.vector = 13  # type: ignore[misc]
