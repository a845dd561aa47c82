"""The execution engine: Unicorn behind a small interface.

Only this package imports unicorn and llvmlite.
`unicorn_engine.open_engine` gives an `Engine`; the cells of `machine` tell why it stopped;
`compiled.compiled` gives machine code of core functions.
"""
