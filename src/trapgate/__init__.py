"""Trapgate: a virtual-machine environment with control over every fault."""
