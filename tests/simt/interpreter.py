"""Runs the CUDA glue and kernels of the ``resgrow`` operators on the host's tensors, interpreted."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

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
