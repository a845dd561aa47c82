"""`trapgate run --with-guest`: several unmodified guests in one physical memory, in turns."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from trapgate.cli.notes import notes_about
from trapgate.cli.run_options import Options, memory_size, refuse_contradictions
from trapgate.cli.running import settings_of, trace_of, type_into
from trapgate.cli.start import Start, start_of
from trapgate.cli.summary import show_summary, summary_json
from trapgate.cli.terminal import EngineKind, Paging, Protect, fail, terminal

if TYPE_CHECKING:
    from trapgate.vmm.actions import Stop
    from trapgate.vmm.direct.protected import ProtectedMachine

_MOST_GUESTS = 16
_LONGEST_LINE = 1 << 16
"""Bytes that are kept for the end of a line: a guest that never ends one is not to fill memory."""


class _OptionParser(argparse.ArgumentParser):
    """Options of a guest beside the first one; a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise fail(f"--with-guest: {message}; give a guest as arguments of `trapgate run`")


def _option_parser() -> _OptionParser:
    """What a further guest may have of its own; its defaults are those of `trapgate run`."""
    words = _OptionParser(add_help=False, allow_abbrev=False)
    words.add_argument("guest", nargs="?", type=Path)
    for name in ("disk", "cdrom", "floppy", "module"):
        words.add_argument(f"--{name}", action="append")
    for name in ("bios", "initrd"):
        words.add_argument(f"--{name}", type=Path)
    for name in ("keys", "append"):
        words.add_argument(f"--{name}", default="")
    words.add_argument("--memory", default="128M")
    words.add_argument("--input", default="", dest="text")
    words.add_argument("--until")
    words.add_argument("--seed", type=int, default=0)
    return words


def options_of(text: str, first: Options) -> Options:
    """The options of a guest that runs beside `first`, of a text like "vmlinuz --memory 64M"."""
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise fail(f"--with-guest: {text!r} cannot be read ({error}); check the quotes") from None
    found = first._replace(**vars(_option_parser().parse_args(arguments)))
    if found.seed < 0:
        raise fail(f"--with-guest: --seed {found.seed} is negative; give 0 or more")
    if found.guest is None and not (found.bios or found.disk or found.cdrom or found.floppy):
        raise fail("--with-guest: there is nothing to run; give a kernel, or --disk with an image")
    return found


class Labelled:
    """Lines of a guest's output, each behind its number, to a stream that several share."""

    def __init__(self, stream: BinaryIO, label: str) -> None:
        self._stream = stream
        self._label = label.encode()
        self._line = bytearray()

    def write(self, data: bytes) -> int:
        """Whole lines go out; what follows them waits for its end, if that comes soon enough."""
        *lines, rest = (bytes(self._line) + data).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            self._stream.write(self._label + line + b"\n")
        self._line[:] = rest
        return len(data)

    def flush(self) -> None:
        """Pass on to the stream what was written."""
        self._stream.flush()

    def end(self) -> None:
        """A last line without its end goes out, too."""
        if self._line:
            self.write(b"\n")
        self.flush()


@dataclass(frozen=True)
class _Guest:
    """One of the guests: what was asked for, where it begins, and its machine."""

    given: Options
    start: Start
    vm: ProtectedMachine
    description: str


def perform_together(given: Options, beside: Sequence[str]) -> int:
    """Run the guest of `given` and those beside it; the exit status, which is the worst."""
    refuse_contradictions(given)
    _refuse_what_is_for_one(given)
    every = [given, *(options_of(text, given) for text in beside)]
    if len(every) > _MOST_GUESTS:
        raise fail(f"--with-guest: {len(every)} guests; at most {_MOST_GUESTS} share a memory")
    from trapgate.vmm.direct.mapped_memory import ProtectedHost
    from trapgate.vmm.direct.protected import ProtectedMachine
    from trapgate.vmm.ui.console import Console

    settings = None if given.vmcs is None else settings_of(given.vmcs, None)
    starts = [start_of(one) for one in every]
    output = sys.stderr.buffer if given.as_json else sys.stdout.buffer
    labelled = [Labelled(output, f"{n}| ") for n in range(1, len(every) + 1)]
    with ExitStack() as stack:
        writer = stack.enter_context(trace_of(given.trace, starts[0].file))
        host = ProtectedHost(
            [memory_size(one.memory) for one in every], engine=given.engine.value, trace=writer
        )
        guests = []
        for one, start, lines in zip(every, starts, labelled, strict=True):
            vm = ProtectedMachine(
                memory_size(one.memory),
                host=host,
                console=Console(lines, until=one.until),
                seed=one.seed,
                board=start.board,
            )
            vm.reboots, vm.resets_on_triple_fault = False, given.reset_on_triple_fault
            description, _ = start.put_into(vm)
            if settings is not None:
                vm.apply(settings)
            type_into(vm, one)
            guests.append(_Guest(one, start, vm, description))
        stops = host.run(max_instructions=given.max_instructions, timeout=given.timeout)
    for lines in labelled:
        lines.end()
    _print_results(guests, stops, as_json=given.as_json)
    return max(stop.status for stop in stops)


def _refuse_what_is_for_one(given: Options) -> None:
    if given.paging is not Paging.direct or given.protect is Protect.entries:
        raise fail(
            "--with-guest: only guests under a frame map can share a memory; give --paging "
            "direct, and no --protect entries"
        )
    if given.engine is EngineKind.portable:
        raise fail("--with-guest: a frame map needs the native engine; leave --engine out")
    for_one = {
        "--cpus": given.cpus != 1,
        "--load": given.load is not None,
        "--save": given.save is not None,
        "--gdb": given.gdb is not None,
        "--inject": bool(given.inject),
        "--report": given.report is not None,
        "--screenshot": given.screenshot is not None,
        "--until-screen": given.until_screen is not None,
        "--display": given.display is not None,
        "--explain": given.explain,
    }
    wrong = [name for name, given_too in for_one.items() if given_too]
    if wrong:
        raise fail(f"{wrong[0]} is for one guest; leave it out, or --with-guest")


def _print_results(guests: Sequence[_Guest], stops: Sequence[Stop], *, as_json: bool) -> None:
    """What became of each guest, for a reader or a program."""
    told = list(zip(guests, stops, strict=True))
    if as_json:
        answer = [
            {
                "guest": guest.description,
                "machine_address": guest.vm.base,
                "end": stop.end.value,
                "message": stop.message,
                "status": stop.status,
                "notes": list(notes_about(guest.vm, Paging.direct, guest.vm.summary())),
                **summary_json(guest.vm.summary()),
            }
            for guest, stop in told
        ]
        print(json.dumps({"guests": answer}, indent=2))
        return
    out = terminal(error=True)
    for number, (guest, stop) in enumerate(told, 1):
        vm = guest.vm
        out.print(
            f"\nguest {number}: {guest.description}; {memory_size(guest.given.memory) >> 20} MB "
            f"from machine address {vm.base:#x}\n{stop.message}"
        )
        for note in notes_about(vm, Paging.direct, vm.summary()):
            out.print(f"note: {note}")
        show_summary(vm.summary(), out)
