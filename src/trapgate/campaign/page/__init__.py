"""One self-contained HTML page about a campaign, which opens offline.

`data` computes what the page shows, `write` puts it into the template. It imports the results and
statistics of `campaign`, and `report`. Begin with `write`.
"""
