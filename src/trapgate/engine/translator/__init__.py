"""What the engine's translator calls of ours, and what it makes of it.

`translation` fills the slots; the others are what stands behind each: checks of accesses and
branches, control transfers, SSE, and code that the engine gets wrong (`translator_errata`,
`helper_errata`). It imports `memory`, `guest` and below. Begin with `translation`.
"""
