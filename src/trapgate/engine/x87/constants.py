"""FLDPI and its like, whose constants the engine always rounds to nearest. Compiled only.

SDM, "FLD1/FLDL2T/FLDL2E/FLDPI/FLDLG2/FLDLN2/FLDZ": all but 0 and 1 are rounded as the control word
says.
"""

from trapgate.compiler.kinds import BOUND, INT64, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, peek8, peek64, poke64
from trapgate.engine.x87.registers import ROUNDING, TO_ZERO, register_of

_DOWN, _UP = 1, 2


@jit
def load(env: int, helper: int, is_greater: bool) -> None:
    """Push a constant by a helper; `is_greater`: rounding to nearest made it greater."""
    call(helper, (env,))
    rounding = peek8(env + ROUNDING)
    place = register_of(env, 0)
    if is_greater and rounding in (_DOWN, TO_ZERO):
        poke64(place, peek64(place) - 1)
    elif not is_greater and rounding == _UP:
        poke64(place, peek64(place) + 1)


@callback(VOID, INT64, BOUND)
def on_log_2_of_10(env: int, helper: int) -> None:
    """FLDL2T."""
    load(env, helper, False)


@callback(VOID, INT64, BOUND)
def on_log_2_of_e(env: int, helper: int) -> None:
    """FLDL2E."""
    load(env, helper, True)


@callback(VOID, INT64, BOUND)
def on_pi(env: int, helper: int) -> None:
    """FLDPI."""
    load(env, helper, True)


@callback(VOID, INT64, BOUND)
def on_log_10_of_2(env: int, helper: int) -> None:
    """FLDLG2."""
    load(env, helper, True)


@callback(VOID, INT64, BOUND)
def on_log_e_of_2(env: int, helper: int) -> None:
    """FLDLN2."""
    load(env, helper, True)


CONSTANTS = {
    "helper_fldl2t_ST0": on_log_2_of_10,
    "helper_fldl2e_ST0": on_log_2_of_e,
    "helper_fldpi_ST0": on_pi,
    "helper_fldlg2_ST0": on_log_10_of_2,
    "helper_fldln2_ST0": on_log_e_of_2,
}
"""The engine's helpers, and what calls them instead."""
