"""Loads the native libraries, or says in one error why one cannot be."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import NoReturn

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


def _refuse_cuda() -> torch.library.Library:
    """Gives every operator an answer to CUDA tensors that names the remedy; the dispatcher's would list its keys.

    It holds as long as the result is kept.
    """

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise NotImplementedError(
            "resgrow: this build has no CUDA kernels (got a tensor on a GPU); move model and data to the CPU, or set "
            "CUDA_HOME to a CUDA toolkit and build again with `RESGROW_CUDA=1 pip install --no-build-isolation .` in "
            "the source folder"
        )

    library = torch.library.Library("resgrow", "IMPL", "CUDA")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("resgrow::"):
            library.impl(name, refuse)
    return library


_C = _load("_C")
_C_cuda = _load("_C_cuda") if importlib.util.find_spec("resgrow._C_cuda") else None
_without_cuda = None if _C_cuda else _refuse_cuda()


def has_cuda_kernels() -> bool:
    """Whether this build of resgrow has kernels for tensors on GPUs."""
    return _C_cuda is not None
