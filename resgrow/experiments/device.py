"""The device that a command is told to use."""

from __future__ import annotations

import torch

from resgrow._errors import InputError


def require_device(command: str, name: str) -> None:
    """Raises InputError unless ``name`` is the CPU or a GPU that torch sees."""
    try:
        device = torch.device(name)
        known = device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count())
    except RuntimeError:
        known = False
    if not known:
        raise InputError(
            f"{command}: --device must be cpu, or cuda or cuda:N for a GPU that torch sees (got {name!r}, and torch "
            f"sees {torch.cuda.device_count()} of them); choose another, or see `resgrow info`"
        )
