"""The execution engine: Unicorn behind a small interface, and compiled hooks.

`unicorn_engine.open_engine` gives an engine; the cells of `machine` tell why it stopped, `hooks`
are what Unicorn calls, `dispatch` finds out what has happened, and `loop` goes on. Below them are
rooms: `translator`, `memory`, `guest`, `x87`, `library`. It imports all that is core code, and
alone imports unicorn. Begin with `hooks.on_interrupt`.
"""
