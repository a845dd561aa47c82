"""What a reset sets back, and what it keeps.

A PC's memory, disks, CMOS memory and clock are kept; its devices and processors are as they were
when the machine was switched on, and firmware starts anew. If the guest has left a shutdown code
in CMOS memory, the processors alone are reset and continue where it says, as it was done on
the way back from protected mode (IBM PC AT Technical Reference, "System BIOS").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from trapgate.compiler.dialect import Cells
from trapgate.engine import machine as stops
from trapgate.events.journal import HEAD_CURRENT, HEAD_LEVEL
from trapgate.sdm import vmx
from trapgate.vmm.actions import End, Stop
from trapgate.vmm.firmware.area import FACS, WAKING_VECTOR
from trapgate.vmm.snapshots.state import State

if TYPE_CHECKING:
    from trapgate.vmm.exits.platform import Platform

JUMP_WITH_EOI: Final = 0x05
JUMP: Final = 0x0A
"""Shutdown codes: continue at the address in 40:67, after ending an interrupt or not."""
_RESUME: Final = 0xFE
"""... after S3, as SeaBIOS knows it."""
_RESUME_AT = 0x467
_NAP = 0.1
"""Seconds after which somebody looks at a sleeping machine again."""
_DRIVES = "trapgate.vmm.devices.storage"
_ON_RESET: Final = {
    "GUEST_IA32_PAT": 0x0007_0406_0007_0406,
    "GUEST_IA32_SYSENTER_CS": 0,
    "GUEST_IA32_SYSENTER_ESP": 0,
    "GUEST_IA32_SYSENTER_EIP": 0,
    "GUEST_IA32_DEBUGCTL": 0,
}
"""What RESET does and INIT does not."""
_COUNTERS = (vmx.ENTRIES, vmx.FAILURES, *range(vmx.EXITS, vmx.LENGTH))


class PowerOn:
    """A machine as it comes up; `start` starts its firmware."""

    def __init__(self, vm: Platform, start: Callable[[], object]) -> None:
        self._vm, self._start = vm, start
        parts = {f"cpu {cpu.number}": cpu for cpu in vm.cpus}
        self._state = State({"pc": vm.devices, "bios": vm.bios, **parts}, leaving=_DRIVES)
        engine = vm.processor.engine
        arrays: list[Cells] = [*self._state.arrays.values(), engine.vectors.live]
        arrays += [engine.cells[n : n + 1] for n in stops.OWN_STATE]
        arrays += [array for cpu in vm.cpus[1:] for array in cpu.own.saved_arrays()]
        arrays += [cpu.own.registers.cells for cpu in vm.cpus]
        self._arrays = [(array, array.copy()) for array in arrays]
        self._vmx = [(cpu.own.x86_vmm.state, cpu.own.x86_vmm.state.copy()) for cpu in vm.cpus]

    def reset(self) -> None:
        """Reset everything, and start the firmware."""
        vm = self._vm
        clock = vm.devices.rtc.kept()
        _reset_processors(vm)
        self._state.restore()
        for array, saved in self._arrays:
            array[:] = saved
        for array, saved in self._vmx:
            for cell in _COUNTERS:
                saved[cell] = array[cell]
            array[:] = saved
        vm.devices.rtc.keep(clock)
        engine = vm.processor.engine
        engine.protect_firmware(0)
        engine.hold_a20(low=False)
        for number in range(2):
            engine.open_window(number, 0, 0, 0)
        vm.processor.place_devices(vm.devices.pages)
        self._start()


def warm_reset(vm: Platform) -> bool:
    """Reset the processors alone if the guest has asked for that; whether it has."""
    devices, now = vm.devices, vm.processor.time
    code = devices.rtc.shutdown_code
    if code not in (JUMP_WITH_EOI, JUMP):
        return False
    _reset_processors(vm)
    vm.processor.engine.hold_a20(low=False)
    devices.bus.event = None
    if vm.has_firmware:
        return True
    devices.rtc.shutdown_code = 0
    if code == JUMP_WITH_EOI:
        devices.write(0xA0, 1, 0x20, now)
        devices.write(0x20, 1, 0x20, now)
    offset, segment = (
        int.from_bytes(vm.ram.read(_RESUME_AT + n, 2), "little") for n in (0, 2)
    )  # fmt: skip
    vm.vmcs["GUEST_CS_SELECTOR"], vm.vmcs["GUEST_CS_BASE"] = segment, segment << 4
    vm.vmcs["GUEST_RIP"] = offset
    return True


def enter_s3(vm: Platform) -> bool:
    """Begin the sleep S3 that the guest asks for; False if there is no way back."""
    if not (vm.has_firmware or _waking_vector(vm)):
        return False
    vm.devices.bus.event = None
    return True


def wait_in_s3(vm: Platform) -> Stop | None:
    """Wait in S3 until something ends it; what stops the machine, if nothing will.

    That is the clock's alarm, the power button, a key, or what is planned. If somebody watches, the
    host's time passes as well.
    """
    devices, power, now = vm.devices, vm.devices.power, vm.processor.time
    if not power.woken:
        alarm = devices.rtc.alarm if power.wakes_by_alarm else None
        moments = [moment for moment in (alarm, vm.next_planned) if moment is not None]
        seconds = (min(moments) - now) / devices.bus.clock.hertz if moments else _NAP
        if not vm.wait(min(seconds, _NAP)) and not moments:
            return Stop(End.ASLEEP, "the guest sleeps (ACPI, S3), and nothing will wake it")
        if moments and not power.woken:
            vm.processor.skip_to(min(moments))
            if alarm == min(moments):
                power.alarm_expired()
    if power.woken:
        power.come_up()
        _leave_s3(vm)
    return vm.after_device()


def _waking_vector(vm: Platform) -> int:
    """Where the guest wants to wake up without firmware, in real mode; 0: nowhere."""
    vector = int.from_bytes(vm.ram.read(WAKING_VECTOR, 4), "little")
    return vector if vm.ram.read(FACS, 4) == b"FACS" and vector < 1 << 20 else 0


def _leave_s3(vm: Platform) -> None:
    """End the sleep S3: the processors are reset, and firmware continues where the guest asked for.

    Memory and devices are as they were.
    """
    _reset_processors(vm)
    vm.processor.engine.hold_a20(low=False)
    if vm.has_firmware:
        vm.devices.rtc.shutdown_code = _RESUME
    else:
        vector = _waking_vector(vm)
        vm.vmcs["GUEST_CS_SELECTOR"], vm.vmcs["GUEST_CS_BASE"] = vector >> 4, vector & ~15
        vm.vmcs["GUEST_RIP"] = vector & 15


def _reset_processors(vm: Platform) -> None:
    vm.turn_to(vm.cpus[0])
    for cpu in vm.cpus:
        cpu.leave_vmx()
        cpu.reset()
        for name, value in _ON_RESET.items():
            cpu.vmcs[name] = value
    vm.processor.head[HEAD_CURRENT], vm.processor.head[HEAD_LEVEL] = vmx.NONE, 0
    vm.processor.engine.flush_translations()
    vm.turns.rest()
    vm.device_due()
