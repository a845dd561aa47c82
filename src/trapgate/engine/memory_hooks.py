"""What the engine calls about memory while a guest runs: its TLB's refill, pages of devices."""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.kinds import BOOLEAN, INT32, INT64, UINT32, UINT64, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, memory, peek32, peek64, poke32
from trapgate.engine import machine as mc
from trapgate.engine.apic_page import read_apic_page, write_apic_page
from trapgate.engine.guest.clock import begin_device_access, execute_again
from trapgate.engine.guest.state import save_paging
from trapgate.engine.library import layout as at
from trapgate.engine.memory.coherence import forget_stale_code
from trapgate.engine.memory.table_stores import intercept_store, judge_table_store
from trapgate.engine.memory.tlb import set_entry
from trapgate.engine.translator.checked_accesses import is_poison, poisoned_by
from trapgate.instructions import polled_ports
from trapgate.paging.alias import unaliased
from trapgate.paging.apic_access import APIC_ACCESS
from trapgate.paging.memory import WATCH_LOAD, WATCH_PAGES, WATCH_STORE, has_device
from trapgate.paging.walk import walk


@jit
def is_read_only(m: Cells, physical: int) -> bool:
    """Whether firmware's memory lies there, and stores are dropped."""
    segment = (physical - 0xC0000) >> 14
    return 0 <= segment < 16 and (m[mc.READ_ONLY] >> segment) & 1 != 0


@jit
def through_window(m: Cells, physical: int) -> int:
    """What lies at `physical` where a window is open."""
    offset = physical - m[mc.WINDOW_0_START]
    if 0 <= offset < m[mc.WINDOW_0_SIZE]:
        return int(m[mc.WINDOW_0_TARGET] + offset)
    offset = physical - m[mc.WINDOW_1_START]
    if 0 <= offset < m[mc.WINDOW_1_SIZE]:
        return int(m[mc.WINDOW_1_TARGET] + offset)
    return physical


@jit
def refill(
    cpu: int,
    address: int,
    size: int,
    access: int,
    mmu_index: int,
    probe: int,
    return_address: int,
) -> int:
    """The MMU's refill: our own page walk, one choke point for translation and protection."""
    env = cpu + at.CPU_SIZE
    m = cells(peek64(env + at.MACHINE), mc.CELLS)
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    v = cells(m[mc.V], m[mc.V_CELLS])
    access_kind = access
    efer = peek64(env + at.EFER)
    user = 1 if mmu_index == 1 else 0
    vector = 14
    physical = 0
    prot = 0
    page_size = 4096
    forbidden = is_poison(address) and peek32(env + at.HFLAGS) & at.HF_CS64 == 0
    if forbidden:
        # A segment does not allow this access.
        vector = 12 if poisoned_by(address) == 2 else 13
        code = 0
    elif efer & 1 << 10 and address >> 47 != 0 and address >> 47 != -1:
        vector = 13
        code = 0
    else:
        save_paging(env, v)
        rflags = 0x40000 if mmu_index == 2 else 0
        physical, code, prot, page_size = walk(v, rflags, mem, address, access_kind, user)
        if forget_stale_code(m):
            m[mc.PROBE_CHANGED_CODE] = 1
            if probe == 0:
                # Its own block may be what a flag in an entry changes: execute it alone, again.
                execute_again(m, cpu, return_address, 1)
    if code < 0 and access_kind == 2 and physical >> 3 >= m[mc.MEM_CELLS]:
        # Nothing there reads as all ones, and that is not an instruction.
        vector = 6
        code = 0
    if code < 0:
        physical &= ~m[mc.ADDRESS_OFF]
        if m[mc.WINDOWS] != 0:
            physical = through_window(m, physical)
        # The engine takes every store by an entry that is for code, too, down its slow path.
        prot &= ~2 if access_kind == 2 else ~4
        if m[mc.READ_ONLY] != 0 and is_read_only(m, unaliased(v, physical)):
            prot &= ~2
            if access_kind == 1 and probe == 0:
                # To where nothing is, by an entry for less than a page, which is used once.
                set_entry(m, cpu, address & ~0xFFF, at.NOWHERE, 2, mmu_index, 1)
                return 1
        set_entry(m, cpu, address & ~0xFFF, physical & ~0xFFF, prot, mmu_index, page_size)
        return 1
    if probe:
        return 0
    if code >= APIC_ACCESS and access_kind != 2:
        # Whether it is an exit can only be said of the access itself.
        set_entry(m, cpu, address & ~0xFFF, at.APIC_ACCESSES, 1 + access_kind, mmu_index, 1)
        return 1
    if access_kind == 1 and intercept_store(
        m, cpu, address, size, user, code, mmu_index, return_address
    ):
        return 1
    if access_kind == 2:
        rip = peek64(env + at.EIP)
        linear = rip + peek64(env + at.SEGMENTS + at.SEGMENT_SIZE + at.BASE)
        if (linear ^ address) & 0xFFFFF000 != 0 and m[mc.CRAWL] != linear + 1:
            # Instructions of the block come before the one that cannot be fetched.
            m[mc.CRAWL] = linear + 1
            poke32(cpu + at.CFLAGS_NEXT_TB, 1)
            poke32(m[mc.EXCEPTION_INDEX], -1)
            call(m[mc.CPU_LOOP_EXIT], (cpu,))
        m[mc.CRAWL] = 0
        m[mc.FAULT_KIND] = mc.FAULT_OF_FETCH
    else:
        m[mc.FAULT_KIND] = mc.FAULT_NON_CANONICAL if vector == 13 and not forbidden else 0
    m[mc.FAULT_ADDRESS] = address
    m[mc.FAULT_CODE] = code
    if return_address == 0:
        m[mc.PLACE] = 0
    poke32(env + at.ERROR_CODE, 0)
    poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + 0x40 + vector)
    call(m[mc.CPU_LOOP_EXIT_RESTORE], (cpu, return_address))
    return 0


