"""Parameters that are to be left alone, by name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn


def excluded_parameters(model: nn.Module, exclude: Sequence[str], op: str) -> set[str]:
    """Names of the parameters that names or fnmatch patterns of parameters or modules stand for.

    Raises:
        ValueError: one that matches nothing.
        TypeError: one string.
    """
    if isinstance(exclude, str):
        raise TypeError(f"{op}: exclude must be a sequence of names (got {exclude!r}); write exclude=({exclude!r},)")
    parameters = [name for name, _ in model.named_parameters()]
    modules = [name for name, _ in model.named_modules() if name]
    excluded: set[str] = set()
    for pattern in exclude:
        matching = tuple(f"{name}." for name in modules if fnmatchcase(name, pattern))
        hits = {name for name in parameters if fnmatchcase(name, pattern)}
        if not hits and not matching:
            raise ValueError(
                f"{op}: exclude must match a parameter or module (got {pattern!r}); names are those of "
                "model.named_parameters() and model.named_modules()"
            )
        excluded |= hits | {name for name in parameters if name.startswith(matching)}
    return excluded
