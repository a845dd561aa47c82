"""Which sensitive instruction stands at RIP: a decoder of just these, in core code.

`execute` reads the opcode and hands over to `intercepts`, `effects` or the VMX instructions. It
may import `vmx`, `instructions` and below. Begin with `execute.execute`.
"""
