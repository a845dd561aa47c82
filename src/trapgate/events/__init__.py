"""The path of an event: arbitration, delivery through IDT or IVT, exit information, the journal.

`delivery.raise_event` asks `decision`, and either records a VM exit (`exits`) or goes through the
guest's tables (`idt`, `ivt`, `frame`, `descriptors`); it also combines nested faults. It may import
`decision`, `operands`, `paging`, `compiler` and `sdm`. Begin with `delivery`.
"""
