"""A machine's state as values, and back.

`state` finds the objects that a machine consists of, `state_values` turns them into plain values
for a file, `snapshot` holds a moment in memory. It imports `devices`. Begin with `snapshot`.
"""
