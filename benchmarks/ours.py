"""Trapgate's own sides, through the public interface only: `Processor` and `VirtualMachine`."""

import functools
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.guests import Loop, multiboot_guest
from benchmarks.measure import SkipSide
from trapgate.errors import EngineError
from trapgate.processor.processor import Processor
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import controls
from trapgate.sdm.reasons import ExitReason
from trapgate.vmcs.vmcs import Vmcs
from trapgate.vmm.actions import EMULATED, Action, End
from trapgate.vmm.exits.platform import Platform
from trapgate.vmm.exits.vmm import Vmm
from trapgate.vmm.loaders import load_guest, parse_guest
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.ui.console import Console

MEMORY = 8 << 20
"""RAM of the machines that run loops, in bytes; Linux gets what QEMU gives it."""

LINUX_MEMORY = 256 << 20
_PATIENCE = 120.0
_PROCESSOR = "import trapgate.processor.processor as p; p.Processor(1 << 20)"


@functools.cache
def _ready(engine: str) -> None:
    """Have the engine compiled before anything is timed; SkipSide if it is not here."""
    try:
        Processor(1 << 20, engine=engine)
    except EngineError as why:
        raise SkipSide(str(why)) from None


def prepared(loop: Loop, engine: str, *, user: bool) -> tuple[Processor, Vmcs]:
    """A processor with the loop's guest in memory, and a VMCS that leaves it all its faults."""
    _ready(engine)
    image = parse_guest(multiboot_guest(loop, user=user), file="loop.elf", memory=MEMORY)
    processor = Processor(MEMORY, engine=engine)
    vmcs = Vmcs()
    for segment in image.segments:
        processor.memory.write(segment.address, segment.data)
    for name, value in image.fields.items():
        vmcs[name] = value
    vmcs["GUEST_CR0"] |= 1 << 5  # CR0.NE, CR4.VMXE: fixed to 1 by VMX
    vmcs["GUEST_CR4"] |= 1 << 13
    vmcs["CR0_GUEST_HOST_MASK"] = 0
    vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= controls.PRIMARY_UNCONDITIONAL_IO_EXITING
    vmcs["SECONDARY_PROCESSOR_BASED_CONTROLS"] |= controls.SECONDARY_VPID
    vmcs["VIRTUAL_PROCESSOR_IDENTIFIER"] = 1
    return processor, vmcs


def seconds_of(loop: Loop, engine: str, *, user: bool = False) -> float:
    """Seconds that the loop's guest runs on a `Processor` without a VM exit."""
    processor, vmcs = prepared(loop, engine, user=user)
    began = time.perf_counter()
    outcome = processor.vmlaunch(vmcs)
    seconds = time.perf_counter() - began
    _demand(outcome, ExitReason.IO_INSTRUCTION)
    return seconds


def seconds_of_exits(loop: Loop, engine: str, reason: ExitReason) -> float:
    """Seconds of a plain loop over `vmresume` that steps over each instruction that exits."""
    processor, vmcs = prepared(loop, engine, user=False)
    began = time.perf_counter()
    outcome = processor.vmlaunch(vmcs)
    while isinstance(outcome, VmExit) and outcome.reason is reason:
        vmcs["GUEST_RIP"] += outcome.instruction_length
        outcome = processor.vmresume(vmcs)
    seconds = time.perf_counter() - began
    _demand(outcome, ExitReason.IO_INSTRUCTION)
    return seconds


def seconds_of_machine(loop: Loop, engine: str) -> float:
    """Seconds of the same under a `VirtualMachine` whose `Vmm` has a handler for VMCALL."""
    _ready(engine)
    machine = VirtualMachine(MEMORY, engine=engine, vmm=Vmm({ExitReason.VMCALL: _hypercall}))
    machine.load(parse_guest(multiboot_guest(loop), file="loop.elf", memory=MEMORY))
    began = time.perf_counter()
    stop = machine.run(timeout=_PATIENCE)
    seconds = time.perf_counter() - began
    if stop.end is not End.DEBUG_EXIT:
        raise SkipSide(stop.message)
    return seconds


def _hypercall(_exit: VmExit, _vm: Platform) -> Action:
    return EMULATED


def _demand(outcome: object, reason: ExitReason) -> None:
    if not (isinstance(outcome, VmExit) and outcome.reason is reason):
        raise SkipSide(f"the guest did not get to its end: {outcome}")


def seconds_to(text: str, kernel: Path, initrd: Path, append: str, engine: str) -> float:
    """Seconds of a `VirtualMachine` from its making until its console has shown `text`."""
    _ready(engine)
    began = time.perf_counter()
    console = Console(io.BytesIO(), until=text)
    machine = VirtualMachine(LINUX_MEMORY, engine=engine, console=console)
    machine.load(load_guest(kernel, memory=LINUX_MEMORY, append=append, initrd=initrd))
    with console:
        stop = machine.run(timeout=_PATIENCE)
    if stop.end is not End.UNTIL:
        raise SkipSide(stop.message)
    return time.perf_counter() - began


def process_seconds_to(text: str, kernel: Path, initrd: Path, append: str, engine: str) -> float:
    """Wall seconds of a fresh process that does the same, imports and all."""
    _ready(engine)
    began = time.perf_counter()
    _python("-m", __name__, text, str(kernel), str(initrd), append, engine)
    return time.perf_counter() - began


def process_seconds() -> float:
    """Wall seconds of a fresh process that makes a `Processor`, its code compiled before."""
    _ready("auto")
    began = time.perf_counter()
    _python("-c", _PROCESSOR)
    return time.perf_counter() - began


@functools.cache
def process_seconds_uncached() -> float:
    """The same with nothing compiled before. Takes long, so it is measured once."""
    with tempfile.TemporaryDirectory() as empty:
        began = time.perf_counter()
        _python("-c", _PROCESSOR, XDG_CACHE_HOME=empty)
        return time.perf_counter() - began


def _python(*arguments: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SkipSide((done.stderr.splitlines() or ["the process failed"])[-1])


if __name__ == "__main__":
    _text, _kernel, _initrd, _append, _engine = sys.argv[1:]
    seconds_to(_text, Path(_kernel), Path(_initrd), _append, _engine)
