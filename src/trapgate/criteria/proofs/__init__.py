"""Tasks made from wishes, and proofs that an answer implements the wishes.

`tasks` turns wishes into one problem for each vector, `proof` verifies a filter with the rules
that the processor runs, `closed_form` proves merged page-fault filters for all masks at once.
It may import `wishes` and below. Begin with `tasks`.
"""
