"""Tasks that are made of wishes, and proofs that an answer does what is wished.

`tasks` turns wishes into one problem for each vector, `proof` verifies a filter on the rules
that the processor runs, `closed_form` proves merged page-fault filters for all masks at once.
It imports `wishes` and below. Begin with `tasks`.
"""
