"""Unicorn's shared library: where its state, its functions and the slots of its calls are.

`layout` has the offsets, `host` what differs between x86-64 and arm64, `native` finds and verifies
the functions that are not public. It imports nothing of the engine. Begin with `layout`.
"""
