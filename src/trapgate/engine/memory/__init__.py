"""Memory as the engine sees it: translated code made from it, page tables, devices.

`coherence` drops translations whose source was stored to and `audit` checks that it does;
`tlb` sets and drops the engine's cached translations; `table_fills` and `table_stores` are writes
to page tables. It imports `guest` and below. Begin with `coherence`.
"""
