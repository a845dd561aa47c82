"""The build hook: wheels for Linux on x86-64 have machine code within, others need llvmlite."""

import sys
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_MARKING = (
    "trapgate.engine.program",
    "trapgate.trace.imports.importer",
    "trapgate.vmm.direct.linking",
)
"""Modules that import all functions which are compiled."""


class ImageHook(BuildHookInterface):  # type: ignore[misc]
    """Compile the package's libraries into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the wheel is made."""
        sys.path.insert(0, str(Path(self.root) / "src"))
        from trapgate.compiler.target import IS_LINUX_X86_64

        if version == "editable" or not IS_LINUX_X86_64:
            needed = self.metadata.core.optional_dependencies["compiler"]
            build_data["dependencies"].extend(needed)
            return
        from trapgate.compiler import cache, library

        for module in _MARKING:
            import_module(module)
        folder = Path(mkdtemp())
        for name, one in library.NAMED.items():
            file = folder / name
            file.write_bytes(one.ship())
            inside = cache.shipped_file(name).relative_to(Path(self.root) / "src")
            build_data["force_include"][str(file)] = str(inside)
        build_data["pure_python"] = False
        # The code asks nothing of an interpreter's version or of a C library.
        build_data["tag"] = "py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64"
