"""The checks at VM entry, in the SDM's groups: controls, host state, guest state, segments.

Each gives the number of the first check that fails (`sdm.checks`), 0 if none does. They import
`instructions` and below. Begin with `guest_state`.
"""
