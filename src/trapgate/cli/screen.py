"""What `trapgate run` does with the screen: show it in a browser, wait for text, take a picture."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trapgate.cli.terminal import fail

if TYPE_CHECKING:
    from trapgate.vmm.machine import VirtualMachine


ScreenshotOption = Annotated[
    Path | None,
    typer.Option("--screenshot", help="At the end, write the screen to this PNG file."),
]
UntilScreenOption = Annotated[
    str | None,
    typer.Option(
        "--until-screen",
        help="Stop when this regular expression matches the text on the screen.",
    ),
]
DisplayOption = Annotated[
    str | None,
    typer.Option(
        "--display",
        help="Show the screen in a browser at [HOST:]PORT (default host: loopback), and take keys "
        "and mouse from it.",
    ),
]


def screen_lines(vm: VirtualMachine) -> list[str]:
    """The lines on the screen in a text mode; none if it is empty."""
    lines = vm.devices.vga.text(vm.processor.memory)
    while lines and not lines[-1]:
        lines.pop()
    return lines


@contextmanager
def shown(
    vm: VirtualMachine, until: str | None, display: str | None, screenshot: Path | None
) -> Iterator[None]:
    """Around a run: stop it when `until` is on the screen, and serve the screen at `display`.

    What is in the way of the picture `screenshot` is told before the run, not after it.
    """
    if screenshot is not None:
        _demand_pictures(screenshot)
    if until is not None:
        _watch(vm, until)
    if display is None:
        yield
        return
    from trapgate.debug.gdb.server import address_of
    from trapgate.vmm.ui.display import Display

    memory = vm.processor.memory
    page = Display(vm.devices, memory, *address_of(display, "--display"))
    vm.watchers.append(page.look)
    print(f"trapgate: display: http://{page.address}/", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        vm.watchers.remove(page.look)
        page.close()


def take_picture(vm: VirtualMachine, file: Path | None) -> None:
    """Write the screen to a PNG file, if that is wanted."""
    if file is not None:
        from trapgate.vmm.ui.screen import save

        save(vm.devices.vga, vm.processor.memory, file)


def _demand_pictures(file: Path) -> None:
    from importlib.util import find_spec

    if not file.parent.is_dir():
        raise fail(f"--screenshot: {file}: {file.parent} is not a directory; create it first")
    if find_spec("PIL") is None:
        raise fail("--screenshot needs Pillow; install it: pip install 'trapgate[screen]'")


def _watch(vm: VirtualMachine, expression: str) -> None:
    from trapgate.vmm.actions import End, Stop

    try:
        search = re.compile(expression).search
    except (re.error, OverflowError, RecursionError) as error:
        raise fail(
            f"--until-screen: {expression!r} is not a regular expression ({error}); correct it"
        ) from None

    def look(vm: VirtualMachine) -> None:
        if search("\n".join(screen_lines(vm))):
            vm.stopped = Stop(End.UNTIL, "the expression appeared on the screen")

    vm.watchers.append(look)
