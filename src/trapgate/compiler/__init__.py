"""The core's dialect of Python, and the compiler that makes machine code of it.

`dialect` has the mark `@core` and the types; docs/core-dialect.md says what a core function may
be. Imports nothing but `errors`; `llvm` alone imports llvmlite, to compile. Begin with
`dialect`, then `library`, whose docstring names the way from source to memory.
"""
