"""One self-contained page about a campaign: it opens offline and asks for nothing.

`data` is what the page shows, `write` puts it into the template. It imports the rest of `campaign`
and `report`. Begin with `data`.
"""
