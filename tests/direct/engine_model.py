"""The hostile game on the real processor: each access is guest code that a VM entry runs."""

from __future__ import annotations

from struct import pack

import numpy as np

from tests.direct.hostile import FILTERS as NAMES
from tests.direct.hostile import ORDERS, PTBASE
from tests.direct.walk_everything import violations
from trapgate.decision.fault_filters import FILTERS
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm.reasons import ExitReason
from trapgate.vmm.actions import Action, End, Stop
from trapgate.vmm.direct.host_memory import LARGE_PAGE, Host
from trapgate.vmm.direct.machine import DirectMachine
from trapgate.vmm.exits.platform import Platform

_FILTERS = dict(zip(NAMES, FILTERS.values(), strict=True))
CODE = 3 << 22
"""Linear address of the code; the table and the page behind it are no part of the game."""
_CODE_FRAMES = 16, 17
VMCALL = b"\x0f\x01\xc1"
_USER_CODE, _USER_DATA = 0xC0FB, 0xC0F3
_KERNEL_CODE, _KERNEL_DATA = 0xC09B, 0xC093


def done(vmexit: VmExit, vm: Platform) -> Action:
    return Stop(End.STOPPED_BY_VMM, "done")


class EngineModel:
    """Two VMs of 4 MiB on one host."""

    def __init__(self, engine: str) -> None:
        self.host = Host(2 * LARGE_PAGE, engine=engine)
        handlers = {ExitReason.VMCALL: done}
        self.machines = [
            DirectMachine(LARGE_PAGE, host=self.host, handlers=handlers) for _ in range(2)
        ]
        self.memory = self.host.words
        self.bases = self.machines[0].base >> 12, self.machines[1].base >> 12
        self.vmms = 2 * LARGE_PAGE >> 12
        self.beyond = len(self.host.frames)
        self.home = [0, 0]
        self.runs = self.came_through = 0

    def reset(self) -> None:
        """A new game on the old host: machines as they were, memory cleared."""
        self.memory[: 2 * LARGE_PAGE >> 2] = 0
        self.host.processor.engine.forget_code(0, 2 * LARGE_PAGE)
        for vm in self.machines:
            vm.tables.forget_all()
            vm.paging = False
            vm.vmcs.set_flat_segments(32)

    def start(
        self, vm: int, name: str, order: str, transfer: tuple[int, int, int], pse: bool, cr3: int
    ) -> None:
        machine, vmcs, base = self.machines[vm], self.machines[vm].vmcs, self.bases[vm]
        table, page = (base + n for n in _CODE_FRAMES)
        self.memory[cr3 >> 2 | CODE >> 22] = table << 12 | 7
        self.memory[table << 10] = page << 12 | 7
        vmcs.set_flat_segments(32)
        vmcs["GUEST_LDTR_ACCESS_RIGHTS"] = 1 << 16
        vmcs["GUEST_IDTR_LIMIT"] = 0
        vmcs["GUEST_CR0"], vmcs["CR0_READ_SHADOW"] = 0x8001_0031, 0x1_0031
        vmcs["GUEST_CR4"] = 0x2000
        vmcs["CR4_READ_SHADOW"] = 0x10 if pse else 0
        vmcs["EXCEPTION_BITMAP"] = transfer[0] << 14
        vmcs["PAGE_FAULT_ERROR_CODE_MASK"], vmcs["PAGE_FAULT_ERROR_CODE_MATCH"] = transfer[1:]
        vmcs["FAULT_FILTER"], vmcs["PTBASE"] = _FILTERS[name], PTBASE
        vmcs["FAULT_FILTER_ORDER"] = ORDERS.index(order)
        machine._own()
        self.host.enter(machine)
        machine.cr3 = self.home[vm] = cr3
        machine.write_cr0(0x8001_0031)
        assert machine.paging

    def run(self, vm: int, code: bytes, user: bool = False) -> bool:
        """Run `code`, then a VMCALL; whether it came so far."""
        machine, vmcs = self.machines[vm], self.machines[vm].vmcs
        self.host.enter(machine)
        machine.follow_cr3()
        frame = machine.tables.look_up(CODE).frame
        if frame != self.bases[vm] + _CODE_FRAMES[1]:
            # The guest has lost its code. Without the VMM's help it would be stuck.
            machine.load_cr3(self.home[vm])
            return False
        place = frame << 12
        self.host.processor.memory.write(place, code + VMCALL)
        rights = (_USER_CODE, _USER_DATA) if user else (_KERNEL_CODE, _KERNEL_DATA)
        vmcs["GUEST_CS_ACCESS_RIGHTS"], vmcs["GUEST_CS_SELECTOR"] = rights[0], 0x1B if user else 8
        for name in ("SS", "DS", "ES"):
            vmcs[f"GUEST_{name}_ACCESS_RIGHTS"] = rights[1]
            vmcs[f"GUEST_{name}_SELECTOR"] = 0x23 if user else 0x10
        vmcs["GUEST_RIP"], vmcs["GUEST_RFLAGS"] = CODE, 2
        vmcs["GUEST_INTERRUPTIBILITY_STATE"] = vmcs["GUEST_ACTIVITY_STATE"] = 0
        vmcs["VM_ENTRY_INTERRUPTION_INFORMATION"] = 0
        stop = machine.step(1000)
        machine.stopped = None
        came_through = stop is not None and stop.end is End.STOPPED_BY_VMM
        self.runs += 1
        self.came_through += came_through
        return came_through

    def load_cr3(self, vm: int, cr3: int) -> bool:
        return self.run(vm, b"\xb8" + pack("<I", cr3) + b"\x0f\x22\xd8")

    def set_pse(self, vm: int, wanted: bool) -> bool:
        return self.run(vm, b"\xb8" + pack("<I", 0x10 * wanted) + b"\x0f\x22\xe0")

    def invlpg(self, vm: int, linear: int) -> bool:
        return self.run(vm, b"\x0f\x01\x3d" + pack("<I", linear))

    def read(self, vm: int, linear: int, user: bool = False) -> int | None:
        if not self.run(vm, b"\xa1" + pack("<I", linear), user):
            return None
        return self.host.processor.registers.rax & 0xFFFF_FFFF

    def write(self, vm: int, linear: int, data: bytes, user: bool = False) -> bool:
        code = {
            1: b"\xc6\x05" + pack("<I", linear) + data,
            2: b"\x66\xc7\x05" + pack("<I", linear) + data,
            4: b"\xc7\x05" + pack("<I", linear) + data,
            # CMPXCHG8B that finds what it expects: whatever is there.
            8: b"\xa1" + pack("<I", linear) + b"\x8b\x15" + pack("<I", linear + 4 & 0xFFFF_FFFF)
            + b"\xbb" + data[:4] + b"\xb9" + data[4:] + b"\xf0\x0f\xc7\x0d" + pack("<I", linear),
        }[len(data)]  # fmt: skip
        return self.run(vm, code, user)

    def flip(self, vm: int, linear: int, bits: int) -> bool:
        return self.run(vm, b"\xf0\x81\x35" + pack("<II", linear, bits))

    def replace(self, vm: int, linear: int, code: bytes) -> int | None:
        self._write_protect(vm, False)
        stored = self.write(vm, linear, code)
        self._write_protect(vm, True)
        registers = self.host.processor.registers
        registers.rcx = 0
        # mov ebp, linear; call ebp; mov ecx, 1
        call = b"\xbd" + pack("<I", linear) + b"\xff\xd5\xb9\x01\0\0\0"
        stack = b"\xbc" + pack("<I", CODE + 0x1000)
        if not stored or not self.run(vm, stack + call) or registers.rcx != 1:
            return None
        return registers.rax & 0xFFFF_FFFF

    def _write_protect(self, vm: int, wanted: bool) -> None:
        code = b"\xb8" + pack("<I", 0x8000_0031 | wanted << 16) + b"\x0f\x22\xc0"
        self.run(vm, code)

    def check(self) -> None:
        owner = self.host.frames.owner.copy()
        spaces = []
        for machine in self.machines:
            owner[machine.tables.stand_ins()] = machine.number
            live = set(np.flatnonzero(machine.tables.links.counts[1::4]).tolist())
            if machine.paging:
                live.add(machine.vmcs["GUEST_CR3"] >> 12)
            spaces.append((machine.number, sorted(live), bool(machine.vmcs["GUEST_CR4"] & 0x10)))
        wrong = violations(self.memory, owner, spaces)
        assert not wrong, wrong
