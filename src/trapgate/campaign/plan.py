"""A plan: what is run, what is put into it, when, how often, and how outcomes are told apart."""

from __future__ import annotations

import hashlib
import re
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from trapgate.campaign.document import Table
from trapgate.campaign.errors import PlanError
from trapgate.campaign.outcomes import OUTCOMES, Ending, UserClass
from trapgate.errors import suggestion
from trapgate.sdm.vectors import Vector
from trapgate.tomlfile import parse_toml, read_toml
from trapgate.vmm.actions import End
from trapgate.vmm.devices.board import MOST_DRIVES, MOST_FLOPPIES, MOST_PROCESSORS

BUNDLED: Final = "bundled"
"""The name of the guest that comes with the package."""
_MEMORY = 1 << 20, 3 << 30
STRATA: Final = ("", "target", "symbol", "time")
"""What a sample can be stratified by."""


@dataclass(frozen=True)
class Guest:
    """The guest and how to start it; as the options of `trapgate run` are.

    Without a `kernel` firmware starts it: `bios`, or the built-in BIOS from one of the drives.
    """

    kernel: str
    append: str
    initrd: Path | None
    modules: tuple[str, ...]
    memory: int
    vmcs: Path | None
    paging: str
    protect: str
    keys: str
    seed: int
    engine: str
    symbols: Path | None
    disks: tuple[Path, ...] = ()
    cds: tuple[Path, ...] = ()
    floppies: tuple[Path, ...] = ()
    bios: Path | None = None
    processors: int = 1

    @property
    def drives(self) -> tuple[Path, ...]:
        """The images of all drives."""
        return *self.disks, *self.cds, *self.floppies

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the runs depend on."""
        named = [self.initrd, self.vmcs, *(Path(one.split(" ", 1)[0]) for one in self.modules)]
        if self.kernel not in ("", BUNDLED):
            named.insert(0, Path(self.kernel))
        return tuple(one for one in (*named, self.bios, *self.drives) if one is not None)


@dataclass(frozen=True)
class Point:
    """A moment of a run: `kind` is instructions, rip, symbol, output or exit."""

    kind: str
    count: int = 0
    text: str = ""
    time: int = 1
    """The how manieth time, for rip and symbol."""

    def __str__(self) -> str:
        """As a reader would write it."""
        nth = f" for the {self.time}. time" if self.time > 1 else ""
        if self.kind == "instructions":
            return f"{self.count:,} instructions"
        return "its own end" if self.kind == "exit" else f"{self.kind} {self.text}{nth}"


@dataclass(frozen=True)
class When:
    """At which instructions of the golden run faults are put in.

    Every `every`-th of those that lie in `symbols` (all if there are none), or those at which
    the golden run takes one of `faults`, or a fault or interrupt for which `condition` holds.
    """

    every: int
    symbols: tuple[str, ...]
    faults: tuple[int, ...]
    condition: str = ""


@dataclass(frozen=True)
class Sample:
    """How many runs: all (None), or so many by chance, seeded."""

    runs: int | None
    half_width: float | None
    confidence: float
    seed: int
    stratify: str


@dataclass(frozen=True)
class Plan:
    """A campaign, as its file says."""

    title: str
    guest: Guest
    begin: Point
    end: Point
    golden_budget: int
    targets: tuple[dict[str, Any], ...]
    when: When
    sample: Sample
    prune: bool
    budget: int | None
    """Instructions beyond the golden run's end after which a run counts as hung."""
    checkpoints: int | None
    """Moments at which a run that is back at the golden run's state ends; None for the usual."""
    detected: tuple[re.Pattern[bytes], ...]
    classes: tuple[UserClass, ...]
    path: str
    """What the plan is called: a file, or the name of a shipped one."""
    folder: Path
    """Where the files that it names are looked for."""
    text: str

    code: bytes = b""
    """The files with functions of its classes."""

    @property
    def digest(self) -> str:
        """A fingerprint of the file's contents, and of the functions that it names."""
        return hashlib.sha256(self.text.encode() + self.code).hexdigest()


def shipped() -> list[str]:
    """The names of the plans that come with the package."""
    folder = files("trapgate.campaign") / "plans"
    return sorted(one.name[:-5] for one in folder.iterdir() if one.name.endswith(".toml"))


def find_plan(name: str) -> Plan:
    """The plan in the file `name`, or the shipped one of that name. Raises PlanError."""
    if name in shipped():
        folder = Path(str(files("trapgate.campaign") / "plans"))
        return parse_plan((folder / f"{name}.toml").read_text(encoding="utf-8"), name, folder)
    path = Path(name)
    if not path.exists() and path.suffix != ".toml":
        raise PlanError(
            f"is neither a file nor a bundled plan; {suggestion(name, shipped())}", name
        )

    def wrong(problem: str) -> PlanError:
        return PlanError(problem, path=name)

    return parse_plan(read_toml(path, wrong), name, path.parent)


