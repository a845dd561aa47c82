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
    ],
)
def test_what_no_processor_could_produce(wrong: dict[str, int]) -> None:
    with pytest.raises(FieldValueError, match="unsigned number"):
        FaultInformation(**wrong)  # type: ignore[arg-type]


def test_a_fault_becomes_an_event() -> None:
    fault = FaultInformation(14, 7, address=0xC0300000, data=0x1000, rip=0x1234, cpl=3)
    assert fault.interruption == Interruption(14, error_code=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fault.vector = 13  # type: ignore[misc]
