"""Fault injection: plan, golden run, runs by the million, and what became of each.

Events at VM entry are the second seed's (claims 1-9); flipped bits are what soft errors do. `plan`
reads a campaign's file, `golden` and `runs` decide what is run, `execute` runs it, `outcomes` and
`results` say and keep what became of it. It imports `report`, `vmm` and below. Begin with
`campaign`.
"""
