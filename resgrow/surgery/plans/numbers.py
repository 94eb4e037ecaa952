"""Plain attributes of modules: sizes, and the numbers and flags beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

# What every module has is not its own to say.
_COMMON = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, type(None))
# Longer ones are tables rather than sizes.
_LONGEST = 64


class Misfit(ValueError):
    """Why a module cannot become the planned one; what was found, for a message."""


def numbers(module: nn.Module) -> dict[str, Any]:
    """By name: attributes that are bool, int, finite float or None, or short tuples and lists (as lists) of these."""
    return {
        name: list(value) if isinstance(value, (tuple, list)) else value
        for name, value in vars(module).items()
        if name not in _COMMON and is_number(value)
    }


def is_number(value: Any) -> bool:
    if type(value) in (tuple, list):
        return len(value) <= _LONGEST and all(map(_is_plain, value))
    return _is_plain(value)


def differing(module: nn.Module, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be set, by name, for a module to have these numbers.

    Nothing but attributes that are there with the same type is ever set. Private ones that are not are left out: they
    may be what a forward pass has left, or belong to another version of the library.

    Raises:
        Misfit: an attribute is missing or of another type.
    """
    result = {}
    for name, value in wanted.items():
        old = vars(module).get(name, _MISSING)
        if name in _COMMON or not _same_type(old, value):
            if name.startswith("_"):
                continue
            found = "no such attribute" if old is _MISSING else f"a {type(old).__name__}"
            raise Misfit(f"{found} for {name}, which was {value!r}")
        new = type(old)(value) if isinstance(value, list) else value
        if old != new or repr(old) != repr(new):
            result[name] = new
    return result


_MISSING = object()


def _same_type(old: Any, value: Any) -> bool:
    if isinstance(value, list):
        return type(old) in (tuple, list) and all(type(item) in _PLAIN for item in old)
    return type(old) is type(value)


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN and (type(value) is not float or math.isfinite(value))
