"""Every instruction that stores does to a table what it does to data: a guest cannot tell.

Each is executed twice, with its operand in a frame of data and in the same frame as a last-level
table, and memory, registers, flags and RIP are compared. Without a filter the VMM carries the
store out; with own-frame it completes where the processor can judge it.
"""

from struct import pack

import pytest

from tests.direct.test_protected_machine import HLT, LINKED, X, machine
from trapgate.decision.fault_filters import NO_LINK, OWN_FRAME
from trapgate.vmm.direct.protected import ProtectedMachine

LINK = 7
"""Bytes of the last instruction of LINKED, which makes X a table."""
AT = X + 0x100
SETUP = (
    b"\xb8" + pack("<I", AT) + b"\xbf" + pack("<I", AT) + b"\xbe" + pack("<I", 0x10_0000)
    + b"\x48\xb9" + pack("<Q", 0x1234_5678_9ABC_DE05)
    + b"\x48\xba" + pack("<Q", 0xFEDC_BA98_7654_3210)
    + b"\x48\xbb" + pack("<Q", 0x0F1E_2D3C_4B5A_6978)
    + b"\x49\xb8" + pack("<Q", 0x8877_6655_4433_2211)
    + bytes.fromhex("660f6ec2 66480f6ec9 d9e8 0f6ee1 f9")  # xmm0, xmm1, st0, mm4; CF = 1
)  # fmt: skip

MOVES = {
    "mov byte": "8810", "mov high byte": "8830", "mov word": "668910", "mov dword": "8910",
    "mov qword": "488910", "mov immediate": "c70078563412", "mov unaligned": "48895003",
    "mov r8": "4c8900", "movnti": "480fc310", "sete": "0f9400", "setc": "0f9200",
    "mov segment": "8c18", "xchg": "488710", "xadd": "480fc110", "lock xadd": "f0480fc110",
    "across a page": "48899017ff0000", "below the page": "488990fbfeffff",
}  # fmt: skip
ARITHMETIC = {
    "add": "480110", "adc": "481110", "sub": "482910", "sbb": "481910", "and": "482110",
    "or": "480910", "xor": "483110", "lock or": "f0830805", "inc": "48ff00", "dec": "48ff08",
    "neg": "48f718", "not": "48f710", "add byte": "8000f7", "shl": "48d120", "rol": "48d100",
    "sar cl": "48d338", "shld": "480fa41005", "shrd cl": "480fad10",
    "bts": "480fba2805", "btr register": "ba25000000480fb310", "btc": "0fba3803",
    "lock bts": "f00fba2807",
}  # fmt: skip
COMPARE = {
    "cmpxchg fails": "480fb110", "cmpxchg succeeds": "4889c70f57db 488b07 480fb117",
    "cmpxchg8b fails": "0fc70f", "cmpxchg16b fails": "480fc70f",
    "cmpxchg16b succeeds": "31c031d2f9 480fc70f",
}  # fmt: skip
STRINGS = {
    "stosb": "aa", "stosd": "ab", "stosq": "48ab", "movsb": "a4", "movsq": "48a5",
    "stosw down": "fd66ab", "rep stosq": "b903000000f348ab", "rep movsd": "b905000000f3a5",
    "rep movsb down": "fdb904000000f3a4", "rep stosb none": "31c9f3aa",
}  # fmt: skip
STACKS = {
    "push": "488d600852", "push immediate": "488d60086a80", "push word": "488d60086652",
    "push memory": "488d6008ff36", "pushfq": "488d60089c", "push fs": "488d60080fa0",
    "call": "488d6008e800000000", "call register": "488d6008488d1502000000ffd2",
    "pop to memory": "bc00001800 52 488f00", "enter": "488d600889c5c8100000",
}  # fmt: skip
VECTORS = {
    "movups": "0f1100", "movaps": "0f2900", "movdqa": "660f7f00", "movntdq": "660fe700",
    "movss": "f30f1100", "movsd": "f20f1100", "movq": "660fd600", "movhps": "0f1700",
    "movlpd": "660f1300", "movd": "660f7e00", "movq mm": "0f7f20", "movntq": "0fe720",
    "maskmovdqu": "660ff7c1", "pextrw": "660f3a150003", "stmxcsr": "0fae18",
    "movups unaligned": "0f114003", "fxsave": "0fae00",
}  # fmt: skip
X87 = {
    "fst dword": "d910", "fstp qword": "dd18", "fstp tbyte": "db38", "fist": "db10",
    "fistp qword": "df38", "fisttp": "db08", "fbstp": "df30", "fnstcw": "d938", "fnstsw": "dd38",
    "fnstenv": "d930", "fnsave": "dd30",
}  # fmt: skip
SYSTEM = {"sgdt": "0f0100", "sidt": "0f0108", "sldt": "0f0000", "str": "0f0008", "smsw": "0f0120"}

EVERY = {
    **MOVES, **ARITHMETIC, **COMPARE, **STRINGS, **STACKS, **VECTORS, **X87, **SYSTEM,
}  # fmt: skip
STOPPED = {"call", "call register", "sgdt", "sidt", "sldt", "str", "smsw"}
"""What the VMM does not carry out: the guest is stopped, in words."""


def after(code: str, *, linked: bool, frame_filters: int) -> tuple[ProtectedMachine, str]:
    """The machine behind the instructions."""
    begin = LINKED if linked else LINKED[:-LINK] + b"\x90" * LINK
    vm = machine(begin + SETUP + bytes.fromhex(code) + HLT, "none", frame_filters)
    return vm, vm.run(timeout=20).message


def state(vm: ProtectedMachine) -> tuple[object, ...]:
    """All that a guest could tell."""
    registers = vm.processor.registers
    general = [
        getattr(registers, name) for name in ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi")
    ]
    names = ("GUEST_RIP", "GUEST_RSP", "GUEST_RFLAGS")
    memory = vm.processor.memory.read(X - 0x1000, 0x3000)
    return memory, general, [vm.vmcs[name] & ~(1 << 16) for name in names]


@pytest.mark.parametrize("name", EVERY)
def test_a_table_is_stored_to_as_data_is(name: str) -> None:
    plain, message = after(EVERY[name], linked=False, frame_filters=0)
    assert "halted" in message, message
    for frame_filters in (0, OWN_FRAME | NO_LINK):
        vm, message = after(EVERY[name], linked=True, frame_filters=frame_filters)
        if "refused" in message:
            assert name in STOPPED, message
            continue
        assert "halted" in message, message
        assert vm.links.levels_of(X >> 12) == {1}
        assert state(vm) == state(plain)
