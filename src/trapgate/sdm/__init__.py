"""The SDM's vocabulary: names and numbers, no behaviour.

`cells` lays out a VMCS, `vectors`, `reasons`, `controls` and `state` have the tables of the SDM;
the modules in words (`check_words`, `event_words`) say what a number means. It imports
nothing. Begin with `vectors`.
"""
