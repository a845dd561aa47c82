"""What gdb takes for threads: the processors of the machines, and the guests of x86 VMMs on them.

Of a VMM and its guest on one processor one is in force. The other one is parked: of the guest, the
current VMCS has the state that the next VM entry loads; of the VMM, that which the next VM exit
loads. General registers of who is parked lie where its VMM has put them, and nobody knows where.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trapgate.compiler.dialect import Cells
from trapgate.debug.postmortem.view import View
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm import state as st
from trapgate.sdm import vmx
from trapgate.sdm.event_words import hexadecimal
from trapgate.sdm.registers import CR2
from trapgate.vmm.cpus.cpu import Cpu
from trapgate.vmm.machine import VirtualMachine

_MASK = (1 << 64) - 1
_FRAME = (1 << 52) - 1 & ~0xFFF
_GUEST, _HOST = "GUEST_", "HOST_"
_LOADED = {
    name: _HOST + name.removeprefix(_GUEST)
    for name in vars(f)
    if name.startswith(_GUEST) and hasattr(f, _HOST + name.removeprefix(_GUEST))
}
"""Fields of the guest-state area that a VM exit loads, and those that it loads them from."""
_FLAT_64, _FLAT_32 = 0xA09B, 0xC09B
"""Access rights of CS after a VM exit (SDM, "Loading Host Segment and Descriptor-Table
Registers")."""


@dataclass(frozen=True)
class Thread:
    """A processor, or the `guest` of the x86 VMM on it; `number` is gdb's."""

    number: int
    vm: VirtualMachine
    cpu: Cpu
    guest: bool

    @property
    def in_force(self) -> bool:
        """Whether it, not its VMM or its guest, continues when the processor does."""
        return self.cpu.own.x86_vmm.guest_is_in_vmcs0 == self.guest

    @property
    def words(self) -> str:
        """What it is."""
        x86_vmm = self.cpu.own.x86_vmm
        machine = f"machine {self.vm.number}, processor {self.cpu.number}"
        role = ""
        if self.guest:
            role = f": guest of VMCS {hexadecimal(int(x86_vmm.state[vmx.CURRENT]))}"
        elif x86_vmm.in_vmx_operation:
            role = ": VMM"
        return f"{machine}{role}{'' if self.in_force else ', parked'}"

    def cells(self) -> Cells:
        """A VMCS whose guest-state area is its state."""
        if self.in_force:
            return self.cpu.vmcs.cells
        current = self.cpu.own.x86_vmm.vmcs
        if self.guest:
            return current
        made = current.copy()
        for guest, host in _LOADED.items():
            made[getattr(f, guest)] = current[getattr(f, host)]
        wide = bool(int(current[f.VM_EXIT_CONTROLS]) & ct.EXIT_HOST_ADDRESS_SPACE_SIZE)
        made[f.GUEST_CS_ACCESS_RIGHTS] = _FLAT_64 if wide else _FLAT_32
        made[f.GUEST_IA32_EFER] = (st.EFER_LMA | st.EFER_LME) * wide
        made[f.GUEST_RFLAGS] = 2
        return made

    def value(self, name: str) -> int | None:
        """A field of it, unsigned; None if nobody knows."""
        if not (self.in_force or self.guest) and name.startswith(_GUEST) and name not in _LOADED:
            return None
        return int(self.cells()[getattr(f, name)]) & _MASK

    def general(self, number: int) -> int | None:
        """A register of `sdm.registers`, unsigned; None if nobody knows."""
        if number == 4:
            return self.value("GUEST_RSP")
        return int(self.cpu.own.registers.cells[number]) & _MASK if self.in_force else None

    def view(self) -> View:
        """It, to look at; physical addresses are those of its own memory."""
        general = tuple(self.general(n) or 0 for n in range(16))
        return View(self.cells(), self._read, general, self.general(CR2) or 0)

    def machine_address(self, physical: int) -> int | None:
        """Where one of its physical addresses lies in the machine; None: nowhere."""
        current = self.cpu.own.x86_vmm.vmcs
        primary = int(current[f.PRIMARY_PROCESSOR_BASED_CONTROLS])
        secondary = int(current[f.SECONDARY_PROCESSOR_BASED_CONTROLS])
        translated = (
            self.guest and primary & ct.PRIMARY_SECONDARY_CONTROLS and secondary & ct.SECONDARY_EPT
        )
        if not translated:
            return physical
        table = int(current[f.EPT_POINTER]) & _FRAME
        for shift in (39, 30, 21, 12):
            data = self._in_machine(table + (physical >> shift & 0x1FF) * 8, 8)
            entry = 0 if data is None else int.from_bytes(data, "little")
            if entry & 7 == 0:
                return None
            if shift == 12 or (shift < 39 and entry >> 7 & 1):
                offset = (1 << shift) - 1
                return entry & _FRAME & ~offset | physical & offset
            table = entry & _FRAME
        return None

    def _in_machine(self, address: int, size: int) -> bytes | None:
        memory = self.vm.processor.memory
        there = 0 <= address <= len(memory.cells) * 8 - size
        return memory.read(address, size) if there else None

    def _read(self, physical: int, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            at = physical + len(data)
            where = self.machine_address(at)
            part = min(size - len(data), 0x1000 - (at & 0xFFF))
            found = None if where is None else self._in_machine(where, part)
            if found is None:
                return None
            data += found
        return data


def threads_of(machines: Sequence[VirtualMachine]) -> Iterator[Thread]:
    """All threads of machines that have not ended; a processor has always the same number."""
    number = 1
    for vm in machines:
        for cpu in vm.cpus:
            if vm.stopped is not None:
                number += 2
                continue
            x = cpu.own.x86_vmm.state
            yield Thread(number, vm, cpu, guest=False)
            if x[vmx.MODE] != vmx.MODE_OFF and x[vmx.CURRENT] != vmx.NONE and x[vmx.ENTRIES]:
                yield Thread(number + 1, vm, cpu, guest=True)
            number += 2


def current_thread(machines: Sequence[VirtualMachine], vm: VirtualMachine) -> Thread:
    """The one in force on the processor of `vm` whose turn it is."""
    for thread in threads_of(machines):
        if thread.vm is vm and thread.cpu is vm.cpu and thread.in_force:
            return thread
    return Thread(1, vm, vm.cpu, guest=vm.cpu.own.x86_vmm.guest_is_in_vmcs0)
