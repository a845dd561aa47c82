"""Searches for tables of rules, for wishes that one pair of mask and match cannot express.

`clause_candidates` lists the clauses that a table may use, `smallest_table` chooses the fewest, and
`table_search` refines both with counterexamples. It may import `wishes`, `terms` and below. Begin
with `table_search`.
"""