def parse_plan(text: str, name: str, folder: Path, *, trusted: bool = True) -> Plan:
    """The plan in `text`; files that it names are relative to `folder`.

    If it is not `trusted`, it may name no functions. Raises PlanError.
    """

    def wrong(problem: str) -> PlanError:
        return PlanError(problem, path=name)

    document = Table(parse_toml(text, wrong), "", name)
    golden = document.table("golden")
    run = document.table("run")
    outcomes = document.table("outcomes")
    targets = document.tables("target")
    if not targets:
        raise document.error("nothing is to be injected; give at least one [[target]]", "target")
    functions = _Functions(folder, trusted=trusted)
    plan = Plan(
        title=document.text("title", Path(name).stem),
        guest=_guest(document.table("guest"), folder),
        begin=_point(golden, "begin", Point("instructions", 0)),
        end=_point(golden, "end", Point("exit")),
        golden_budget=golden.number("budget", 1_000_000_000, low=1) or 0,
        targets=tuple(one.values for one in targets),
        when=_when(document.table("when")),
        sample=_sample(document.table("sample")),
        prune=document.flag("prune"),
        budget=run.number("budget", low=1),
        checkpoints=run.number("checkpoints", high=256),
        detected=outcomes.patterns("detected"),
        classes=tuple(_user_class(one, functions) for one in document.tables("class")),
        path=name,
        folder=folder,
        text=text,
        code=b"".join(functions.code.values()),
    )
    if plan.begin.kind == "exit":
        raise golden.error("a run cannot begin where it ends; give instructions", "begin")
    for table in (golden, run, outcomes, document):
        table.refuse_unknown_keys()
    if plan.guest.processors > 1 and (plan.prune or plan.when.condition):
        raise document.error(
            "registers and accesses of one processor are not told from another's; leave it out, or "
            "guest.cpus",
            "prune" if plan.prune else "when.condition",
        )
    names = [one.name for one in plan.classes]
    for one in names:
        if one in OUTCOMES or names.count(one) > 1:
            raise document.error(f"{one!r} is a class already; give another name", "class.name")
    return plan


def _guest(table: Table, folder: Path) -> Guest:
    drives = {key: table.texts(key) for key in ("disk", "cdrom", "floppy")}
    from_drives = "bios" in table or any(drives.values())
    kernel = table.text("kernel", "" if from_drives else BUNDLED)
    workload = table.text("workload")
    append = table.text("append")
    if workload:
        append = f"workload={workload} {append}".strip()

    def file(key: str) -> Path | None:
        name = table.text(key)
        return place(key, name) if name else None

    def place(key: str, name: str) -> Path:
        if key in drives and "," in name:
            raise table.error(
                f"{name}: what a guest writes to a drive is forgotten after its run; leave "
                f"{name[name.index(',') :]} out",
                key,
            )
        path = folder / name
        if not path.is_file():
            raise table.error(f"there is no file {name}; give a path from the plan's folder", key)
        return path

    memory = table.size("memory", "16M" if kernel == BUNDLED else "128M")
    low, high = _MEMORY
    if not low <= memory <= high:
        raise table.error("is out of range; choose from 1M to 3G", "memory")
    found = Guest(
        kernel=kernel if kernel in ("", BUNDLED) else str(folder / kernel),
        append=append,
        initrd=file("initrd"),
        modules=tuple(str(folder / one) for one in table.texts("modules")),
        memory=memory,
        vmcs=file("vmcs"),
        paging=table.choice("paging", ("own", "direct"), "own"),
        protect=table.choice("protect", ("frames", "entries"), "entries"),
        keys=table.text("input"),
        seed=table.number("seed", 0) or 0,
        engine=table.choice("engine", ("auto", "native", "portable"), "auto"),
        symbols=file("symbols"),
        disks=tuple(place("disk", name) for name in drives["disk"]),
        cds=tuple(place("cdrom", name) for name in drives["cdrom"]),
        floppies=tuple(place("floppy", name) for name in drives["floppy"]),
        bios=file("bios"),
        processors=table.number("cpus", 1, low=1, high=MOST_PROCESSORS) or 1,
    )
    _demand_whole(table, found)
    if kernel not in ("", BUNDLED) and not Path(found.kernel).is_file():
        raise table.error(
            f'there is no file {kernel}; give a kernel, or "{BUNDLED}" for the package\'s own',
            "kernel",
        )
    table.refuse_unknown_keys()
    return found


def _demand_whole(table: Table, guest: Guest) -> None:
    """Raise PlanError for parts of a guest that do not go together."""
    if guest.bios is not None and guest.kernel:
        raise table.error("firmware starts instead of a kernel; leave out one of the two", "bios")
    if not guest.kernel and (guest.append or guest.initrd or guest.modules):
        raise table.error("only a kernel has append, initrd and modules; give kernel", "kernel")
    if len(guest.disks) + len(guest.cds) > MOST_DRIVES:
        raise table.error(f"there is room for {MOST_DRIVES} drives, CDs included", "disk")
    if len(guest.floppies) > MOST_FLOPPIES:
        raise table.error(f"there is room for {MOST_FLOPPIES} floppy drives", "floppy")
    if guest.paging == "direct" and guest.processors > 1:
        raise table.error("direct paging is for one processor; leave cpus or paging out", "cpus")


