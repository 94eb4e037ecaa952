"""Measurements kept between runs: one JSON file for each processor, GPU, instruction set, torch and resgrow version."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from resgrow._files import write_atomic
from resgrow._load import _C
from resgrow.info import processor


def recall(key: str, device: torch.device, count: int) -> list[float] | None:
    """The ``count`` seconds stored under ``key`` for the device, or None where there are none that make sense."""
    seconds = _stored(device).get(key)
    if not isinstance(seconds, list) or len(seconds) != count:
        return None
    good = all(isinstance(s, int | float) and math.isfinite(s) and s > 0 for s in seconds)
    return [float(s) for s in seconds] if good else None


def remember(key: str, device: torch.device, seconds: Sequence[float]) -> None:
    """Store seconds under ``key`` for the device; without effect where nothing can be written.

    The file is read again before it is replaced. Of two processes that write at the same moment one may lose its
    newest measurement, never the file.
    """
    with suppress(OSError, RuntimeError):
        path = _path(device)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": _machine(device), "seconds": {**_stored(device), key: list(seconds)}}
        write_atomic(path, json.dumps(content, indent=1))


def _stored(device: torch.device) -> dict[str, Any]:
    try:
        content = json.loads(_path(device).read_bytes())
    except (OSError, RuntimeError, ValueError, RecursionError):  # RuntimeError: there is no home folder
        return {}
    seconds = content.get("seconds") if isinstance(content, dict) else None
    return seconds if isinstance(seconds, dict) else {}


def _path(device: torch.device) -> Path:
    digest = hashlib.sha256(json.dumps(_machine(device)).encode()).hexdigest()
    return _folder() / f"speed-{digest[:12]}.json"


def _folder() -> Path:
    if folder := os.environ.get("RESGROW_CACHE_DIR"):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "resgrow"
    return Path.home() / ".cache" / "resgrow"


def _machine(device: torch.device) -> dict[str, str]:
    from resgrow import __version__  # not yet there while the package is being imported

    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return gpu | {
        "processor": processor(),
        "instruction set": _C.cpu_isa(),
        "torch": torch.__version__,
        "resgrow": __version__,
    }
