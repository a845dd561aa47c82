"""The guest's state in the engine, and its time.

`state` copies it between the engine and a VMCS, `segments` holds what segments allow, `clock`
counts instructions, `fetched_code` reads the bytes at RIP. It imports `x87`, `library`, `emission`
and `machine`. Begin with `state`.
"""
