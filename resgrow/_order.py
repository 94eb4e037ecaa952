"""Two orders as one."""

from __future__ import annotations

from collections.abc import Iterable


def merged_order(first: Iterable[str], second: Iterable[str]) -> list[str]:
    """All names of both, each once: those of ``first`` in their order, and each other one behind its predecessor in
    ``second``."""
    names = list(first)
    known = set(names)
    at = 0
    for name in second:
        if name in known:
            at = names.index(name) + 1
        else:
            names.insert(at, name)
            known.add(name)
            at += 1
    return names
