"""The SDM's vocabulary: names, numbers, layouts and words, no behaviour.

`vectors` is the table of vectors, `cells` and `fields` are the VMCS fields, `controls`, `reasons`
and `state` the bits and codes. It imports nothing. Begin with `vectors`.
"""
