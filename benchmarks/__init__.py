"""How fast Trapgate is, beside what else could do the work: `python -m benchmarks`."""
