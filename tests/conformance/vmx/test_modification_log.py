"""Page-modification logging: which writes are noted, and the exit when the log is full.

SDM, "Page-Modification Logging": a write, explicit or a walk's, that sets a dirty flag of EPT.
"""

from struct import pack, unpack

import pytest

from tests.conformance import tiny_guest as tiny
from tests.conformance.vmx import ept_guests as eg
from tests.conformance.vmx.ept_guests import Entries
from tests.conformance.x86_vmm import CPUID, EXITED, GUEST_CODE, MODES, X86Vmm
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason

pytestmark = [pytest.mark.conformance, pytest.mark.native]

LOG = 0x60000


def store(mode: str, address: int) -> bytes:
    """MOV byte [address], 55H."""
    if mode == "l64":
        return b"\xc6\x04\x25" + pack("<I", address) + b"\x55"
    return b"\xc6\x05" + pack("<I", address) + b"\x55"


def vmm(mode: str, guest: bytes, *, index: int = 511, flags: int = eg.FLAGS) -> X86Vmm:
    """A VMM with a log, whose next entry is `index`, and a guest whose own flags are all set."""
    return X86Vmm(
        mode,
        guest=guest,
        fields={
            "PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_ALLOWED_0 | 1 << 31,
            "SECONDARY_PROCESSOR_BASED_CONTROLS": 1 << 1 | 1 << 17,
            "EPT_POINTER": eg.POINTER | flags,
            "PML_ADDRESS": LOG,
            "PML_INDEX": index,
            "GUEST_PDPTE0": tiny.TABLES + 0x2000 | 1,
        },
        memory={**Entries().memory(), **eg.marked(mode)},
    )


def log(done: X86Vmm) -> list[int]:
    """What is in it, oldest first."""
    first = done["PML_INDEX"] + 1 & 0xFFFF
    data = done.processor.memory.read(LOG, 4096)
    return list(reversed(unpack("<512Q", data)[first:]))


def test_each_page_once(mode: str) -> None:
    """Twice the same page, then another; reads are not noted, walks of the guest's tables are."""
    first, second = tiny.DATA, 0x15000
    guest = b""
    for address in (first + 8, first + 0x10, second + 0xFFF):
        guest += store(mode, address)
    done = vmm(mode, guest + CPUID)
    assert (done.run(), done.reason) == (EXITED, ExitReason.CPUID)
    noted = log(done)
    assert [page for page in noted if page in (first, second)] == [first, second]
    tables = set(noted) - {first, second}
    assert tables
    assert all(tiny.TABLES <= page < tiny.HANDLERS for page in tables)


def test_without_dirty_flags_nothing_is_noted(mode: str) -> None:
    done = vmm(mode, store(mode, tiny.DATA) + CPUID, flags=0)
    assert (done.run(), done.reason) == (EXITED, ExitReason.CPUID)
    assert done["PML_INDEX"] == 511


@pytest.mark.parametrize("index", [0xFFFF, 512])
def test_a_full_log_exits_before_the_access(mode: str, index: int) -> None:
    """RIP is the instruction's, nothing was written, no flag set; with room again it goes on."""
    done = vmm(mode, store(mode, tiny.DATA) + CPUID, index=index)
    assert done.run() == EXITED
    assert done.reason == ExitReason.PAGE_MODIFICATION_LOG_FULL
    assert (done["GUEST_RIP"], done["EXIT_QUALIFICATION"]) == (GUEST_CODE, 0)
    assert done["PML_INDEX"] == index
    entries = unpack("<512Q", done.processor.memory.read(eg.PT, 4096))
    assert not any(entry & 1 << 9 for entry in entries)
    assert done.processor.memory.read(LOG, 4096) == bytes(4096)


def test_the_last_entry_makes_it_full(mode: str) -> None:
    """Index 0 is used, and becomes FFFFH: the fetch's walk marks two pages of tables at least."""
    done = vmm(mode, CPUID, index=0)
    assert (done.run(), done.reason) == (EXITED, ExitReason.PAGE_MODIFICATION_LOG_FULL)
    assert done["PML_INDEX"] == 0xFFFF
    noted = log(done)
    assert len(noted) == 512
    assert tiny.TABLES <= noted[-1] < tiny.HANDLERS


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)
