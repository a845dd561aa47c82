"""A VMM in Python: exit handlers, devices, guest loaders and the console."""
