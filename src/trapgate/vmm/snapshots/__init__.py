"""A machine's state as values, and back.

`state` finds the objects of which a machine consists, `state_values` turns them into plain values
for a file, `snapshot` keeps a moment in memory. It may import `loaders`, `devices` and below. Begin
with `snapshot`.
"""
