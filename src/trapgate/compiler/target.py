"""What machine code is made for."""

import platform
import sys

IS_LINUX_X86_64 = sys.platform == "linux" and platform.machine() == "x86_64"
"""Here object files are linked by `elf`; elsewhere LLVM links them at each start."""

TRIPLE = "x86_64-unknown-linux-gnu"
PROCESSOR = "x86-64"
"""LLVM's name of the oldest processor: code for the very host is no faster."""
