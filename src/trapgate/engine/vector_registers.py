"""The x87, MMX and SSE registers of an engine, while it stands."""

import ctypes
from collections.abc import Mapping

import numpy as np
from unicorn import Uc, x86_const
from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.unicorn import uclib

from trapgate.compiler.dialect import Cells
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.translator.sse_arithmetic import flags_met
from trapgate.errors import EngineError

_MASK = (1 << 64) - 1
_VECTOR_REGISTERS = {
    **{f"st{n}": x86_const.UC_X86_REG_ST0 + n for n in range(8)},
    **{f"xmm{n}": x86_const.UC_X86_REG_XMM0 + n for n in range(16)},
    "fctrl": x86_const.UC_X86_REG_FPCW,
    "fstat": x86_const.UC_X86_REG_FPSW,
    "ftag": x86_const.UC_X86_REG_FPTAG,
}
_X87_REGISTERS = {f"fp{n}": x86_const.UC_X86_REG_FP0 + n for n in range(8)}
_X87_POINTERS = {
    "fiseg": x86_const.UC_X86_REG_FCS,
    "fioff": x86_const.UC_X86_REG_FIP,
    "foseg": x86_const.UC_X86_REG_FDS,
    "fooff": x86_const.UC_X86_REG_FDP,
    "fop": x86_const.UC_X86_REG_FOP,
}
_READABLE = _VECTOR_REGISTERS | _X87_POINTERS
_STATE_BESIDE_X87 = {
    **{name: one for name, one in _VECTOR_REGISTERS.items() if not name.startswith("st")},
    **_X87_POINTERS,
}


class VectorRegisters:
    """Those of the engine `uc`, whose machine has these `cells`."""

    def __init__(self, uc: Uc, cells: Cells) -> None:
        self._uc = uc
        self._cells = cells

    @property
    def mxcsr(self) -> int:
        """MXCSR with what SSE instructions have met, while the engine stands."""
        env = int(self._cells[mc.ENV])
        met = ctypes.c_uint8.from_address(env + at.SSE_FLAGS).value
        return flags_met(met) | ctypes.c_uint32.from_address(env + at.MXCSR).value

    @mxcsr.setter
    def mxcsr(self, value: int) -> None:
        ctypes.c_uint32.from_address(int(self._cells[mc.ENV]) + at.MXCSR).value = value
        self.take_sse_flags()

    def take_sse_flags(self) -> int:
        """The exceptions that SSE instructions met since the last call, as flags of MXCSR."""
        cell = ctypes.c_uint8.from_address(int(self._cells[mc.ENV]) + at.SSE_FLAGS)
        found, cell.value = cell.value, 0
        return flags_met(int(found))

    def read(self, name: str) -> int:
        """An x87 or SSE register by gdb's name for it (st0, fctrl, xmm3, mxcsr), unsigned."""
        if name == "mxcsr":
            return self.mxcsr
        number = _READABLE.get(name)
        if number is None:
            return 0
        value = self._uc.reg_read(number)
        if isinstance(value, tuple):
            mantissa, exponent = value
            return int(mantissa) | int(exponent) << 64
        return int(value)

    def write(self, name: str, value: int) -> None:
        """Set one; those that the engine does not keep stay 0."""
        if name == "mxcsr":
            self.mxcsr = value
        elif name.startswith("st"):
            self._uc.reg_write(_VECTOR_REGISTERS[name], (value & _MASK, value >> 64))
        elif name in _READABLE:
            self._uc.reg_write(_READABLE[name], value)

    @property
    def live(self) -> Cells:
        """The state of the x87, MMX and SSE registers in place, while the engine stands."""
        start, end = (int(self._cells[mc.ENV]) + offset for offset in (at.FPU, at.SYSENTER_CS))
        state = (ctypes.c_int64 * ((end - start) // 8)).from_address(start)
        found: Cells = np.ctypeslib.as_array(state)
        return found

    def state(self) -> dict[str, int]:
        """x87 and SSE registers, for `take`; of the x87 the physical ones."""
        read = self._uc.reg_read
        x87 = {name: read(number) for name, number in _X87_REGISTERS.items()}
        return {
            **{name: int(mantissa | exponent << 64) for name, (mantissa, exponent) in x87.items()},
            **{name: int(read(number)) for name, number in _STATE_BESIDE_X87.items()},
            "mxcsr": self.mxcsr,
        }

    def take(self, state: Mapping[str, int]) -> None:
        """Set the x87 and SSE registers to these values, whatever they are."""
        for name, number in _STATE_BESIDE_X87.items():
            bits = 128 if name.startswith("xmm") else 64 if name.endswith("off") else 16
            self._uc.reg_write(number, state[name] & (1 << bits) - 1)
        for name, number in _X87_REGISTERS.items():
            self._uc.reg_write(number, (state[name] & _MASK, state[name] >> 64 & 0xFFFF))
        self._uc.reg_write(x86_const.UC_X86_REG_MXCSR, state["mxcsr"] & 0xFFFF)
        if not self._cells[mc.NATIVE]:
            context = ctypes.c_void_p(int(self._cells[mc.CONTEXT]))
            error = uclib.uc_context_save(self._uc._uch, context)
            if error != uc_const.UC_ERR_OK:
                raise EngineError(f"the engine does not save its state (error {error})")
        self.take_sse_flags()

    def save(self) -> bytes:
        """The state of the x87, MMX and SSE registers."""
        return ctypes.string_at(int(self._cells[mc.ENV]) + at.FPU, at.SYSENTER_CS - at.FPU)

    def restore(self, saved: bytes) -> None:
        """Undo what happened to them since `saved`."""
        ctypes.memmove(int(self._cells[mc.ENV]) + at.FPU, saved, len(saved))
        if not self._cells[mc.NATIVE]:
            # That was a copy.
            context = ctypes.c_void_p(int(self._cells[mc.CONTEXT]))
            error = uclib.uc_context_restore(self._uc._uch, context)
            if error != uc_const.UC_ERR_OK:
                raise EngineError(f"the engine does not take its state back (error {error})")
