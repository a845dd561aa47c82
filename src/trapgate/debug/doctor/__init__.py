"""The doctor for VM-entry failures: which checks of the SDM does a VMCS in print not pass?

`dump` reads what hypervisors print, `patient` holds the fields that were found, `rules` and its
neighbours have the checks, `examine` makes them, `repair` looks for the smallest change that
passes. The processor in the dump is not ours: what it can do is known from `processor`, or unknown.
It imports `vmcs` and `sdm`, and needs no engine. Begin with `examine`.
"""

from trapgate.debug.doctor.dump import read_dump
from trapgate.debug.doctor.examine import Diagnosis, Finding, examine
from trapgate.debug.doctor.patient import Patient
from trapgate.debug.doctor.processor import ForeignProcessor, read_capabilities
from trapgate.debug.doctor.repair import Repair, repair

__all__ = [
    "Diagnosis",
    "Finding",
    "ForeignProcessor",
    "Patient",
    "Repair",
    "examine",
    "read_capabilities",
    "read_dump",
    "repair",
]
