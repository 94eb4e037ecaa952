"""Loads the native library, or says in one error why it cannot be."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch


def _load(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"resgrow.{name}")
    except ImportError as error:
        raise ImportError(
            f"resgrow: its native library {name} does not load with torch {torch.__version__} ({error}). "
            "It is built for one torch version and one Python: build it again where it runs, with "
            "`pip install --no-build-isolation .` in the source folder (add `-e` to import from that folder)."
        ) from error


_C = _load("_C")


def has_cuda_kernels() -> bool:
    """Whether this build of resgrow has kernels for tensors on GPUs."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("resgrow::block_sparse_conv2d", "CUDA"))
