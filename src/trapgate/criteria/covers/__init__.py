"""Searches for the best filter of a vector: pairs of mask and match, cubes, comparisons.

`schemes` names the kinds of criteria and the search for each; the other modules are these searches.
It may import `problems`. Begin with `schemes`.
"""
