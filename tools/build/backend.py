"""The build backend: hatchling's, which needs Trapgate's own dependencies to build a wheel.

A wheel for Linux on x86-64 has the core's machine code within (`image.py` here), and to compile
that the package is imported. An editable install compiles on its own first start instead. The
hooks that only prepare metadata are left out, for a wheel's dependencies are known when it is
built (docs/adr/0019-wheels-with-machine-code.md).
"""

import tomllib
from pathlib import Path
from typing import Any

from hatchling import build
from hatchling.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What has to be installed for `build_wheel`."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["compiler"]]
    return [*build.get_requires_for_build_wheel(config_settings), *needed]
