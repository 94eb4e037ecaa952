"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces ``path`` by ``data`` in one step: readers see the old file or the new one.

    The bytes go to a temporary file in the same folder (a rename is atomic only within
    one file system), are flushed to disk and renamed. Raises OSError as ``open`` does;
    ``path`` is then as it was and no temporary file is left.
    """
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a run folder is meant to be read like any other.
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """``write_bytes_atomic`` for text, as UTF-8."""
    write_bytes_atomic(path, text.encode("utf-8"))
