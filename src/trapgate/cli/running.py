"""What `trapgate run` does: a machine and its guest by the options, the run, and its summary."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trapgate.cli.injections import Injections, finder
from trapgate.cli.names import names_for
from trapgate.cli.notes import notes_about
from trapgate.cli.run_options import Options, memory_size, refuse_contradictions
from trapgate.cli.saved import Saving
from trapgate.cli.screen import screen_lines, shown, take_picture
from trapgate.cli.start import Start, start_of
from trapgate.cli.summary import show_summary, summary_json
from trapgate.cli.terminal import EngineKind, Paging, Protect, fail, name_portable_engine, terminal

if TYPE_CHECKING:
    from trapgate.debug.postmortem import PostMortem
    from trapgate.decision.conditions import Names
    from trapgate.trace import TraceWriter
    from trapgate.vmcs.file import Settings
    from trapgate.vmm.actions import Stop
    from trapgate.vmm.machine import VirtualMachine
    from trapgate.vmm.ui.console import Console

_MOST_EXPLANATIONS = 1000
_SHORT_RUN = 5.0
"""Seconds up to which a run that failed is executed again, to find its last branches."""


def _keyboard() -> int | None:
    """The file descriptor to read keys from; None where standard input is not a file."""
    try:
        return sys.stdin.fileno() if sys.stdin else None
    except OSError:
        return None


class Explanations:
    """Prints each explanation once, in a line of its own on stderr, and keeps them all apart.

    A VMM that tries the same for ever is not to fill a disk.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, words: str) -> None:
        """One failure's explanation."""
        if words not in self.counts and len(self.counts) >= _MOST_EXPLANATIONS:
            words = f"more than {_MOST_EXPLANATIONS} different failures; the others are not shown"
        self.counts[words] += 1
        if self.counts[words] == 1:
            # A terminal may be raw, and the guest in the middle of a line.
            line = f"\r\ntrapgate: {words}\r\n" if sys.stderr.isatty() else f"trapgate: {words}\n"
            sys.stderr.write(line)
            sys.stderr.flush()

    def as_json(self) -> list[dict[str, Any]]:
        """What failed, and how often, as JSON values."""
        return [{"explanation": words, "count": count} for words, count in self.counts.items()]


def perform(given: Options) -> int:
    """Run what the options ask for; the exit status."""
    refuse_contradictions(given)
    find = finder(given.guest, given.symbols)
    injections = Injections(given.inject or [], find)
    saving = None if given.save is None else Saving(given.save, find)
    known = _names(given)
    settings = None if given.vmcs is None else settings_of(given.vmcs, known)
    start = start_of(given)
    explanations = Explanations()

    def prepared(
        start: Start, console: Console, writer: TraceWriter | None, explain: Callable[[str], None]
    ) -> tuple[VirtualMachine, str, int]:
        """A machine about to start: what its guest is, and how wide its code is."""
        vm = _machine(given, start, settings, console, writer, explain)
        description, bits = start.put_into(vm)
        injections.plan(vm)
        if settings is not None:
            vm.apply(settings)
        type_into(vm, given)
        return vm, description, bits

    def again() -> VirtualMachine:
        return prepared(start_of(given), _console(given, muted=True), None, lambda _: None)[0]

    with trace_of(given.trace, start.file) as writer:
        console = _console(given)
        vm, description, bits = prepared(start, console, writer, explanations)
        if given.engine is EngineKind.auto and vm.summary().engine == "portable":
            name_portable_engine(vm.summary())
        if saving is not None:
            saving.plan(vm)
        if writer is not None:
            from trapgate.trace.schema import CRITERIA

            writer.metadata[CRITERIA] = vm.vmcs.criteria_toml()
        with (
            console,
            _debugger(vm, given.gdb, start.file, bits, known, wait=given.wait),
            shown(vm, given.until_screen, given.display, given.screenshot),
        ):
            stop = vm.run(max_instructions=given.max_instructions, timeout=given.timeout)
    take_picture(vm, given.screenshot)
    status = stop.status
    if saving is not None and not saving.end(vm, stop):
        status = 1
    post_mortem = _post_mortem(
        vm, given, start.file, again if _can_be_repeated(vm, given, console) else None
    )
    _print_result(
        vm, given, description, stop, status, post_mortem, explanations, injections.missed
    )
    return status


def _can_be_repeated(vm: VirtualMachine, given: Options, console: Console) -> bool:
    """Whether the run, executed again, is the same, and is not too long for that.

    It is not if somebody typed or changed the guest's state, or the guest a file.
    """
    files = any("," in disk for disk in (*(given.disk or ()), *(given.floppy or ())))
    by_hand = console.typed or given.gdb is not None or given.display is not None
    return not files and not by_hand and vm.summary().seconds < _SHORT_RUN


def _names(given: Options) -> Names | None:
    """What conditions may name; None where there are neither conditions nor symbols."""
    if given.vmcs is None and given.gdb is None and given.symbols is None:
        return None
    # --symbols is read now even if only a post-mortem needs it: at the end it would be too late.
    return names_for(given.symbols, given.bitmap, given.guest)


@contextmanager
def trace_of(file: Path | None, guest: Path) -> Iterator[TraceWriter | None]:
    """The writer of a trace, if there is to be one; closed in the end."""
    if file is None:
        yield None
        return
    from trapgate.trace import TraceWriter

    writer = TraceWriter(file, metadata={"guest": guest.name})
    try:
        yield writer
    finally:
        writer.close()


