"""Searches for the best filter of a vector: pairs of mask and match, cubes, comparisons.

`schemes` names the kinds of criteria and the search of each; the others are these searches.
It imports `problems`. Begin with `schemes`.
"""
