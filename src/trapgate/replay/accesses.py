"""What exits are about, as Polars expressions over a trace's columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trapgate.trace.frames import polars

if TYPE_CHECKING:
    from polars import Expr


def word() -> Expr:
    """The host's word for an exit; our own reason where there is none."""
    pl = polars()
    found: Expr = pl.coalesce(
        pl.col("exit_reason").cast(pl.String), pl.col("reason").cast(pl.String)
    )
    return found


def qualification() -> Expr:
    """The exit's qualification, or EXITINFO1; 0 where it is not told."""
    told: Expr = polars().col("qualification").fill_null(0)
    return told


def is_port() -> Expr:
    """Whether an exit is of IN, OUT and their kin."""
    return _is("IO_INSTRUCTION", "io", "EXIT_IOIO")


def is_msr() -> Expr:
    """Whether an exit is of RDMSR or WRMSR."""
    return _is("MSR_READ", "MSR_WRITE", "msr", "EXIT_MSR")


def is_msr_write() -> Expr:
    """Whether an exit of those is of WRMSR; AMD's EXITINFO1 says it."""
    written: Expr = (word() == "MSR_WRITE") | (_is("msr", "EXIT_MSR") & (qualification() % 2 == 1))
    return written


def port_size() -> Expr:
    """How many ports an access spans (SDM, "Exit Qualification for I/O Instructions"; APM,
    "IOIO Intercept").
    """
    pl = polars()
    told = qualification()
    size: Expr = pl.when(word() == "IO_INSTRUCTION").then(told % 8 + 1).otherwise(told // 16 % 8)
    return size.clip(1, 4)


def register() -> Expr:
    """`MOV to CR3`, `CLTS` and so on of an exit of a control register's; else null."""
    pl = polars()
    kind, number = qualification() // 16 % 4, qualification() % 16
    shown: Expr = (
        pl.when(word() != "CR_ACCESS").then(None)
        .when(kind == 0).then(pl.format("MOV to CR{}", number))
        .when(kind == 1).then(pl.format("MOV from CR{}", number))
        .when(kind == 2).then(pl.lit("CLTS"))
        .otherwise(pl.lit("LMSW"))
    )  # fmt: skip
    return shown


def writes_register(number: int) -> Expr:
    """Whether an exit is of a write to that control register."""
    mine = _is(f"write_cr{number}", f"EXIT_WRITE_CR{number}") | (
        register() == f"MOV to CR{number}"
    ).fill_null(value=False)
    if number == 0:
        mine = mine | _is("cr0_sel_write", "EXIT_CR0_SEL_WRITE")
        mine = mine | register().is_in(["CLTS", "LMSW"]).fill_null(value=False)
    return mine


def detail() -> Expr:
    """What the exit is about, in words: a register, a page of some rights; or null.

    Ports and MSRs are not among them: their numbers are `operand`.
    """
    pl = polars()
    access = pl.col("access").cast(pl.String)
    shown: Expr = pl.when(word() == "CR_ACCESS").then(register()).otherwise(access)
    return shown


def within(value: Expr, ranges: Any, size: Expr | None = None) -> Expr:
    """Whether a value (and those after it, `size` in all) meets one of the stretches."""
    pl = polars()
    last = value if size is None else value + size - 1
    met: Expr = pl.lit(value=False)
    for low, high in ranges:
        met = met | ((last >= low) & (value <= high))
    return met


def _is(*words: str) -> Expr:
    found: Expr = word().is_in(list(words))
    return found
