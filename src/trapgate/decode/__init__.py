"""Which sensitive instruction is at RIP: a decoder for just these, in core code.

`execute` reads the opcode and calls `intercepts`, `effects` or the VMX instructions. It may import
`vmx`, `instructions` and below. Begin with `execute.execute`.
"""
