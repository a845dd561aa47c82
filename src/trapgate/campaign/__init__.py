"""Fault injection: a plan, its golden run, the runs, and the outcome of each.

`plan` reads the TOML file, `golden` makes the run that others are compared with, `execute` makes
one run, `outcomes` classifies it, and `results` stores it; docs/architecture.md has the whole
sequence. It may import `report`, `vmm` and below. Begin with `campaign.prepare` and `campaign.run`.
"""
