"""Runs the CUDA glue and kernels of the ``resgrow`` operators on the host's tensors, interpreted."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import simt_build

import resgrow  # noqa: F401  (the operators' schemas)


@functools.cache
def library() -> ModuleType:
    """The interpreter with all kernels, built on first use; or the built one that RESGROW_SIMT_LIBRARY names."""
    if given := os.environ.get("RESGROW_SIMT_LIBRARY"):
        return simt_build.imported(Path(given))
    return simt_build.imported(simt_build.build())


@contextmanager
def installed() -> Iterator[ModuleType]:
    """Within it, operators on CPU tensors run the CUDA glue and its kernels in the interpreter."""
    library().install()
    try:
        yield library()
    finally:
        library().uninstall()


@contextmanager
def on_host() -> Iterator[None]:
    """Within ``installed()``: the CPU kernels for once, to compare with."""
    library().uninstall()
    try:
        yield
    finally:
        library().install()


class Line(NamedTuple):
    """What one line of a kernel asked of memory."""

    kernel: str
    place: str
    what: str  # "global read", "shared write", ...
    requests: int  # of warps
    taken: int  # sectors of 32 bytes of global memory; turns of 128 bytes of shared memory
    needed: int  # had all that was wanted lain side by side

    @property
    def efficiency(self) -> float:
        return self.needed / self.taken


@contextmanager
def traffic() -> Iterator[list[Line]]:
    """Within ``installed()``: the list is filled, at the end, with the lines of every kernel that ran in between."""
    lines: list[Line] = []
    library().take_traffic()
    library().set_traffic(True)
    try:
        yield lines
    finally:
        library().set_traffic(False)
    lines += [Line(*row) for row in library().take_traffic()]


def table(lines: list[Line]) -> list[str]:
    """Rows of text, the largest waste first."""
    ordered = sorted(lines, key=lambda line: line.needed - line.taken)
    rows = ["   asked   taken  needed  of it"]
    for line in ordered:
        counts = f"{line.requests:8} {line.taken:7} {line.needed:7} {line.efficiency:6.0%}"
        rows.append(f"{counts}  {line.what:14} {line.place}  {line.kernel}")
    return rows
