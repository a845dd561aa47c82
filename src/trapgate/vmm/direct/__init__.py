"""Direct paging (¶70): guests whose page tables the processor uses as they are.

`frames` says whose each frame of memory is, `tables` validates and counts, `writes` decodes the
edits that exit, `machine` is a virtual machine under it. It imports `vmm` and below. Begin with
`machine`.
"""
