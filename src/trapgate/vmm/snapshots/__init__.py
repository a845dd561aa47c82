"""A machine at one moment, in memory and in a file, and the way back.

`state` finds the objects that a machine consists of, `state_values` turns them into plain values,
`snapshot` holds a moment in memory, and `file` writes it. It imports `accounts` and below. Begin
with `snapshot`.
"""
