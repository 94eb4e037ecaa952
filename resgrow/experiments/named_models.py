"""What commands can be given as MODEL: names, folders, and functions of other packages."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import resgrow.nn
from resgrow._errors import InputError
from resgrow.surgery import storage

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """A model and the shape of one of its inputs, without the batch; None where it is not known.

    ``drawn``: its weights are random, so that zeros among them say nothing.
    """

    model: nn.Module
    shape: Shape | None
    drawn: bool = False


def _resnet(depth: int) -> Callable[[], Subject]:
    return lambda: Subject(resgrow.nn.resnet(depth), (3, 32, 32), True)


BUILT_IN: dict[str, Callable[[], Subject]] = {
    "resnet8": _resnet(8),
    "resnet20": _resnet(20),
    "resnet56": _resnet(56),
    "lenet5": lambda: Subject(resgrow.nn.lenet5(), (1, 28, 28), True),
}


def find(command: str, name: str) -> Subject:
    """The model that ``name`` means; ``command`` begins the messages.

    Raises:
        InputError: nothing is known under that name, or it is no model.
        FileNotFoundError: a folder without a stored model.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if name.startswith("torchvision:"):
        return Subject(_torchvision(command, name.partition(":")[2]), (3, 224, 224), True)
    if Path(name).is_dir():
        return Subject(_stored(name), None)
    if ":" in name:
        return Subject(_imported(command, name), None)
    raise InputError(
        f"{command}: the model must be {', '.join(BUILT_IN)}, torchvision:NAME, package.module:function or a folder "
        f"written by resgrow.save (got {name!r}); check the name"
    )


def _stored(folder: str) -> nn.Module:
    try:
        return storage.load(folder)
    except ValueError as error:
        raise InputError(str(error)) from error


def _torchvision(command: str, name: str) -> nn.Module:
    try:
        models: Any = importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise InputError(
            f"{command}: torchvision must be importable for torchvision:{name} (got {error}); install the one that "
            "belongs to this torch"
        ) from error
    try:
        return models.get_model(name, weights=None)
    except ValueError as error:
        raise InputError(
            f"{command}: torchvision must have the model (got {name!r}); see torchvision.models.list_models()"
        ) from error


def _imported(command: str, path: str) -> nn.Module:
    """``package.module:function``, called without arguments; also from the current folder, as with ``python -m``."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    where, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(where)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{command}: package.module:function must be importable (got {path!r}: {error})") from error
    if not isinstance(found, nn.Module):
        found = found() if callable(found) else found
    if not isinstance(found, nn.Module):
        raise InputError(
            f"{command}: {path} must be a model, or give one when called without arguments (got {type(found).__name__})"
        )
    return found
