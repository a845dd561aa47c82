"""The core's dialect of Python, and the compiler that makes machine code of it.

`dialect` has the mark `@core` and says what a core function may be, `translate` turns marked
functions into one LLVM module, `image` makes machine code of that and keeps it in a file.
It imports nothing but `errors`, and alone imports llvmlite. Begin with `dialect`, then `program`.
"""
