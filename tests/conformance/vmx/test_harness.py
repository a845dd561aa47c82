"""The harness itself: its images are what their sources say."""

from pathlib import Path

import pytest

from tests.conformance.vmx import harness as h


@pytest.mark.skipif(not h.assembler_is_there(), reason="needs GNU as and ld")
def test_the_images_are_made_of_their_sources() -> None:
    for bits in (32, 64):
        assert h.assembled("harness.S", h.ORIGIN, f"BITS={bits}") == h.binary(bits)
    boot = Path(__file__).with_name("boot.bin").read_bytes()
    assert h.assembled("boot.S", 0x7C00) == boot


@pytest.mark.parametrize("bits", [32, 64])
def test_results_come_in_order(bits: int) -> None:
    script = h.Script(bits)
    script.poke(h.AREAS, b"abcd")
    first = script.call(b"\x31\xc9\x83\xc9\x01", 0x1234)
    second = script.peek(h.AREAS)
    third = script.call(b"\x0f\x0b")
    results = h.run(script)
    assert results.ran(first).verdict == "ok"  # 0 | 1 sets no flag
    assert results.ran(first).rax == 0x1234
    assert results[second] == int.from_bytes(b"abcd", "little")
    assert results.ran(third).verdict == "fault 6"
