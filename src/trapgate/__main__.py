"""`python -m trapgate`."""

from trapgate.cli import app

app()
