"""The logical processor: VM entry, the running guest, VM exit.

`processor` turns the reason why the engine stopped into a VM exit. Instructions that need a
complete decoder, or checks that the engine does not make, are executed by `decoded`, `stepping` and
`table_writes` on the state in `logical`. It may import `engine` and below. Begin with
`processor.Processor.vmlaunch`.
"""
