"""The core's dialect of Python, and the compiler that makes machine code of it.

`dialect` has the mark `@core` and the types, and docs/core-dialect.md says what a core function may
be. It imports nothing but `errors`; `llvm` alone imports llvmlite, where there is something to compile.
Begin with `dialect`, then `library`, whose docstring names the way from source to memory.
"""
