"""Direct paging (¶70): guests whose own page tables the processor walks.

`frames` records which guest owns each frame, `links` and `tables` validate page tables, `writes`
decodes the edits that exit, `machine` and `protected` are virtual machines under entries and frame
maps. It may import all of `vmm` and below. Begin with `machine`.
"""
