"""The harness on Bochs, as an outside opinion: `python -m tests.conformance.vmx.bochs`.

Debian's `bochs` has VMX in some of its processor models. The same scripts run on it and on
our processor; what differs is printed, with what Bochs is known to do otherwise.
"""

from pathlib import Path

from benchmarks import bochs
from tests.conformance.vmx import guests, violations
from tests.conformance.vmx import harness as h
from tests.conformance.vmx import test_entry_checks as entry
from tests.conformance.vmx import test_ept as ept
from tests.conformance.vmx import test_failure_modes as modes
from tests.conformance.vmx.violations import Changes
from trapgate.sdm.check_words import CHECKS

REVISION = 0x2B
"""Bochs' VMCS revision identifier."""
PATIENCE = 100.0
_FLOPPY = 1440 << 10


def run(script: h.Script) -> h.Results:
    """Run a script on Bochs."""
    image = script.image(serial=True)
    sectors = (len(image) + 511) // 512
    if sectors > 1024:
        raise ValueError(f"the image has {len(image)} bytes; a boot takes {1024 * 512}")
    boot = bytearray(Path(__file__).with_name("boot.bin").read_bytes())
    boot[4:6] = sectors.to_bytes(2, "little")
    disk = (bytes(boot) + image).ljust(_FLOPPY, b"\0")
    return h.Results(bochs.run(disk, patience=PATIENCE)[1])


def compare_instructions(bits: int) -> list[str]:
    """Rows of `test_failure_modes` of which Bochs thinks otherwise."""
    # Bochs panics at VMCALL in VMX root operation.
    rows = [row for row in modes.ROWS if not row.name.startswith("VMCALL in root")]
    script, places = modes.build(bits, rows, REVISION)
    results = run(script)
    found = []
    for row, place, error in places:
        verdict = results.ran(place).verdict
        said: str | int = results[error] if verdict == "fail" and error is not None else verdict
        if said != row.answer:
            found.append(f"{bits}: {row.name} ({row.state}): {said}, expected {row.answer}")
    return found


def compare_checks(bits: int) -> list[str]:
    """Rows of `test_entry_checks` of which Bochs thinks otherwise than our processor."""
    script, places = entry.build(bits, extensions=False, revision=REVISION, without=_ends_bochs)
    theirs = entry.judged(run(script), places)
    ours = entry.entries(bits)
    found = []
    for key, said in theirs.items():
        expected = ours[key]
        got, wanted = (_outcome(answer) for answer in (said, expected))
        if got != wanted:
            row = entry.ROWS[key[0]]
            rule = CHECKS[row.check].rule
            which = "good" if key[1] < 0 else f"bad {key[1]}"
            found.append(f"{bits}: check {row.check}, {which}: {got}, here {wanted} ({rule})")
    return found


def compare_ept(mode: str) -> list[str]:
    """Rows of `test_ept` of which Bochs thinks otherwise."""
    rows = ept.of(mode)
    batch = guests.Batch(64, mode, REVISION, ept.plain(mode, 0))
    for row in rows:
        batch.add(row.case)
    found = []
    for row, done in zip(rows, batch.exits(run(batch.script)), strict=True):
        got, wanted = (ept.told(done), done.idt_vectoring), (row.wanted, row.event)
        if done.verdict != "exit" or got != wanted:
            found.append(f"{mode}: EPT, {row.name}: {done.verdict} {got}, expected {wanted}")
    return found


def _ends_bochs(changes: Changes) -> bool:
    """What ends a run: a pending MTF exit whose vector is not 0, and a guest that sleeps on."""
    injected = changes.get("VM_ENTRY_INTERRUPTION_INFORMATION", 0)
    return injected == violations.event(1, 7) or "GUEST_ACTIVITY_STATE" in changes


def _outcome(answer: entry.Entry) -> str:
    if answer.verdict == "fail":
        return f"VMfail {answer.error}"
    if answer.verdict == "exit" and answer.reason & 1 << 31:
        return f"entry failure, qualification {answer.qualification}"
    return answer.verdict


if __name__ == "__main__":
    for width in (64, 32):
        differences = compare_instructions(width) + compare_checks(width)
        print("\n".join(differences) or f"{width}: no differences")
    for kind in ept.MODES:
        print("\n".join(compare_ept(kind)) or f"{kind}: EPT, no differences")
