"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trapgate.trace.schema import TraceError


@contextmanager
def draft(path: Path, what: str) -> Iterator[Path]:
    """A path beside `path` to write to; it takes `path`'s name if the block ends well.

    Otherwise what was written is removed, and an older file stays as it was. `what` names
    the content in complaints.

    Raises: TraceError if `path` cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file():
            raise OSError(None, "it exists and is not a regular file")  # noqa: TRY301 (as a disk's)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error.strerror or str(error)
        problem = f"cannot write the {what} ({reason})"
        raise TraceError(str(path), problem, "give a file in a writable folder with room") from None
    finally:
        temporary.unlink(missing_ok=True)
