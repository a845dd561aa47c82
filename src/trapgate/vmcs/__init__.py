"""The VMCS as software sees it: fields by name, VMCS files, capabilities, explanations.

What a field means to the processor is decided elsewhere. It may import `decision` and below.
Begin with `vmcs.Vmcs`.
"""
