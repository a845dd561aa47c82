"""What the bytes of an instruction say of its operands.

Core functions that decode prefixes, the ModR/M byte and what follows, and find out what an
instruction stores; they read code and data through the guest's page tables. It may import `paging`
and below. Begin with `encoding.decode_operand`; criteria over the data ask `stores`.
"""
