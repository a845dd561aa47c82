"""gdb's remote protocol for running machines, each with a VMM around its own (`debuggee`).

`server` listens, `packets` cuts the stream into packets, `target` has the registers and their
description, `threads` says who runs, `commands` answers `monitor`, `catches` knows what stops the
guest before it takes effect, `stops` whatever else stops it, `past` has its snapshots, `reverse`
goes back to them, and `debugger` answers the rest.
"""

from trapgate.debug.gdb.debugger import Debugger
from trapgate.debug.gdb.server import Server, address_of

__all__ = ["Debugger", "Server", "address_of"]
