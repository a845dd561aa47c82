"""What the VMM does about a VM exit.

`handlers` is the table from exit reasons to handlers, `platform` the machine as a handler sees
it, `task_switch` the longest of them. It imports `bios` and what lies below
it, and the `actions` that a handler can ask for. Begin with `handlers`.
"""
