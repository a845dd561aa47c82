"""A VMM of x86 code around a loop: the same bytes for every processor that has VMX."""

import struct

from benchmarks.guests import DIRECTORY, LOAD, STACK, TABLES, Loop, multiboot_guest
from trapgate.sdm.reasons import ExitReason

# LTR, CR0.NE, CR4.VMXE, IA32_FEATURE_CONTROL, VMXON, VMCLEAR, VMPTRLD, a VMWRITE for each
# pair of the list whose address is to be put at _LIST, VMLAUNCH. At ON_EXIT: if the
# reason is that at _REASON, add the instruction's length to GUEST_RIP and VMRESUME (three
# VMREADs and a VMWRITE); if it is not, halt.
_VMM = bytes.fromhex(
    "66b828000f00d8b8310001800f22c0b8102000000f22e0b93a0000000f32a801"
    "750583c8050f30b9800400000f32a300001900a3001019006a006800001900f3"
    "0fc73424c7042400101900660fc734240fc73424be44332211ad85c0780889c2"
    "ad0f79d0ebf30f01c2eb25b8024400000f78c283fa127518b80c4400000f78c3"
    "b81e6800000f78c201da0f79c20f01c3f4ebfd"
)
_LIST = 0x55
ON_EXIT = 0x6B
"""Where in the code the VMM goes on at a VM exit."""

_REASON = 0x75
_STOP = bytes.fromhex("31c0e6f4")
"""Where `multiboot_guest`, its loop done, begins to end the machine."""
_SEGMENT = 0x3000


def _fields(guest: int, host: int, *, vpid: int) -> bytes:
    """Encodings and values of a VMCS for a guest that shares everything with its VMM.

    Without a VPID, 0, VM entries and VM exits drop cached translations.
    """
    fields = {
        0x4000: 0x16,
        0x4002: 0x0401E172,
        0x400C: 0x36DFF,
        0x4012: 0x11FF,
        **dict.fromkeys((0x4004, 0x4006, 0x4008, 0x400A, 0x400E, 0x4010, 0x4014, 0x4016), 0),
        0x2800: 0xFFFFFFFF,
        0x2801: 0xFFFFFFFF,
        0x2802: 0,
        0x2803: 0,
        # The guest's and the host's selectors, then the guest's limits and access rights.
        **dict(zip(range(0x800, 0x810, 2), (16, 8, 16, 16, 0, 0, 0, 40), strict=True)),
        **dict(zip(range(0xC00, 0xC0E, 2), (16, 8, 16, 16, 0, 0, 40), strict=True)),
        **dict.fromkeys(range(0x4800, 0x480E, 2), 0xFFFFFFFF),
        0x480E: 103,
        0x4810: 47,
        0x4812: 119,
        0x4814: 0xC093,
        0x4816: 0xC09B,
        0x4818: 0xC093,
        0x481A: 0xC093,
        0x481C: 0x10000,
        0x481E: 0x10000,
        0x4820: 0x10000,
        0x4822: 0x8B,
        **dict.fromkeys((0x4824, 0x4826, 0x482A, 0x4C00), 0),
        **dict.fromkeys(range(0x6000, 0x6008, 2), 0),
        **dict.fromkeys((*range(0x6806, 0x6816, 2), 0x6822, 0x6824, 0x6826), 0),
        **dict.fromkeys((0x6C06, 0x6C08, 0x6C10, 0x6C12), 0),
        **dict.fromkeys((0x6800, 0x6C00), 0x80010031),
        **dict.fromkeys((0x6802, 0x6C02), DIRECTORY),
        **dict.fromkeys((0x6804, 0x6C04), 0x2010),
        **dict.fromkeys((0x6814, 0x6C0A), TABLES + 0x200),
        **dict.fromkeys((0x6816, 0x6C0C), TABLES + 16),
        **dict.fromkeys((0x6818, 0x6C0E), TABLES + 64),
        0x681A: 0x400,
        0x681C: STACK,
        0x681E: guest,
        0x6820: 2,
        0x6C14: STACK - 0x1000,
        0x6C16: host,
    }
    if vpid:
        fields |= {0: vpid, 0x4002: fields[0x4002] | 1 << 31, 0x401E: 1 << 5}
    pairs = b"".join(struct.pack("<II", *pair) for pair in fields.items())
    return pairs + b"\xff\xff\xff\xff"


def under_vmm(loop: Loop, reason: ExitReason, *, vpid: int = 0) -> Loop:
    """Code for `multiboot_guest`, ring 0, that makes itself a VMM and runs `loop` as its guest.

    The VMM steps over instructions that exit with `reason`.
    """
    empty = multiboot_guest(Loop(b"", 0))
    here = LOAD + empty.index(_STOP) - (len(empty) - _SEGMENT)
    listed = here + len(_VMM)
    guest = listed + len(_fields(0, 0, vpid=vpid))
    vmm = bytearray(_VMM)
    vmm[_LIST : _LIST + 4] = struct.pack("<I", listed)
    vmm[_REASON] = reason
    return Loop(
        bytes(vmm) + _fields(guest, here + ON_EXIT, vpid=vpid) + loop.code, loop.instructions
    )
