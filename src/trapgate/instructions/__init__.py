"""What sensitive instructions do, and which of them exit.

`intercepts` has a function for each kind of exit, `effects` what happens where none comes,
`task_switch` the checks of a hardware task switch. It may import `events` and below. Begin with
`intercepts`.
"""
