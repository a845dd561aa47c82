"""LLVM itself, by way of llvmlite: optimising a module, and linking where `elf` does not.

The only module that imports llvmlite, and only when something is to be compiled or linked.
"""

from collections.abc import Sequence
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
)
"""LLVM's passes over the whole module, each once. Which calls go and which loops are written out
has been decided before (`module`, `statements`). LLVM's own -O1 looks at each function again at
every level of calls: that takes three times as long, and the code is as fast (docs/adr/0026)."""

_HOT_PASSES = ("instruction_combine", "jump_threading", "simplify_cfg")
"""Those over what is not cold, after them."""

_WELL, _QUICKLY = 2, 0
"""How machine code is generated: LLVM's -O2 and -O0."""


def object_files(text: str) -> list[bytes]:
    """The object files of a module in LLVM's language, optimised once as a whole.

    Where `elf` links, functions with the attribute `cold` have one of their own. Its code is
    generated quickly: it takes a third of the time, and runs at half the speed.
    """
    llvm = _binding()
    target = _target(llvm, _WELL)
    module = llvm.parse_assembly(text)
    module.triple = target.triple
    module.data_layout = str(target.target_data)
    builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=1))
    _run(llvm, module, builder, _PASSES)
    cold: list[Any] = []
    others = list(module.global_variables)
    for function in module.functions:
        if not function.is_declaration:
            (cold if IS_LINUX_X86_64 and _is_cold(function) else others).append(function)
    for function in cold:
        function.add_function_attribute("noinline")  # which the next demands
        function.add_function_attribute("optnone")
    _run(llvm, module, builder, _HOT_PASSES)
    if not cold:
        return [target.emit_object(module)]
    quickly = _target(llvm, _QUICKLY)
    return [
        _object_file(quickly, module, cold, others),
        _object_file(target, module, others, cold),
    ]


def _is_cold(function: Any) -> bool:
    return b"cold" in b" ".join(function.attributes).split()


def _object_file(target: Any, module: Any, inside: Sequence[Any], outside: Sequence[Any]) -> bytes:
    """The object file of a part of a module, which others may refer to."""
    for linkage, things in (("external", inside), ("available_externally", outside)):
        for thing in things:
            thing.linkage = linkage
            thing.visibility = "hidden"
    made: bytes = target.emit_object(module)
    return made


def _target(llvm: ModuleType, level: int) -> Any:
    cpu, features = processor()
    triple = TRIPLE if IS_LINUX_X86_64 else llvm.get_process_triple()
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu,
        features=features,
        opt=level,
        reloc="pic",
        codemodel="small" if IS_LINUX_X86_64 else "jitdefault",
    )


def _run(llvm: ModuleType, module: Any, builder: Any, passes: Sequence[str]) -> None:
    manager = llvm.create_new_module_pass_manager()
    for name in passes:
        getattr(manager, f"add_{name}_pass")()
    manager.run(module, builder)


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
