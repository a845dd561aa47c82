"""TOML files: read within bounds; what is wrong with one becomes the caller's error.

`wrong` makes that error from one line of words; it is a class of `errors` or alike, bound
to the path.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from trapgate.errors import TrapgateError, suggestion

MOST_BYTES = 4 << 20

# Python's reader needs memory that grows with the square of a dotted key's length.
_LONG_KEY = re.compile(r"""(?<![\w"'-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){32}""")

Wrong = Callable[[str], TrapgateError]


def read_toml(path: Path, wrong: Wrong) -> str:
    """The text of the file `path`; what cannot be read, or is too large, is `wrong`."""
    try:
        with path.open("rb") as file:
            read = file.read(MOST_BYTES + 1)
        text = read.decode()
    except OSError as error:
        raise wrong(f"cannot be read ({error.strerror}); give an existing TOML file") from None
    except UnicodeDecodeError:
        raise wrong("is not UTF-8 text; give a TOML file") from None
    if len(read) > MOST_BYTES:
        raise wrong("is larger than 4 MiB; give a TOML file that a person could have written")
    return text


def parse_toml(text: str, wrong: Wrong) -> dict[str, Any]:
    """The document in `text`; what is not TOML is `wrong`."""
    if _LONG_KEY.search(text):
        raise wrong("has a key of more than 32 parts; correct that line")
    try:
        # Most that import this module read no file, and tomllib's expressions take time to compile.
        import tomllib

        return tomllib.loads(text)
    except (RecursionError, ValueError) as error:
        raise wrong(f"is not TOML: {error}; correct that line") from None


def demand_known(
    table: Mapping[str, object], known: Iterable[str], wrong: Callable[[str, str], TrapgateError]
) -> None:
    """Every key of `table` is one of `known`, or `wrong` gets words and the first that is not."""
    names = tuple(known)
    for key in table:
        if key not in names:
            raise wrong(f"unknown key; {suggestion(key, names)}", key)