@callback(
    UINT64,
    INT64,
    INT64,
    INT32,
    INT32,
    INT32,
    BOOLEAN,
    INT64,
)
def on_tlb_fill(
    cpu: int,
    address: int,
    size: int,
    access: int,
    mmu_index: int,
    probe: int,
    return_address: int,
) -> int:
    """CPUClass.tlb_fill: see `refill`."""
    return refill(cpu, address, size, access, mmu_index, probe, return_address)


@callback(VOID, INT64, INT64, UINT32, UINT64, INT64)
def on_intercepted_store(uc: int, offset: int, size: int, value: int, user: int) -> None:
    """A store to page tables, redirected: see `judge_table_store`."""
    judge_table_store(cells(user, mc.CELLS), offset, size, value)


@callback(UINT64, INT64, INT64, UINT32, INT64)
def on_apic_page_read(uc: int, offset: int, size: int, user: int) -> int:
    """A load from the APIC-access page: see `apic_page`."""
    return read_apic_page(cells(user, mc.CELLS), offset, size)


@callback(VOID, INT64, INT64, UINT32, UINT64, INT64)
def on_apic_page_write(uc: int, offset: int, size: int, value: int, user: int) -> None:
    """A store to the APIC-access page."""
    write_apic_page(cells(user, mc.CELLS), offset, size, value)


@callback(VOID, INT64, INT32, INT64, INT32, INT64, INT64)
def on_any_store(uc: int, kind: int, address: int, size: int, value: int, user: int) -> None:
    """UC_HOOK_MEM_WRITE: nothing to do (portable only, where `coherence` has no slots)."""


@jit
def device_address(m: Cells, offset: int) -> int:
    """The physical address `offset` bytes above RAM, if there is a device; else -1."""
    address = offset + int(m[mc.MEM_CELLS]) * 8
    return address if has_device(cells(m[mc.WATCH], WATCH_PAGES), address) else -1


@callback(UINT64, INT64, INT64, UINT32, INT64)
def on_absent_read(uc: int, offset: int, size: int, user: int) -> int:
    """Physical memory that isn't there reads as all ones, but for devices."""
    if user != 0:
        m = cells(user, mc.CELLS)
        address = device_address(m, offset)
        if address >= 0:
            if m[mc.PORTS] != 0:
                value = polled_ports.latched(cells(m[mc.PORTS], polled_ports.LENGTH), address, size)
                if value >= 0:
                    return value
            begin_device_access(m)
            return call(peek64(m[mc.WATCH] + 8 * WATCH_LOAD), (address, size))
    return (1 << (8 * size)) - 1 if size < 8 else -1


@callback(VOID, INT64, INT64, UINT32, UINT64, INT64)
def on_absent_write(uc: int, offset: int, size: int, value: int, user: int) -> None:
    """Stores to physical memory that isn't there are dropped, but for devices."""
    if user != 0:
        m = cells(user, mc.CELLS)
        address = device_address(m, offset)
        if address >= 0:
            begin_device_access(m)
            call(peek64(m[mc.WATCH] + 8 * WATCH_STORE), (address, size, value))


@callback(UINT64, INT64, INT64, UINT32, INT64)
def on_video_read(uc: int, offset: int, size: int, user: int) -> int:
    """A load by the window to a VGA's planes."""
    m = cells(user, mc.CELLS)
    return call(peek64(m[mc.WATCH] + 8 * WATCH_LOAD), (at.VIDEO_WINDOW + offset, size))


@callback(VOID, INT64, INT64, UINT32, UINT64, INT64)
def on_video_write(uc: int, offset: int, size: int, value: int, user: int) -> None:
    """A store by it."""
    m = cells(user, mc.CELLS)
    call(peek64(m[mc.WATCH] + 8 * WATCH_STORE), (at.VIDEO_WINDOW + offset, size, value))
