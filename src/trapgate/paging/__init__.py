"""Physical memory, and the walks through page tables: the guest's own and EPT's.

All of it is core code on an array of cells. It may import `sdm` and `compiler`. Begin with
`walk.walk`.
"""
