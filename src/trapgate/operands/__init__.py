"""An instruction's operands, decoded from its bytes.

Core functions decode prefixes, the ModR/M byte and what follows, and find out what an instruction
stores; they read code and data through the guest's page tables. It may import `paging` and below.
Begin with `encoding.decode_operand`, or with `stores` for the data that criteria are about.
"""