def _console(given: Options, *, muted: bool = False) -> Console:
    from trapgate.vmm.ui.console import Console

    if muted:
        return Console(BytesIO(), until=given.until)
    output = sys.stderr.buffer if given.as_json else sys.stdout.buffer
    return Console(output, source=_keyboard(), until=given.until)


def _machine(
    given: Options,
    start: Start,
    settings: Settings | None,
    console: Console,
    writer: TraceWriter | None,
    explain: Callable[[str], None],
) -> VirtualMachine:
    """The machine, without a guest as yet unless it was saved."""
    engine = given.engine.value
    if start.saved is not None:
        vm = start.saved.machine(board=start.board, console=console, trace=writer)
        if given.explain:
            vm.processor.x86_vmm.explain_to(explain)
    else:
        vt_x = settings is not None and settings.profile == "vt-x"
        vm = _kind(given.paging, given.protect or _protection(settings, engine))(
            memory_size(given.memory),
            engine=engine,
            console=console,
            trace=writer,
            seed=given.seed,
            profile="vt-x" if vt_x else "extended",
            explain=explain if given.explain else None,
            board=start.board,
        )
    vm.turns.length = given.turn
    vm.reboots, vm.resets_on_triple_fault = not given.no_reboot, given.reset_on_triple_fault
    return vm


def type_into(vm: VirtualMachine, given: Options) -> None:
    """Type what the options say at the serial port and the keyboard."""
    from trapgate.vmm.ui.console import input_bytes

    if given.text:
        vm.type(input_bytes(given.text))
    if given.keys:
        vm.devices.keyboard.type(input_bytes(given.keys).decode("latin-1"))


def _print_result(
    vm: VirtualMachine,
    given: Options,
    description: str,
    stop: Stop,
    status: int,
    post_mortem: PostMortem | None,
    explanations: Explanations,
    missed: list[str],
) -> None:
    """What became of the run, for a reader or a program."""
    from trapgate.vmm.actions import End

    summary = vm.summary()
    notes = [] if stop.end is End.REFUSED else list(notes_about(vm, given.paging, summary))
    screen = screen_lines(vm)
    if given.as_json:
        answer = {
            "guest": description,
            "end": stop.end.value,
            "message": stop.message,
            "status": status,
            **({"screen": screen} if screen else {}),
            "notes": notes,
            **({"not_injected": missed} if given.inject else {}),
            **summary_json(summary),
            **({"failures": explanations.as_json()} if given.explain else {}),
            **({"post_mortem": post_mortem.values()} if post_mortem is not None else {}),
        }
        print(json.dumps(answer, indent=2))
        return
    if screen:
        print("\non the screen:", *screen, sep="\n", file=sys.stderr)
    if post_mortem is None or post_mortem.headline != stop.message:
        print(f"\n{stop.message}", file=sys.stderr)
    if post_mortem is not None:
        print(f"\n{post_mortem}\n", file=sys.stderr)
    for injection in missed:
        print(f"trapgate: --inject: {injection}: the moment never came", file=sys.stderr)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    out = terminal(error=True)
    show_summary(summary, out)
    failures = vm.processor.x86_vmm.failures
    if failures and not given.explain:
        out.print(f"{failures:,} VMX instructions or VM entries failed; --explain says why")


@contextmanager
def _debugger(
    vm: VirtualMachine,
    gdb: str | None,
    guest: Path,
    bits: int,
    names: Names | None,
    *,
    wait: bool,
) -> Iterator[None]:
    """The server for gdb around a run, if there is to be one."""
    if gdb is None:
        if wait:
            raise fail("--wait: waits for gdb, so give --gdb too")
        yield
        return
    from trapgate.debug.gdb import Debugger, address_of

    debugger = Debugger(vm, *address_of(gdb), guest=guest, bits=bits, names=names)
    host, port = debugger.address
    print(f"trapgate: gdb: target remote {host}:{port}", file=sys.stderr, flush=True)
    try:
        if wait:
            debugger.wait()
        yield
    finally:
        if vm.stopped is not None:
            debugger.finished(vm.stopped)


def settings_of(file: Path, names: Names | None) -> Settings:
    """What a VMCS file says."""
    from trapgate.vmcs.file import read_settings

    return read_settings(file, names)


def _post_mortem(
    vm: VirtualMachine, given: Options, file: Path, again: Callable[[], VirtualMachine] | None
) -> PostMortem | None:
    """Why the guest died, if it did; in a page, too, if one is wanted."""
    if vm.stopped is None or vm.stopped.is_normal:
        return None
    from trapgate.debug.postmortem import explain_end
    from trapgate.debug.postmortem.names import namer

    post_mortem = explain_end(vm, namer(given.guest, given.symbols), again)
    if post_mortem is not None and given.report is not None:
        from trapgate.debug.postmortem.page import write

        write(post_mortem, given.report, file.name)
    return post_mortem


def _protection(settings: Settings | None, engine: str) -> Protect:
    """How direct paging protects tables, if nobody says: PTBASE is about read-only entries."""
    from trapgate.sdm.fields import Field

    if engine == EngineKind.portable:
        return Protect.entries
    about_entries = settings is not None and (
        settings.profile == "vt-x" or settings.fields.get(Field.PTBASE, 0) != 0
    )
    return Protect.entries if about_entries else Protect.frames


def _kind(paging: Paging, protect: Protect) -> type[VirtualMachine]:
    if paging is Paging.direct and protect is Protect.frames:
        from trapgate.vmm.direct.protected import ProtectedMachine

        return ProtectedMachine
    if paging is Paging.direct:
        from trapgate.vmm.direct.machine import DirectMachine

        return DirectMachine
    from trapgate.vmm.machine import VirtualMachine

    return VirtualMachine
