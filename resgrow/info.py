"""What this installation consists of."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from resgrow._load import _C, _C_cuda


def processor() -> str:
    """The processor's name; Linux keeps it in /proc/cpuinfo only."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """What a result was measured on: the GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu"


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


def cuda_kernels() -> str:
    """The toolkit that built the CUDA kernels and their architectures, or why there are none."""
    if _C_cuda is not None:
        build = _C_cuda.build_info()
        return f"{', '.join(build['architectures'])}; by CUDA {build['toolkit']}"
    if torch.version.cuda is None:
        return "none: this torch is built without CUDA"
    return "none: built without; set CUDA_HOME and build again with RESGROW_CUDA=1"


def cuda_devices() -> str:
    """The visible devices with name and compute capability, or why there are none."""
    if torch.version.cuda is None:
        return "none: this torch is built without CUDA"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return f"none: {str(error).partition('. ')[0]}"
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return ", ".join(f"cuda:{i} {d.name} ({d.major}.{d.minor})" for i, d in enumerate(devices))


def report() -> dict[str, str]:
    """Rows of ``resgrow info``."""
    build = dict(_C.build_info())
    rows = versions()
    rows["instruction set"] = (
        f"{_C.cpu_isa()} in use; compiled: {', '.join(build['compiled_isas'])}; "
        f"usable here: {', '.join(build['usable_isas'])}"
    )
    rows["CUDA kernels"] = cuda_kernels()
    rows["CUDA devices"] = cuda_devices()
    openmp = "with" if build["openmp"] else "without"
    rows["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} processors, {openmp} OpenMP"
    return rows
