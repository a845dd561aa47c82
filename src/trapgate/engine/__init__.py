"""The execution engine: Unicorn behind a small interface, and compiled hooks.

`unicorn_engine.open_engine` opens an engine; the cells of `machine` say why it stopped, `hooks` and
`memory_hooks` have the functions that Unicorn calls, `dispatch` finds out what happened, and `loop`
continues. Below them are `translator`, `memory`, `guest`, `x87` and `library`. It may import all
core code, and it alone imports unicorn. Begin with `hooks.on_interrupt`.
"""
