"""SDM, "Checks on Host-State Area": control registers and MSRs, segments, address-space size."""

from trapgate.debug.doctor.bits import EXIT_LOAD_CET
from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs
from trapgate.debug.doctor.processor import ForeignProcessor
from trapgate.debug.doctor.register_rules import registers
from trapgate.debug.doctor.rules import HOST_FAILS, Group, Rule, canonical, exit_has, long_guest
from trapgate.sdm import controls as ct
from trapgate.sdm import state as st

_EXIT = "VM_EXIT_CONTROLS"
_BOTH = st.EFER_LMA | st.EFER_LME


def long_host(p: DumpedVmcs) -> bool:
    """Whether "host address-space size" is 1."""
    return exit_has(p, ct.EXIT_HOST_ADDRESS_SPACE_SIZE)


def _efer_mode(p: DumpedVmcs, cpu: ForeignProcessor) -> bool:
    if not exit_has(p, ct.EXIT_LOAD_EFER):
        return True
    return p["HOST_IA32_EFER"] & _BOTH == (_BOTH if long_host(p) else 0)


REGISTERS = Group(
    "Checks on Host Control Registers, MSRs, and SSP",
    HOST_FAILS,
    (
        *registers("HOST"),
        Rule(
            "host-efer-reserved",
            ("HOST_IA32_EFER", _EXIT),
            "only SCE, LME, LMA and NXE (bits 0, 8, 10, 11) exist",
            lambda p, cpu: (
                not exit_has(p, ct.EXIT_LOAD_EFER) or p["HOST_IA32_EFER"] & ~st.EFER_DEFINED == 0
            ),
            "the field was never written, or holds the guest's EFER",
            lambda value, cpu: value & st.EFER_DEFINED,
        ),
        Rule(
            "host-efer-mode",
            ("HOST_IA32_EFER", _EXIT),
            'LMA and LME must each equal "host address-space size"',
            _efer_mode,
            "the field was never written, or holds the guest's EFER",
            lambda value, cpu: value | _BOTH,
        ),
    ),
)

SEGMENTS = Group(
    "Checks on Host Segment and Descriptor-Table Registers",
    HOST_FAILS,
    (
        *(
            Rule(
                f"host-{name.lower()}-selector",
                (f"HOST_{name}_SELECTOR",),
                "RPL and TI (bits 2:0) must be 0",
                lambda p, cpu, field=f"HOST_{name}_SELECTOR": p[field] & 7 == 0,  # type: ignore[misc]
                "a user-mode selector (DS, ES, FS, GS of the process) was stored as it was; "
                "store 0 or clear bits 2:0",
                lambda value, cpu: value & ~7,
            )
            for name in ("ES", "CS", "SS", "DS", "FS", "GS", "TR")
        ),
        *(
            Rule(
                f"host-{name.lower()}-null",
                (f"HOST_{name}_SELECTOR",),
                "must not be 0",
                lambda p, cpu, field=f"HOST_{name}_SELECTOR": p[field] != 0,  # type: ignore[misc]
                "the host's task register was never loaded (UEFI, a small kernel): make a TSS, LTR"
                if name == "TR"
                else "the field was never written",
                lambda value, cpu: 8,
            )
            for name in ("CS", "TR")
        ),
        Rule(
            "host-ss-null",
            ("HOST_SS_SELECTOR", _EXIT),
            'must not be 0 if "host address-space size" is 0',
            lambda p, cpu: p["HOST_SS_SELECTOR"] != 0 or long_host(p),
            "only a 64-bit host may have a null SS",
            lambda value, cpu: 0x10,
        ),
        *(
            canonical(f"host-{name.lower()}-base", f"HOST_{name}_BASE")
            for name in ("FS", "GS", "GDTR", "IDTR", "TR")
        ),
    ),
)

ADDRESS_SPACE = Group(
    "Checks Related to Address-Space Size",
    HOST_FAILS,
    (
        Rule(
            "long-guest-under-legacy-host",
            ("VM_ENTRY_CONTROLS", _EXIT),
            '"IA-32e mode guest" must be 0 if "host address-space size" is 0',
            lambda p, cpu: not long_guest(p) or long_host(p),
            "a 32-bit VMM cannot run a guest in IA-32e mode",
            lambda value, cpu: value & ~ct.ENTRY_IA32E_MODE_GUEST,
        ),
        Rule(
            "host-pae",
            ("HOST_CR4", _EXIT),
            'PAE must be 1 if "host address-space size" is 1',
            lambda p, cpu: bool(p["HOST_CR4"] & st.CR4_PAE) or not long_host(p),
            "CR4 was not read from the processor",
            lambda value, cpu: value | st.CR4_PAE,
        ),
        Rule(
            "host-pcide",
            ("HOST_CR4", _EXIT),
            'PCIDE must be 0 if "host address-space size" is 0',
            lambda p, cpu: not p["HOST_CR4"] & st.CR4_PCIDE or long_host(p),
            "CR4 is that of a 64-bit host, and the VM-exit control says 32 bits",
            lambda value, cpu: value & ~st.CR4_PCIDE,
        ),
        Rule(
            "host-rip-high",
            ("HOST_RIP", _EXIT),
            'bits 63:32 must be 0 if "host address-space size" is 0',
            lambda p, cpu: p["HOST_RIP"] >> 32 == 0 or long_host(p),
            "RIP is that of a 64-bit host, and the VM-exit control says 32 bits",
            lambda value, cpu: value & 0xFFFF_FFFF,
        ),
        canonical("host-rip", "HOST_RIP"),
        Rule(
            "host-ssp-high",
            ("HOST_SSP", _EXIT),
            'bits 63:32 must be 0 if "host address-space size" is 0 and CET is loaded',
            lambda p, cpu: (
                not exit_has(p, EXIT_LOAD_CET) or long_host(p) or p["HOST_SSP"] >> 32 == 0
            ),
            "SSP is that of a 64-bit host, and the VM-exit control says 32 bits",
            lambda value, cpu: value & 0xFFFF_FFFF,
        ),
    ),
)

GROUPS = (REGISTERS, SEGMENTS, ADDRESS_SPACE)
