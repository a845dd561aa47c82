"""What sensitive instructions do, and which of them exit.

`intercepts` has a function for each kind of exit, `effects` what an instruction does if it does not
exit, `task_switch` the checks of a hardware task switch. It may import `events` and below. Begin
with `intercepts`.
"""
