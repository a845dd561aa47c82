"""One event on its way: arbitration, delivery through IDT or IVT, exit information, the journal.

`delivery.raise_event` asks `decision`, and either fills in a VM exit (`exits`) or goes through the
guest's tables (`idt`, `ivt`, `frame`, `descriptors`); nested faults are combined there. It may
import `decision` and below. Begin with `delivery`.
"""
