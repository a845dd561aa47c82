"""Fault injection: plan, golden run, runs by the million, and what became of each.

Events at VM entry are the second seed's (claims 1-9); flipped bits are what soft errors do.
"""
