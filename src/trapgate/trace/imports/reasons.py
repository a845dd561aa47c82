"""The words for exit reasons of KVM's hosts, Intel's and AMD's, and what kind of exit each is.

Kernels print words; tools that know an event's layout only print numbers; a binary recording
holds numbers and, in its description of the event, the kernel's own words. Numbers are the
SDM's ("VMX Basic Exit Reasons") and the APM's (volume 2, appendix "SVM Intercept Exit Codes").
"""

import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trapgate.sdm.vectors import Vector

VECTORS: Final = {vector.name: int(vector) for vector in Vector} | {"XF": int(Vector.XM)}
"""Exceptions by the names that KVM prints."""

OTHER, EXCEPTION, INTERRUPT, EPT_VIOLATION, PORT, REGISTER, MSR, PAUSE = range(8)
"""Kinds of exits of Intel's."""
SVM, SVM_EXCEPTION, SVM_NMI, SVM_INTERRUPT, NESTED_PAGE_FAULT = range(8, 13)
SVM_PORT, SVM_REGISTER, SVM_MSR, SVM_PAUSE = range(13, 17)
"""Kinds of exits of AMD's."""


def _numbered(text: str, base: int) -> dict[int, str]:
    words = text.split()
    return {int(n, base): w for n, w in zip(words[::2], words[1::2], strict=True)}


_VMX_WORDS = _numbered(
    "0 EXCEPTION_NMI 1 EXTERNAL_INTERRUPT 2 TRIPLE_FAULT 3 INIT_SIGNAL 4 SIPI_SIGNAL "
    "7 INTERRUPT_WINDOW 8 NMI_WINDOW 9 TASK_SWITCH 10 CPUID 12 HLT 13 INVD 14 INVLPG 15 RDPMC "
    "16 RDTSC 18 VMCALL 19 VMCLEAR 20 VMLAUNCH 21 VMPTRLD 22 VMPTRST 23 VMREAD 24 VMRESUME "
    "25 VMWRITE 26 VMOFF 27 VMON 28 CR_ACCESS 29 DR_ACCESS 30 IO_INSTRUCTION 31 MSR_READ "
    "32 MSR_WRITE 33 INVALID_STATE 34 MSR_LOAD_FAIL 36 MWAIT_INSTRUCTION 37 MONITOR_TRAP_FLAG "
    "39 MONITOR_INSTRUCTION 40 PAUSE_INSTRUCTION 41 MCE_DURING_VMENTRY 43 TPR_BELOW_THRESHOLD "
    "44 APIC_ACCESS 45 EOI_INDUCED 46 GDTR_IDTR 47 LDTR_TR 48 EPT_VIOLATION 49 EPT_MISCONFIG "
    "50 INVEPT 51 RDTSCP 52 PREEMPTION_TIMER 53 INVVPID 54 WBINVD 55 XSETBV 56 APIC_WRITE "
    "57 RDRAND 58 INVPCID 59 VMFUNC 60 ENCLS 61 RDSEED 62 PML_FULL 63 XSAVES 64 XRSTORS "
    "67 UMWAIT 68 TPAUSE 74 BUS_LOCK 75 NOTIFY 77 TDCALL",
    10,
)
_SVM_WORDS = _numbered(
    "60 interrupt 61 nmi 62 smi 63 init 64 vintr 65 cr0_sel_write 66 read_idtr 67 read_gdtr "
    "68 read_ldtr 69 read_tr 6a write_idtr 6b write_gdtr 6c write_ldtr 6d write_tr 6e rdtsc "
    "6f rdpmc 70 pushf 71 popf 72 cpuid 73 rsm 74 iret 75 swint 76 invd 77 pause 78 hlt 79 invlpg "
    "7a invlpga 7b io 7c msr 7d task_switch 7e ferr_freeze 7f shutdown 80 vmrun 81 hypercall "
    "82 vmload 83 vmsave 84 stgi 85 clgi 86 skinit 87 rdtscp 88 icebp 89 wbinvd 8a monitor "
    "8b mwait "
    "8d xsetbv a2 invpcid a3 bus_lock a5 idle_hlt 400 npf 401 avic_incomplete_ipi "
    "402 avic_unaccelerated_access 403 vmgexit",
    16,
)

VMX_WORDS: Final = _VMX_WORDS
"""KVM's words by the SDM's numbers."""

