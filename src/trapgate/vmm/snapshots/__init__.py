"""A machine at one moment, in memory or in a file.

`state` finds the objects of which a machine consists, `state_values` turns them into plain values,
`snapshot` keeps a moment in memory, `file` writes it. It may import `accounts`, `exits` and below.
Begin with `snapshot`.
"""
