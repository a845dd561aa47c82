"""Direct paging (¶70): guests whose page tables the processor uses as they are.

`machine` is a virtual machine whose VMM protects tables by the entries that map them (`tables`
validates and counts, `withholding` takes R/W away); `protected` is one whose VMM has a frame map
(`links` counts, `edits` carries out writes), and `host` lets machines take turns. It imports the
rest of `vmm` and below. Begin with `machine`.
"""
