"""gdb's remote protocol for running machines. `debuggee` is the VMM that stops a machine.

`server` listens, `packets` splits the stream into packets, and `debugger` answers them with the
help of `target` (registers and their description), `threads` and `commands` (`monitor`). A guest is
stopped by `catches`, before an event takes effect, or by `stops`. For reverse execution `past`
keeps snapshots, and `reverse` returns to them. It may import `postmortem`, `vmm` and below. Begin
with `debugger`.
"""

from trapgate.debug.gdb.debugger import Debugger
from trapgate.debug.gdb.server import Server, address_of

__all__ = ["Debugger", "Server", "address_of"]
