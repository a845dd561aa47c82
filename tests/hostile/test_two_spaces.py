"""An x86 VMM and its guest that write code for each other: neither runs anything stale."""

import pytest

from tests.conformance.x86_vmm import EXITED
from tests.hostile.two_spaces import TwoSpaces
from trapgate.sdm.reasons import ExitReason

ROUNDS = 150
KINDS = {"plain": (False, 0), "vpid": (False, 1), "ept": (True, 0), "ept and vpid": (True, 1)}


@pytest.fixture(autouse=True)
def audit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAPGATE_AUDIT", "1")


def go(mode: str, kind: str, seed: int, rounds: int = ROUNDS) -> None:
    ept, vpid = KINDS[kind]
    spaces = TwoSpaces(mode, seed, rounds, ept=ept, vpid=vpid)
    assert spaces.machine.run() == EXITED
    entries, exits = spaces.machine.processor.x86_vmm.counts()
    assert entries == rounds + 1
    assert exits == {ExitReason.VMCALL: rounds + 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["p32", "l64"])
def test_code_of_two_spaces(mode: str, kind: str) -> None:
    for seed in range(8):
        go(mode, kind, seed)


@pytest.mark.parametrize("kind", ["plain", "vpid"])
def test_code_of_two_spaces_in_pae_paging(kind: str) -> None:
    for seed in range(4):
        go("pae", kind, seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["p32", "l64"])
def test_code_of_many_two_spaces(mode: str, kind: str) -> None:
    for seed in range(100, 400):
        go(mode, kind, seed)