def _point(golden: Table, key: str, default: Point) -> Point:
    if key not in golden:
        return default
    table = golden.table(key)
    kinds = [kind for kind in ("instructions", "rip", "symbol", "output", "exit") if kind in table]
    if len(kinds) != 1:
        raise table.error("give one of instructions, rip, symbol, output, exit")
    kind = kinds[0]
    count = 0
    text = ""
    if kind == "instructions":
        count = table.number(kind, 0) or 0
    elif kind == "rip":
        count, _ = table.span(kind, (0, 1), 64)
        text = f"{count:#x}"
    elif kind == "exit":
        if not table.flag(kind):
            raise table.error("is only ever true", kind)
    elif kind == "output":
        pattern = table.patterns(kind)
        text = pattern[0].pattern.decode() if len(pattern) == 1 else ""
        if not text:
            raise table.error("give one regular expression", kind)
    else:
        text = table.text(kind)
    time = table.number("time", 1, low=1) or 1 if kind in {"rip", "symbol"} else 1
    table.refuse_unknown_keys()
    return Point(kind, count, text, time)


def _when(table: Table) -> When:
    faults = []
    for name in table.texts("faults"):
        word = name.removeprefix("#").upper()
        if word not in Vector.__members__:
            raise table.error(f"no fault {name!r}; {suggestion(word, list(Vector.__members__))}")
        faults.append(int(Vector[word]))
    every, symbols = table.number("every", 1, low=1) or 1, table.texts("symbols")
    found = When(every, symbols, tuple(faults), table.text("condition"))
    of_events = "faults" if found.faults else "condition" if found.condition else ""
    if of_events and (symbols or every != 1):
        raise table.error(
            f"{of_events} means moments of its own; leave every and symbols out", of_events
        )
    table.refuse_unknown_keys()
    return found


def _sample(table: Table) -> Sample:
    found = Sample(
        runs=table.number("runs", low=1, high=1_000_000_000),
        half_width=table.fraction("half_width", None, 0, 0.5),
        confidence=table.fraction("confidence", 0.95, 0.5, 1) or 0.95,
        seed=table.number("seed", 0) or 0,
        stratify=table.choice("stratify", STRATA, ""),
    )
    if found.runs is not None and found.half_width is not None:
        raise table.error("runs and half_width say the same in two ways; leave one out")
    table.refuse_unknown_keys()
    return found


class _Functions:
    """Functions in Python files that a plan names: a file is executed once."""

    def __init__(self, folder: Path, *, trusted: bool) -> None:
        self._folder = folder
        self._trusted = trusted
        self._names: dict[str, dict[str, Any]] = {}
        self.code: dict[str, bytes] = {}

    def find(self, table: Table) -> Callable[[Ending], object] | None:
        """The function that a class's table names, if it does. Raises PlanError."""
        text = table.text("function")
        if not text:
            return None
        file, _, name = text.rpartition(":")
        if not file or not name.isidentifier():
            raise table.error(f'{text!r} names no function; write "FILE.py:NAME"', "function")
        if not self._trusted:
            raise table.error(f"executes {file}; give --trust if it is yours", "function")
        if file not in self._names:
            self._execute(file, table)
        function = self._names[file].get(name)
        if not callable(function):
            near = suggestion(name, [one for one, it in self._names[file].items() if callable(it)])
            raise table.error(f"{file} has no function {name!r}; {near}", "function")
        found: Callable[[Ending], object] = function
        return found

    def _execute(self, file: str, table: Table) -> None:
        path = self._folder / file
        try:
            self.code[file] = path.read_bytes()
            self._names[file] = runpy.run_path(str(path))
        except OSError as error:
            raise table.error(f"{file} cannot be read ({error.strerror})", "function") from None
        except Exception as error:  # whatever the file does
            words = f"{type(error).__name__}: {error}"
            raise table.error(f"{file} cannot be executed ({words})", "function") from error


def _user_class(table: Table, functions: _Functions) -> UserClass:
    name = table.text("name")
    if not name:
        raise table.error("a class needs a name", "name")
    ends = {end.value for end in End}
    for end in (wanted := table.texts("end")):
        if end not in ends:
            raise table.error(f"no run ends by {end!r}; {suggestion(end, sorted(ends))}", "end")
    of = table.texts("of")
    for outcome in of:
        if outcome not in OUTCOMES:
            raise table.error(f"no outcome {outcome!r}; {suggestion(outcome, OUTCOMES)}", "of")
    patterns = table.patterns("output")
    status = table.number("status", high=255)
    function = functions.find(table)
    found = UserClass(name, of, wanted, status, patterns, table.texts("handled"), function)
    if not (of or wanted or patterns or status is not None or found.handled or function):
        raise table.error("give a condition: of, end, status, output, handled or function")
    table.refuse_unknown_keys()
    return found
