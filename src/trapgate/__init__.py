"""Trapgate: a virtual-machine environment with control over every fault.

The names exported here are the public interface; everything else may change. Each name is imported
when it is first used, so `import trapgate` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapgate.decision.decide import Decision, Disposition, decide
    from trapgate.decision.fault_filters import FILTERS
    from trapgate.decision.faults import FaultInformation, Interruption
    from trapgate.decision.faults import FaultInformation as Fault
    from trapgate.errors import TrapgateError
    from trapgate.processor.processor import Processor
    from trapgate.processor.vm_exit import VmExit
    from trapgate.replay.policy import Policy
    from trapgate.sdm.interruption import InterruptionType
    from trapgate.sdm.reasons import ExitReason
    from trapgate.trace import Trace, TraceWriter
    from trapgate.vmcs.vmcs import Vmcs
    from trapgate.vmm.actions import Emulated, End, Inject, Resume, Stop
    from trapgate.vmm.direct.host_memory import Host
    from trapgate.vmm.direct.machine import DirectMachine
    from trapgate.vmm.direct.mapped_memory import ProtectedHost
    from trapgate.vmm.direct.protected import ProtectedMachine
    from trapgate.vmm.exits.handlers import reflect
    from trapgate.vmm.exits.vmm import Vmm
    from trapgate.vmm.load import load
    from trapgate.vmm.loaders import load_guest, parse_guest
    from trapgate.vmm.machine import VirtualMachine
    from trapgate.vmm.saved_machine import SavedMachine
    from trapgate.vmm.scheduler import run_all

__all__ = [
    "FILTERS",
    "Decision",
    "DirectMachine",
    "Disposition",
    "Emulated",
    "End",
    "ExitReason",
    "Fault",
    "FaultInformation",
    "Host",
    "Inject",
    "Interruption",
    "InterruptionType",
    "Policy",
    "Processor",
    "ProtectedHost",
    "ProtectedMachine",
    "Resume",
    "SavedMachine",
    "Stop",
    "Trace",
    "TraceWriter",
    "TrapgateError",
    "VirtualMachine",
    "VmExit",
    "Vmcs",
    "Vmm",
    "decide",
    "load",
    "load_guest",
    "parse_guest",
    "reflect",
    "run_all",
]

_HOMES = {
    "Decision": "decision.decide",
    "Disposition": "decision.decide",
    "decide": "decision.decide",
    "FILTERS": "decision.fault_filters",
    "Fault": "decision.faults",
    "FaultInformation": "decision.faults",
    "Interruption": "decision.faults",
    "TrapgateError": "errors",
    "Processor": "processor.processor",
    "VmExit": "processor.processor",
    "Policy": "replay.policy",
    "InterruptionType": "sdm.interruption",
    "ExitReason": "sdm.reasons",
    "Trace": "trace.reader",
    "TraceWriter": "trace.writer",
    "Vmcs": "vmcs.vmcs",
    "Emulated": "vmm.actions",
    "End": "vmm.actions",
    "Inject": "vmm.actions",
    "Resume": "vmm.actions",
    "Stop": "vmm.actions",
    "DirectMachine": "vmm.direct.machine",
    "Host": "vmm.direct.host_memory",
    "ProtectedHost": "vmm.direct.mapped_memory",
    "ProtectedMachine": "vmm.direct.protected",
    "reflect": "vmm.exits.handlers",
    "load": "vmm.load",
    "load_guest": "vmm.loaders",
    "parse_guest": "vmm.loaders",
    "VirtualMachine": "vmm.machine",
    "Vmm": "vmm.machine",
    "run_all": "vmm.scheduler",
    "SavedMachine": "vmm.saved_machine",
}
"""Which module each name comes from."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
