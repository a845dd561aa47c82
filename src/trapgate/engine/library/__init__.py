"""Unicorn's shared library: where its state, its functions and its linkage slots are.

`layout` has the offsets, `host` the differences between x86-64 and arm64, `native` finds and
verifies the functions that are not public. It imports nothing else of the engine. Begin with
`layout`.
"""
