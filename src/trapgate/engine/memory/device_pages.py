"""Devices behind physical pages: the engine asks Python for each access to them.

A guest is in the middle of an instruction then. So what Python raises is kept until the
engine stands, and a device that wants the VMM's attention gets it where the next block
begins.
"""

import ctypes
from collections.abc import Callable, Collection

from trapgate.compiler.dialect import Cells
from trapgate.engine import machine as mc
from trapgate.errors import EngineError
from trapgate.paging.memory import DEVICE_SLOTS, WATCH_DEVICES, WATCH_LOAD, WATCH_STORE

Load = Callable[[int, int], int]
"""A physical address and a size of 1 to 8 bytes; what is there."""
Store = Callable[[int, int, int], None]
"""A physical address, a size of 1 to 8 bytes, and the value."""

_LOAD = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_int64, ctypes.c_int64)
_STORE = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint64)
_ONES = (1 << 64) - 1


class DevicePages:
    """The device pages of an engine, none at first: its cells, and those of `paging.memory`.

    So the core finds them too, where it carries an instruction out. It asks for bytes.
    """

    def __init__(self, machine: Cells, watch: Cells) -> None:
        self._cells = machine
        self._watch = watch
        self.pages: Cells = watch[WATCH_DEVICES : WATCH_DEVICES + DEVICE_SLOTS]
        self.pages[:] = -1
        self.trouble: BaseException | None = None
        """What a device raised while the guest ran."""

    def connect(self, load: Load, store: Store) -> None:
        """Call `load` and `store` for accesses to all device pages."""

        def loaded(address: int, size: int) -> int:
            try:
                return load(address, size)
            except BaseException as error:
                self._keep(error)
                return _ONES

        def stored(address: int, size: int, value: int) -> None:
            try:
                store(address, size, value)
            except BaseException as error:
                self._keep(error)

        self._callbacks = (_LOAD(loaded), _STORE(stored))
        for cell, function in zip((WATCH_LOAD, WATCH_STORE), self._callbacks, strict=True):
            self._watch[cell] = ctypes.cast(function, ctypes.c_void_p).value or 0

    def place(self, pages: Collection[int]) -> None:
        """Say which physical pages, by number, have devices. Where there is RAM it comes first.

        Raises EngineError for more pages than there are slots, or where nothing is connected.
        """
        if len(pages) > DEVICE_SLOTS or not self._watch[WATCH_LOAD]:
            raise EngineError(
                f"{len(pages)} pages of devices: connect them first, and have at most "
                f"{DEVICE_SLOTS}"
            )
        self.pages[:] = [*pages, *[-1] * (DEVICE_SLOTS - len(pages))]

    def preempt(self) -> None:
        """Make the preemption timer of the VMM in Python expire where the next block begins."""
        c = self._cells
        c[mc.TIMER_END] = min(c[mc.TIMER_END], c[mc.TIME])
        c[mc.DEADLINE] = 0

    def raise_trouble(self) -> None:
        """Raise `trouble`, once."""
        trouble, self.trouble = self.trouble, None
        if trouble is not None:
            raise trouble

    def _keep(self, error: BaseException) -> None:
        if self.trouble is None:
            self.trouble = error
        self.preempt()
