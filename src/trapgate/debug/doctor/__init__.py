"""The doctor for VM-entry failures: which of the SDM's checks does a printed VMCS fail?

`dump` reads what hypervisors print, `dumped_vmcs` holds the fields that were found, `rules` and its
neighbours have the checks, `examine` makes them, `repair` looks for the smallest change after which
none fails. The dump comes from another processor: `processor` says what is known of its
capabilities. It may import `vmcs` and below. Begin with `examine`.
"""

from trapgate.debug.doctor.dump import read_dump
from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs
from trapgate.debug.doctor.examine import Diagnosis, Finding, examine
from trapgate.debug.doctor.processor import ForeignProcessor, read_capabilities
from trapgate.debug.doctor.repair import Repair, repair

__all__ = [
    "Diagnosis",
    "DumpedVmcs",
    "Finding",
    "ForeignProcessor",
    "Repair",
    "examine",
    "read_capabilities",
    "read_dump",
    "repair",
]
