"""The demonstrations: guests under several policies, and the cost of each.

`direct` compares fault filters under direct paging, `x86` a VMM in Python with one of x86 code,
`any_guest` runs any other guest. They may import `vmm` and below, and print nothing. Begin with
`direct`.
"""
