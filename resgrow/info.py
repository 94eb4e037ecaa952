"""What this installation consists of."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from resgrow._load import _C


def processor() -> str:
    """The processor's name; Linux keeps it in /proc/cpuinfo only."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions that a result depends on, and the processor it was measured on."""
    return {
        "resgrow": importlib.metadata.version("resgrow"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler": str(_C.build_info()["compiler"]),
        "instruction set": str(_C.cpu_isa()),
        "processor": processor(),
        "platform": platform.platform(),
    }


def cuda_architectures(build: dict[str, object]) -> str:
    """Compiled CUDA architectures, or why there are none."""
    architectures = build.get("cuda_architectures")
    if isinstance(architectures, (list, tuple)) and architectures:
        return ", ".join(str(name) for name in architectures)
    if torch.version.cuda is None:
        return "none: this torch is built without CUDA"
    return "none: this build of resgrow holds CPU kernels only"


def report() -> dict[str, str]:
    """Rows of ``resgrow info``."""
    build = dict(_C.build_info())
    rows = versions()
    rows["instruction set"] = (
        f"{_C.cpu_isa()} in use; compiled: {', '.join(build['compiled_isas'])}; "
        f"usable here: {', '.join(build['usable_isas'])}"
    )
    rows["CUDA architectures"] = cuda_architectures(build)
    openmp = "with" if build["openmp"] else "without"
    rows["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} processors, {openmp} OpenMP"
    return rows
