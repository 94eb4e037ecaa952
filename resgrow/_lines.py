"""JSON lines: one strict JSON object per line, each written by one call: a kill leaves at most the last one cut off."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """Strict JSON: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def line(event: Mapping[str, Any]) -> bytes:
    """One event as a line of UTF-8. Raises TypeError for values that JSON does not have."""
    return (json.dumps(plain(event), allow_nan=False) + "\n").encode("utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of ``path``, in order, but for a last line that is still being written or was cut off by a kill.

    Raises:
        ValueError: a line that is not a JSON object.
        OSError: the file cannot be read.
    """
    *whole, _ = path.read_bytes().split(b"\n")
    events = []
    for number, text in enumerate(whole, start=1):
        event = _object(text)
        if event is None:
            raise ValueError(f"every line must be a JSON object (got {text[:40]!r} in line {number} of {path})")
        events.append(event)
    return events


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(text)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
