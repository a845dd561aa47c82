"""The option --inject."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from trapgate.cli.terminal import fail

if TYPE_CHECKING:
    from trapgate.vmm.injection import Injection


def read_injections(texts: Iterable[str]) -> list[Injection]:
    """What is to be injected; ends the command with a word if one cannot be read."""
    from trapgate.vmm.injection import InjectionError, parse_injection

    try:
        return [parse_injection(text) for text in texts]
    except InjectionError as error:
        raise fail(f"--inject: {error}") from None
