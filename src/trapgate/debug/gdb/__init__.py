"""gdb's remote protocol for running machines, each with a VMM around its own (`debuggee`).

`server` listens, `packets` cuts the stream into packets, and `debugger` answers them: with
`target` (registers and their description), `threads` and `commands` (`monitor`). A guest is
stopped by `catches`, before an event takes effect, or by `stops`. For reverse execution `past` has
the snapshots, and `reverse` goes back to them. It imports `postmortem`, `vmm` and below. Begin with
`debugger`.
"""

from trapgate.debug.gdb.debugger import Debugger
from trapgate.debug.gdb.server import Server, address_of

__all__ = ["Debugger", "Server", "address_of"]
