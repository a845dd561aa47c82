"""What the VMM does about a VM exit.

`handlers` is the table from exit reasons to handlers, `platform` the machine as a handler sees it,
`task_switch` and `initialisation` the longer handlers. It may import `bios` and below,
and the `actions` that a handler returns. Begin with `handlers`.
"""
