from trapgate.events.exits import record_idt_vectoring, record_interruption, vm_exit
from trapgate.sdm import cells as f
from trapgate.vmcs.vmcs import Vmcs

EXIT_INFORMATION = [
    "VM_EXIT_INTERRUPTION_INFORMATION",
    "VM_EXIT_INTERRUPTION_ERROR_CODE",
    "IDT_VECTORING_INFORMATION",
    "IDT_VECTORING_ERROR_CODE",
    "VM_EXIT_INSTRUCTION_INFORMATION",
    "GUEST_LINEAR_ADDRESS",
    "GUEST_PHYSICAL_ADDRESS",
]


def dirty() -> Vmcs:
    vmcs = Vmcs()
    for name in EXIT_INFORMATION:
        vmcs.cells[getattr(f, name)] = 0x80000123
    vmcs["VM_ENTRY_INTERRUPTION_INFORMATION"] = 0x80000B0E
    return vmcs


def test_an_exit_clears_what_it_does_not_report() -> None:
    vmcs = dirty()
    vm_exit(vmcs.cells, 12, 5, 1)
    assert vmcs["EXIT_REASON"] == 12
    assert vmcs["EXIT_QUALIFICATION"] == 5
    assert vmcs["VM_EXIT_INSTRUCTION_LENGTH"] == 1
    assert [vmcs[name] for name in EXIT_INFORMATION] == [0] * len(EXIT_INFORMATION)
    # Only the valid bit goes.
    assert vmcs["VM_ENTRY_INTERRUPTION_INFORMATION"] == 0x00000B0E


def test_a_failed_entry_changes_reason_and_qualification_only() -> None:
    vmcs = dirty()
    before = vmcs.copy()
    vm_exit(vmcs.cells, 0x80000021, 4, 0)
    assert vmcs["EXIT_REASON"] == 0x80000021
    assert vmcs["EXIT_QUALIFICATION"] == 4
    changed = [field.name for field in vmcs if vmcs[field] != before[field]]
    assert changed == ["EXIT_REASON", "EXIT_QUALIFICATION"]


def test_lma_is_saved_into_the_entry_controls() -> None:
    vmcs = Vmcs()
    vmcs["GUEST_IA32_EFER"] = 1 << 10
    vm_exit(vmcs.cells, 10, 0, 2)
    assert vmcs["VM_ENTRY_CONTROLS"] & 1 << 9
    vmcs["GUEST_IA32_EFER"] = 0
    vm_exit(vmcs.cells, 10, 0, 2)
    assert not vmcs["VM_ENTRY_CONTROLS"] & 1 << 9


def test_events() -> None:
    vmcs = Vmcs()
    vm_exit(vmcs.cells, 0, 0xC0300000, 0)
    record_interruption(vmcs.cells, 14, 3, 0)
    record_idt_vectoring(vmcs.cells, 3, 6, -1)
    assert vmcs["VM_EXIT_INTERRUPTION_INFORMATION"] == 0x80000B0E
    assert vmcs["VM_EXIT_INTERRUPTION_ERROR_CODE"] == 0
    assert vmcs["IDT_VECTORING_INFORMATION"] == 0x80000603


def test_every_word_of_an_event() -> None:
    vmcs = Vmcs()
    record_interruption(vmcs.cells, 13, 3, 0x1238)
    record_idt_vectoring(vmcs.cells, 8, 3, 7)
    assert vmcs["VM_EXIT_INTERRUPTION_INFORMATION"] == 0x80000B0D
    assert vmcs["VM_EXIT_INTERRUPTION_ERROR_CODE"] == 0x1238
    assert vmcs["IDT_VECTORING_INFORMATION"] == 0x80000B08
    assert vmcs["IDT_VECTORING_ERROR_CODE"] == 7
    record_interruption(vmcs.cells, 0x31, 0, -1)
    record_idt_vectoring(vmcs.cells, 0x31, 0, -1)
    assert vmcs["VM_EXIT_INTERRUPTION_INFORMATION"] == 0x80000031
    assert vmcs["VM_EXIT_INTERRUPTION_ERROR_CODE"] == 0
    assert vmcs["IDT_VECTORING_INFORMATION"] == 0x80000031
    assert vmcs["IDT_VECTORING_ERROR_CODE"] == 0


def test_the_entry_controls_keep_their_other_bits() -> None:
    vmcs = Vmcs()
    for before in (0x11FB, 0x13FB):
        for efer, wanted in ((0, 0x11FB), (1 << 10, 0x13FB), (1 << 8, 0x11FB)):
            vmcs["VM_ENTRY_CONTROLS"] = before
            vmcs["GUEST_IA32_EFER"] = efer
            vm_exit(vmcs.cells, 10, 0, 2)
            assert vmcs["VM_ENTRY_CONTROLS"] == wanted
