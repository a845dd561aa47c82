"""Points: what one trace point of KVM said, as a row of cells, whatever the recording's form.

Readers of text and of binary recordings make points, `pairing` makes events of them. Cells
are 64-bit integers in two's complement; -1 in `TIME` to `VCPU` means that it is not told.
"""

from typing import Final

POINT: Final = 17
"""Cells of a point."""

KIND: Final = 0
TIME: Final = 1
CPU: Final = 2
PROCESS: Final = 3
THREAD: Final = 4
VCPU: Final = 5
REASON: Final = 6
"""An exit's reason: a digest of its word as the scanner leaves it, then its number in `Reasons`."""
RIP: Final = 7
INFO1: Final = 8
INFO2: Final = 9
INTERRUPTION: Final = 10
CODE: Final = 11
HAS: Final = 12
ADDRESS: Final = 13
"""Of a kvm_page_fault; of an injection its vector; of a kvm_msr and a kvm_cr what was accessed."""
START: Final = 14
LENGTH: Final = 15
"""Where in the chunk the reason stands; of a note, the line."""
SLOT: Final = 16
"""Number of the thread among those that the file has; -1 if it does not say."""

NOTHING: Final = 0
EXIT: Final = 1
ENTRY: Final = 2
PAGE_FAULT: Final = 3
EXCEPTION: Final = 4
INTERRUPT: Final = 5
NESTED_EXIT: Final = 6
NESTED_INJECTION: Final = 7
NOTE: Final = 8
"""A line that may tell of lost events."""
GAP: Final = 9
"""Events were lost: `ADDRESS` of them (0 if that is not told), on `CPU` (-1: on any)."""
MSR: Final = 10
CONTROL_REGISTER: Final = 11
"""What an exit accessed: `ADDRESS` says which, `INFO1` the value."""
POSTED: Final = 12
"""A device's interrupt is from now on posted to `VCPU` as vector `ADDRESS` (`IS_WRITE`), or not."""
PAUSE_WINDOW: Final = 13
"""A loop of PAUSEs changed PLE_Window (AMD's pause filter); `INFO1` is what it was."""

EVENT_KINDS: Final = {
    "kvm_exit": EXIT,
    "kvm_entry": ENTRY,
    "kvm_page_fault": PAGE_FAULT,
    "kvm_inj_exception": EXCEPTION,
    "kvm_inj_virq": INTERRUPT,
    "kvm_nested_vmexit": NESTED_EXIT,
    "kvm_nested_vmexit_inject": NESTED_INJECTION,
    "kvm_msr": MSR,
    "kvm_cr": CONTROL_REGISTER,
    "kvm_pi_irte_update": POSTED,
    "kvm_ple_window_update": PAUSE_WINDOW,
}
"""The trace points that are read; all others are foreign."""

# Bits of HAS.
HAS_RIP: Final = 1 << 0
HAS_INFO1: Final = 1 << 1
HAS_INFO2: Final = 1 << 2
HAS_INTERRUPTION: Final = 1 << 3
HAS_CODE: Final = 1 << 4
HAS_ADDRESS: Final = 1 << 5
IS_BARE: Final = 1 << 6
"""INFO1 and INFO2 are the two numbers of an exit that is printed without names."""
IS_SOFT: Final = 1 << 7
IS_AGAIN: Final = 1 << 8
"""The injection repeats one whose delivery was interrupted."""
HAS_VCPU: Final = 1 << 9
HAS_REASON: Final = 1 << 10
IS_SVM: Final = 1 << 11
"""The recording says that the exit is AMD's."""
IS_VMX: Final = 1 << 12
IS_WRITE: Final = 1 << 13

# What a scan counts.
LINES: Final = 0
FOREIGN: Final = 1
UNREADABLE: Final = 2
FIRST_UNREAD: Final = 3
FIRST_UNREAD_LENGTH: Final = 4
TICKS: Final = 5
"""Whether a time was a bare number, not seconds."""
TIMES: Final = 6
"""How many points have a time."""
COUNTS: Final = 8