SVM_WORDS: Final = {
    **{number: f"read_cr{number}" for number in range(16)},
    **{0x10 + number: f"write_cr{number}" for number in range(16)},
    **{0x20 + number: f"read_dr{number}" for number in range(16)},
    **{0x30 + number: f"write_dr{number}" for number in range(16)},
    **{0x40 + int(vector): f"{vector.name} excp" for vector in Vector},
    **_SVM_WORDS,
}
"""KVM's words by the APM's numbers."""

_EXCEPTION = re.compile(r"(?:EXIT_EXCP_)?([A-Z]{2})(?: excp)?|excp_([a-z]{2})|EXCP_([A-Z]{2})")
_NUMBER = re.compile(r"(?:UNKNOWN )?\(?(0x[0-9a-f]{1,8}|\d{1,9})\)?")
_SVM_KINDS: Final = {
    "npf": NESTED_PAGE_FAULT,
    "nmi": SVM_NMI,
    "interrupt": SVM_INTERRUPT,
    "intr": SVM_INTERRUPT,
    "io": SVM_PORT,
    "ioio": SVM_PORT,
    "msr": SVM_MSR,
    "pause": SVM_PAUSE,
    "cr0_sel_write": SVM_REGISTER,
}
_SVM_CR: Final = re.compile(r"(?:read|write)_cr(\d{1,2})")
_VMX_KINDS: Final = {
    "EXCEPTION_NMI": EXCEPTION,
    "EXTERNAL_INTERRUPT": INTERRUPT,
    "EPT_VIOLATION": EPT_VIOLATION,
    "IO_INSTRUCTION": PORT,
    "CR_ACCESS": REGISTER,
    "PAUSE_INSTRUCTION": PAUSE,
    "MSR_READ": MSR,
    "MSR_WRITE": MSR,
}


def integer(text: str) -> int:
    """A number as files have it: hexadecimal after 0x, else decimal, also with zeros before it."""
    sign = -1 if text.startswith("-") else 1
    digits = text.strip(" -")
    return sign * (int(digits, 16) if digits.startswith("0x") else int(digits))


def word_for(number: int, *, svm: bool) -> str:
    """KVM's word for an exit reason's number."""
    if svm:
        return SVM_WORDS.get(number, f"EXIT_{number:#x}")
    word = VMX_WORDS.get(number & 0xFFFF, f"UNKNOWN ({number & 0xFFFF})")
    return word + (" FAILED_VMENTRY" if number >> 31 & 1 else "")


def kind_of(word: str) -> tuple[int, int]:
    """(what kind of exit a word names, the vector that it names or -1)."""
    if not (word[:1].islower() or word.endswith(" excp") or word.startswith(("EXIT_", "EXCP_"))):
        return _VMX_KINDS.get(word.partition(" ")[0], OTHER), -1
    if word.removeprefix("EXIT_").lower() in _SVM_KINDS:
        return _SVM_KINDS[word.removeprefix("EXIT_").lower()], -1
    if _SVM_CR.fullmatch(word.removeprefix("EXIT_").lower()):
        return SVM_REGISTER, -1
    match = _EXCEPTION.fullmatch(word)
    if match is None:
        return SVM, -1
    name = (match[1] or match[2] or match[3]).upper()
    return SVM_EXCEPTION, VECTORS.get(name, -1)


class Reasons:
    """The reasons of a recording by numbers of their own, in the order of first use."""

    MOST: Final = 32_000
    """So many words fit a trace's column; later ones become one."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.kinds: NDArray[np.int64] = np.zeros(0, np.int64)
        self.vectors: NDArray[np.int64] = np.zeros(0, np.int64)
        self._numbers: dict[str, int] = {}

    def number(self, word: str, *, svm: bool = False) -> int:
        """The number of a word; a word that is a number is looked up first."""
        bare = _NUMBER.fullmatch(word)
        if bare is not None and not word.startswith("UNKNOWN"):
            number = integer(bare[1])
            word = word_for(number, svm=svm or number >= 0x80)
        if len(self.words) >= self.MOST and word not in self._numbers:
            word = "(other)"
        if word not in self._numbers:
            self._numbers[word] = len(self.words)
            self.words.append(word)
            kind, vector = kind_of(word)
            self.kinds = np.append(self.kinds, kind)
            self.vectors = np.append(self.vectors, vector)
        return self._numbers[word]
