"""LLVM itself, by way of llvmlite: optimising a module, and linking where `elf` does not.

The only module that imports llvmlite, and only when something is to be compiled or linked.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

from trapgate.compiler.target import IS_LINUX_X86_64, PROCESSOR, TRIPLE
from trapgate.errors import EngineError


def version() -> str | None:
    """Which llvmlite is installed, without importing it; None if there is none."""
    from importlib.util import find_spec

    spec = find_spec("llvmlite")
    if spec is None or spec.origin is None:
        return None
    packages = Path(spec.origin).parent.parent
    return " ".join(sorted(found.name for found in packages.glob("llvmlite-*")))


def _binding() -> ModuleType:
    try:
        from llvmlite import binding
    except ImportError:
        raise EngineError(
            "the core has to be compiled, and llvmlite is not installed: "
            "pip install 'trapgate[compiler]'"
        ) from None
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()
    module: ModuleType = binding
    return module


def processor() -> tuple[str, str]:
    """LLVM's names of the processor and its features that code is for."""
    if IS_LINUX_X86_64:
        return PROCESSOR, ""
    binding = _binding()
    return binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()


_PASSES = (
    "sroa",
    "simplify_cfg",
    "always_inliner",
    "global_dead_code_eliminate",
    "dead_arg_elimination",
    "instruction_combine",
    "jump_threading",
    "simplify_cfg",
)
"""LLVM's passes over the module, each once. Which calls go and which loops are written out has
been decided before (`module`, `statements`). LLVM's own -O1 looks at each function again at every
level of calls: that takes three times as long, and the code is as fast (docs/adr/0026)."""


def object_file(text: str) -> bytes:
    """The object file of a module in LLVM's language, optimised once as a whole."""
    llvm = _binding()
    triple = TRIPLE if IS_LINUX_X86_64 else llvm.get_process_triple()
    model = "small" if IS_LINUX_X86_64 else "jitdefault"
    cpu, features = processor()
    target = llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=2, reloc="pic", codemodel=model
    )
    module = llvm.parse_assembly(text)
    module.triple = target.triple
    module.data_layout = str(target.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    manager = llvm.create_new_module_pass_manager()
    for name in _PASSES:
        getattr(manager, f"add_{name}_pass")()
    manager.run(module, llvm.create_pass_builder(target, options))
    code: bytes = target.emit_object(module)
    return code


class Linked:
    """An object file in memory, linked by LLVM."""

    def __init__(self, code: bytes) -> None:
        llvm = _binding()
        target = llvm.Target.from_default_triple().create_target_machine()
        self._engine: Any = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
        self._engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        _kept.append(self)

    def address(self, symbol: str) -> int:
        """Where an exported function is."""
        address: int = self._engine.get_function_address(symbol)
        return address


_kept: list[Linked] = []
"""C has addresses in them as long as the process lives."""
