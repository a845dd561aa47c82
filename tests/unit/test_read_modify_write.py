import pytest

from trapgate.decode.read_modify_write import opcode_writes_what_it_reads
from trapgate.operands.encoding import prefix_length

YES = (
    "0103 8003f0 8303f1 810300000000 0003 1103 2103 2903 3103 fe03 fe0b ff03 ff0b f613 f71b "
    "c00301 c1e301 d003 d1e3 d2e3 d3e3 8603 8703 0fab03 0fb303 0fbb03 0fba2b01 0fba3301 "
    "0fba3b01 0fb003 0fb103 0fc003 0fc103 0fc70b f00fb10b f00103 660103 2e0103 0fa403 0fad03"
)
NO = (
    "8b03 8903 3903 3b03 803bf0 833bf1 0303 0b03 f60301 f723 f733 ff13 ff23 ff33 8f03 0fa303 "
    "0fba2301 0fb603 0fc7f0 a4 ab 0f0b 90 cc d903 666666666666 0f01d0"
)


def answer(code: str, *, long: bool = False) -> bool:
    word = int.from_bytes(bytes.fromhex(code).ljust(8, b"\x90")[:8], "little", signed=True)
    return bool(opcode_writes_what_it_reads(word, prefix_length(word, long)))


@pytest.mark.parametrize("code", YES.split())
def test_writes(code: str) -> None:
    assert answer(code)


@pytest.mark.parametrize("code", NO.split())
def test_does_not(code: str) -> None:
    assert not answer(code)


def test_rex_is_a_prefix_in_64_bit_code_only() -> None:
    assert answer("480103", long=True)
    assert not answer("480103")
