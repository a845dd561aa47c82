"""The option --inject, and symbols in what options say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trapgate.cli.terminal import fail

if TYPE_CHECKING:
    from trapgate.vmm.injection import Injection
    from trapgate.vmm.machine import VirtualMachine


class Injections:
    """What --inject asks for, and what of it has not come about yet.

    Ends the command with a word if one cannot be read.
    """

    def __init__(self, texts: Iterable[str], find: Callable[[str], int]) -> None:
        self._waiting = [(text, _injection(text, find)) for text in texts]

    def plan(self, vm: VirtualMachine) -> None:
        """Plan that `vm` delivers each at its moment."""
        for one in self._waiting:
            vm.at(one[1].when, partial(self._deliver, one))

    def _deliver(self, one: tuple[str, Injection], vm: VirtualMachine) -> None:
        one[1].deliver(vm)
        self._waiting = [other for other in self._waiting if other is not one]

    @property
    def missed(self) -> list[str]:
        """Those whose moment has not come, as they were written."""
        return [text for text, _ in self._waiting]


def _injection(text: str, find: Callable[[str], int]) -> Injection:
    from trapgate.vmm.injection import InjectionError, parse_injection

    try:
        return parse_injection(text, find)
    except InjectionError as error:
        raise fail(f"--inject: {error}") from None


def finder(guest: Path | None, symbols: Path | None) -> Callable[[str], int]:
    """Addresses of the functions that `symbols` names, or the guest's own file.

    It raises MomentError for a name that nobody has.
    """

    def find(name: str) -> int:
        from trapgate.errors import suggestion
        from trapgate.trace.schema import TraceError
        from trapgate.trace.symbols import Symbols
        from trapgate.vmm.moments import MomentError

        file = guest if symbols is None else symbols
        try:
            if file is None:
                raise MomentError(f"symbol={name}: nothing names functions; give --symbols")
            table = Symbols(file)
        except TraceError as error:
            raise MomentError(f"symbol={name}: {error}; give --symbols") from None
        if name not in table.names:
            near = suggestion(name, table.names)
            raise MomentError(f"symbol={name}: {file} has no such function; {near}")
        return int(table.starts[table.names.index(name)])

    return find
