"""Compiled functions as functions of Python's own: no library stands between.

Machine code takes its arguments as CPython hands them to built-in functions
(`METH_FASTCALL`), looks at them, and makes the result. It has no address of anything
outside, so what it needs of CPython and NumPy is in a table, the function's `self`.
`python_export` makes that code.
"""

import ctypes
import functools
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

FUNCTIONS = (
    "PyLong_AsLongLong",
    "PyLong_FromLongLong",
    "PyObject_IsTrue",
    "PyBool_FromLong",
    "PyTuple_New",
    "PyTuple_SetItem",
    "PyErr_Occurred",
    "PyErr_SetString",
    "Py_IncRef",
)
OBJECTS = {"TypeError": TypeError, "ndarray": np.ndarray, "int64": np.dtype(np.int64), "None": None}
"""What compiled code needs of CPython and NumPy, in the order of the table."""

TABLE = bytes.__basicsize__ - 1
"""Where a bytes object has its bytes."""
HEAD = object.__basicsize__
"""How many bytes all objects begin with; the last eight are their type."""
LAYOUT = TABLE, HEAD
"""What compiled code knows of the Python that it is for: free-threaded builds have others."""

_FASTCALL = 0x80


class _Definition(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


@functools.cache
def _table() -> bytes:
    addresses = [
        ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value for name in FUNCTIONS
    ]
    objects = map(id, OBJECTS.values())
    return struct.pack(f"{len(FUNCTIONS) + len(OBJECTS)}Q", *addresses, *objects)


def built_in(name: str, address: int) -> Callable[..., Any]:
    """The function of Python's whose machine code, made by `python_export`, is at `address`."""
    definition = _Definition(name.encode(), address, _FASTCALL, None)
    # Functions look at it when they die, which may be after all modules have at the process's end.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(definition))
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p]
    made: Callable[..., Any] = make(ctypes.addressof(definition), _table(), None)
    return made
