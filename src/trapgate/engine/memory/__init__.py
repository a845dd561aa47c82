"""Memory as the engine sees it: translated code, cached translations, page tables, devices.

`coherence` drops translated code whose source has changed, and `audit` checks that it does; `tlb`
sets and drops the engine's cached translations; `table_fills` and `table_stores` handle writes to
page tables. It may import `guest` and below. Begin with `coherence`.
"""
