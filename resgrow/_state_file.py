"""A state of plain types and tensors in one safetensors file: what is no tensor is JSON in its header."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resgrow._files import write_atomic

_KEY = "resgrow-state"


def write_state(path: str | Path, state: Any) -> None:
    """Write ``state`` as a whole: nested dicts, lists and tuples of tensors, numbers, texts and None.

    Raises:
        TypeError: a value of another type.
        OSError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    head = json.dumps(_encode(state, tensors))
    write_atomic(path, safetensors.torch.save(tensors, {_KEY: head}))


def read_state(path: str | Path) -> Any:
    """What `write_state` wrote, equal in types, values and bits; tensors are on the CPU. Nothing is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or something else.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            head = (file.metadata() or {})[_KEY]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _decode(json.loads(head), tensors)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"read_state: {path} must be a whole file that write_state wrote (got {error!r})") from error


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for ``value``: numbers, texts and None as they are, everything else as ``{kind: content}``."""
    if isinstance(value, Tensor):
        # A copy: tensors that share storage are refused.
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is dict:
        return {"dict": [[_encode(key, tensors), _encode(entry, tensors)] for key, entry in value.items()]}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_encode(entry, tensors) for entry in value]}
    raise TypeError(
        "write_state: a state must consist of dicts, lists, tuples, tensors, numbers, texts and None (got "
        f"{type(value).__name__})"
    )


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    entries = [_decode(entry, tensors) for entry in content] if kind != "dict" else []
    if kind == "dict":
        return {_decode(key, tensors): _decode(entry, tensors) for key, entry in content}
    if kind not in ("list", "tuple"):
        raise ValueError(f"unknown kind {kind!r}")
    return entries if kind == "list" else tuple(entries)
