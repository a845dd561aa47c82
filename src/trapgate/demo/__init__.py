"""The demonstrations: the bundled guest under several policies, and what each costs.

`direct` compares fault filters under direct paging, `x86` a VMM in Python with one of x86 code.
They import `vmm` and below, and print nothing. Begin with `direct`.
"""
