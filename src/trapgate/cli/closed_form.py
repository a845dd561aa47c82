"""`trapgate criteria merge --format kvm-c`: the merge of two page-fault filters as a function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trapgate.trace.document import Document, Part
    from trapgate.vmcs.vmcs import Vmcs


class MergeForm(StrEnum):
    """How merged fields are printed; and the closed form for nested VMX, in C."""

    all = "all"
    toml = "toml"
    c = "c"
    vmwrite = "vmwrite"
    kvm_c = "kvm-c"
    kvm_c_test = "kvm-c-test"


def closed_form(
    given: Sequence[Vmcs], *, program: bool, timeout: float
) -> tuple[str, dict[str, Any]]:
    """The function (or its test program) in C, proved and tested; and all of it for JSON.

    Raises: CriteriaError if there are not two VMCSs; ProofError; UndecidedError.
    """
    from trapgate.criteria import CriteriaError, kvm_c
    from trapgate.criteria.problems.problem import Deadline
    from trapgate.criteria.proofs.closed_form import PageFaultFilter, merged, prove_closed_form

    if len(given) != 2:
        raise CriteriaError("the closed form takes two files, L0's and L1's")
    l0, l1 = (PageFaultFilter.of(vmcs) for vmcs in given)
    proved = prove_closed_form(deadline=Deadline(timeout))
    found = kvm_c.compiler()
    tested = None if found is None else kvm_c.run_test_program(found)
    text = kvm_c.TEST_PROGRAM if program else kvm_c.source(l0, l1, proved, tested)
    result, lost = merged(l0, l1), kvm_c.counterexample_to_sketch(l0, l1)
    return text, {
        "c": text,
        "proved": vars(proved),
        "compiled_by": tested,
        "vmcs02": {
            "exception_bitmap_14": result.bit,
            "mask": f"{result.mask:#x}",
            "match": f"{result.match:#x}",
        },
        "lost_by_equal_masks": None if lost is None else f"{lost:#x}",
    }


def closed_form_page(text: str, said: Mapping[str, Any]) -> Document:
    """The function, and what was proved, as a page."""
    from trapgate.trace.document import Document, Listing, Paragraph, Table

    told = (*said["vmcs02"].items(), *said["proved"].items())
    rows = tuple((name, str(value)) for name, value in told)
    parts: list[Part] = [Table(("what", "value"), rows, "vmcs02, and what was proved")]
    if said["lost_by_equal_masks"] is not None:
        parts.append(
            Paragraph(
                "With mask and match used only where both are equal, and the OR of both bits 14, "
                f"error code {said['lost_by_equal_masks']} would be lost."
            )
        )
    return Document("Page-fault filters merged, in C", (*parts, Listing(text, "c")))
