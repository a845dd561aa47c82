"""The guest's state in the engine, and its time.

`state` copies it between the engine and a VMCS, `intercepts` says what stops the engine,
`segments` keeps what segments allow, `clock` counts instructions, `fetched_code` reads the bytes
at RIP, `address_spaces` keeps an x86 VMM's cached translations apart from its guest's. It may
import `x87`, `library`, `emission` and `machine`. Begin with `state`.
"""
