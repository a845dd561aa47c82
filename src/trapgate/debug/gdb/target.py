"""The registers that gdb sees, and their description.

gdb wants its own features first, with its names and order; the others are ours. A guest whose
code begins with 64 bits is an x86-64 to gdb, any other an i386, for gdb cannot change in between.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trapgate.debug.gdb.threads import Thread
from trapgate.sdm import registers as numbers

_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp")
_ENCODED = {"rax": 0, "rcx": 1, "rdx": 2, "rbx": 3, "rsp": 4, "rbp": 5, "rsi": 6, "rdi": 7}
_GENERAL_32 = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_SELECTORS = ("cs", "ss", "ds", "es", "fs", "gs")
_FPU_CONTROL = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_EFLAGS = (
    ("CF", 0), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9), ("DF", 10),
    ("OF", 11), ("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18), ("VIF", 19), ("VIP", 20),
    ("ID", 21),
)  # fmt: skip
_TABLES = ("gdtr", "idtr", "ldtr", "tr")
_MSRS = (
    ("efer", "GUEST_IA32_EFER"),
    ("pat", "GUEST_IA32_PAT"),
    ("sysenter_cs", "GUEST_IA32_SYSENTER_CS"),
    ("sysenter_esp", "GUEST_IA32_SYSENTER_ESP"),
    ("sysenter_eip", "GUEST_IA32_SYSENTER_EIP"),
    ("debugctl", "GUEST_IA32_DEBUGCTL"),
)
_SYSCALL = ("star", "lstar", "cstar", "fmask", "kernel_gs_base")


@dataclass(frozen=True)
class Register:
    """A register of gdb's: its name, width and type, and how to get and set it for a thread.

    Getting it gives None for a thread that is parked where nobody knows it.
    """

    name: str
    bits: int
    kind: str
    feature: str
    read: Callable[[Thread], int | None]
    write: Callable[[Thread, int], None]


class Target:
    """The registers of a processor in gdb's order."""

    def __init__(self, *, wide: bool) -> None:
        self.wide = wide
        self.registers = list(self._all())

    def _field(self, name: str, bits: int, field: str, feature: str, kind: str = "") -> Register:
        def write(thread: Thread, value: int) -> None:
            thread.cpu.vmcs[field] = value

        return Register(
            name, bits, kind or f"int{bits}", feature, lambda thread: thread.value(field), write
        )

    def _cell(self, name: str, bits: int, number: int, feature: str, kind: str = "") -> Register:
        def write(thread: Thread, value: int) -> None:
            if number == 4:
                thread.cpu.vmcs["GUEST_RSP"] = value
            else:
                cells = thread.cpu.own.registers.cells
                cells[number] = value - (1 << 64) if value >> 63 else value

        return Register(
            name, bits, kind or f"int{bits}", feature, lambda thread: thread.general(number), write
        )

    def _vector(self, name: str, bits: int, kind: str, feature: str) -> Register:
        def read(thread: Thread) -> int | None:
            known = thread.in_force and thread.cpu.has_turn
            return thread.vm.processor.engine.vectors.read(name) if known else None

        def write(thread: Thread, value: int) -> None:
            if not thread.cpu.has_turn:
                raise ValueError("it is another processor's turn")
            thread.vm.processor.engine.vectors.write(name, value)

        return Register(name, bits, kind, feature, read, write)

    def _all(self) -> Iterator[Register]:
        core, sse = "org.gnu.gdb.i386.core", "org.gnu.gdb.i386.sse"
        segments, ours = "org.gnu.gdb.i386.segments", "org.trapgate.system"
        bits = 64 if self.wide else 32
        if self.wide:
            for name in _GENERAL:
                kind = "data_ptr" if name in ("rbp", "rsp") else ""
                yield self._cell(name, 64, _ENCODED[name], core, kind)
            for n in range(8, 16):
                yield self._cell(f"r{n}", 64, n, core)
        else:
            for n, name in enumerate(_GENERAL_32):
                yield self._cell(name, 32, n, core, "data_ptr" if n in (4, 5) else "")
        yield self._field("rip" if self.wide else "eip", bits, "GUEST_RIP", core, "code_ptr")
        yield self._field("eflags", 32, "GUEST_RFLAGS", core, "i386_eflags")
        for name in _SELECTORS:
            yield self._selector(name, core)
        for n in range(8):
            yield self._vector(f"st{n}", 80, "i387_ext", core)
        for name in _FPU_CONTROL:
            yield self._vector(name, 32, "int", core)
        for n in range(16 if self.wide else 8):
            yield self._vector(f"xmm{n}", 128, "vec128", sse)
        yield self._vector("mxcsr", 32, "i386_mxcsr", sse)
        if self.wide:
            yield self._field("fs_base", 64, "GUEST_FS_BASE", segments, "int")
            yield self._field("gs_base", 64, "GUEST_GS_BASE", segments, "int")
        for name in ("cr0", "cr3", "cr4"):
            yield self._field(name, 64, f"GUEST_{name.upper()}", ours)
        yield self._cell("cr2", 64, numbers.CR2, ours)
        yield self._cell("cr8", 64, numbers.CR8, ours)
        for name in ("cs", "ss", "ds", "es", *(() if self.wide else ("fs", "gs")), *_TABLES):
            yield self._field(f"{name}_base", 64, f"GUEST_{name.upper()}_BASE", ours)
        for name in _TABLES:
            yield self._field(f"{name}_limit", 32, f"GUEST_{name.upper()}_LIMIT", ours)
        for name, field in _MSRS:
            yield self._field(name, 64 if "cs" not in name else 32, field, ours)
        for name in _SYSCALL:
            number = getattr(numbers, name.upper(), None)
            if isinstance(number, int):
                yield self._cell(name, 64, number, ours)

    def _selector(self, name: str, feature: str) -> Register:
        return self._field(name, 32, f"GUEST_{name.upper()}_SELECTOR", feature)

    def description(self) -> str:
        """The target description in XML."""
        parts = [
            '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">',
            f"<architecture>{'i386:x86-64' if self.wide else 'i386'}</architecture>",
        ]
        feature = ""
        for number, register in enumerate(self.registers):
            if register.feature != feature:
                parts += ["</feature>"] if feature else []
                feature = register.feature
                parts.append(f'<feature name="{feature}">')
                parts += _types(feature)
            group = ' group="float"' if register.name in _FPU_CONTROL else ""
            parts.append(
                f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.kind}" '
                f'regnum="{number}"{group}/>'
            )
        return "".join((*parts, "</feature></target>"))

    def read(self, thread: Thread, number: int) -> str:
        """A register in hexadecimal digits, little endian, or x for each. Raises IndexError."""
        register = self.registers[number]
        size = (register.bits + 7) // 8
        value = register.read(thread)
        if value is None:
            return "xx" * size
        return (value & (1 << 8 * size) - 1).to_bytes(size, "little").hex()

    def write(self, thread: Thread, number: int, data: bytes) -> None:
        """Set a register from its bytes. Raises IndexError, ValueError, what the VMCS raises."""
        if not thread.in_force:
            raise ValueError("its registers are kept by its VMM")
        register = self.registers[number]
        register.write(thread, int.from_bytes(data[: (register.bits + 7) // 8], "little"))


def _types(feature: str) -> list[str]:
    if feature.endswith(".core"):
        fields = "".join(f'<field name="{n}" start="{bit}" end="{bit}"/>' for n, bit in _EFLAGS)
        return [f'<flags id="i386_eflags" size="4">{fields}</flags>']
    if feature.endswith(".sse"):
        vectors = (("v4f", "ieee_single", 4), ("v2d", "ieee_double", 2), ("v16i8", "int8", 16),
                   ("v8i16", "int16", 8), ("v4i32", "int32", 4), ("v2i64", "int64", 2))  # fmt: skip
        made = [f'<vector id="{n}" type="{t}" count="{c}"/>' for n, t, c in vectors]
        members = (("v4_float", "v4f"), ("v2_double", "v2d"), ("v16_int8", "v16i8"),
                   ("v8_int16", "v8i16"), ("v4_int32", "v4i32"), ("v2_int64", "v2i64"),
                   ("uint128", "uint128"))  # fmt: skip
        union = "".join(f'<field name="{n}" type="{t}"/>' for n, t in members)
        flags = '<flags id="i386_mxcsr" size="4"><field name="IE" start="0" end="0"/></flags>'
        return [*made, f'<union id="vec128">{union}</union>', flags]
    return []
