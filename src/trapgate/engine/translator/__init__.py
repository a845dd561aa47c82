"""Functions of ours that the engine's translator and translated code call.

`translation` installs them in the linkage slots; the other modules are these functions: checks of
accesses and branches, control transfers, SSE, and code that the engine gets wrong
(`translator_errata`, `helper_errata`). It may import `memory`, `guest` and below. Begin with
`translation`.
"""
