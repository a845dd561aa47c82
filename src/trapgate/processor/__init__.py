"""The logical processor: VM entry, the guest that runs, VM exit.

`processor` turns what stopped the engine into VM exits; instructions that need a whole decoder or
checks of their own are executed by `decoded`, `stepping` and `table_writes` on what `logical`
holds. It imports `engine` and below. Begin with `processor.Processor.vmlaunch`.
"""
