"""One self-contained page about a campaign: it opens offline and asks for nothing."""
