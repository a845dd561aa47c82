"""Interruption types and the layout of the interruption-information fields.

Source: SDM, "VM-Entry Controls for Event Injection" and "Information for VM Exits
Due to Vectored Events". The plain integers are for core functions.
"""

from enum import IntEnum


class InterruptionType(IntEnum):
    """Bits 10:8 of an interruption-information field."""

    EXTERNAL_INTERRUPT = 0
    RESERVED = 1
    NMI = 2
    HARDWARE_EXCEPTION = 3
    SOFTWARE_INTERRUPT = 4
    PRIVILEGED_SOFTWARE_EXCEPTION = 5
    SOFTWARE_EXCEPTION = 6
    OTHER_EVENT = 7


TYPE_EXTERNAL_INTERRUPT = 0
TYPE_RESERVED = 1
TYPE_NMI = 2
TYPE_HARDWARE_EXCEPTION = 3
TYPE_SOFTWARE_INTERRUPT = 4
TYPE_PRIVILEGED_SOFTWARE_EXCEPTION = 5
TYPE_SOFTWARE_EXCEPTION = 6
TYPE_OTHER_EVENT = 7

INFO_VECTOR_MASK = 0xFF
INFO_TYPE_SHIFT = 8
INFO_TYPE_MASK = 0x7
INFO_DELIVER_ERROR_CODE = 1 << 11
"""An error code goes with the event (at a VM exit: the error-code field is valid)."""
INFO_NMI_UNBLOCKING = 1 << 12
"""At a VM exit only: the fault met an IRET that had unblocked NMIs."""
INFO_ENTRY_RESERVED = 0x7FFFF000
"""Bits 30:12, which must be 0 in the VM-entry field."""
INFO_VALID = 1 << 31
