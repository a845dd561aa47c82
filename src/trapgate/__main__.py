"""`python -m trapgate`."""

from trapgate.cli import app

if __name__ == "__main__":  # worker processes import it too
    app()
