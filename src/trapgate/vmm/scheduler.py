"""Several machines on one host thread, in turns."""

from collections.abc import Sequence

from trapgate.vmm.actions import Stop
from trapgate.vmm.machine import VirtualMachine


def run_all(
    machines: Sequence[VirtualMachine],
    *,
    turn: int = 1_000_000,
    max_instructions: int | None = None,
) -> list[Stop | None]:
    """Run `machines` round-robin, `turn` instructions at a time, until each has stopped.

    With `max_instructions`, a machine that has executed so many is left where it is; its
    place in the answer is None. Turns depend on instruction counts alone, so a run is the
    same every time.
    """
    running = list(machines)
    while running:
        for machine in tuple(running):
            done = machine.step(turn)
            used_up = max_instructions is not None and machine.processor.time >= max_instructions
            if done is not None or used_up:
                running.remove(machine)
    return [machine.stopped for machine in machines]
