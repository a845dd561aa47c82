"""Searches for tables of rules where one pair of mask and match is too little.

`clause_candidates` lists the clauses that may serve, `smallest_table` chooses the fewest, and
`table_search` refines both with counterexamples. It imports `terms` and below. Begin with
`table_search`.
"""
