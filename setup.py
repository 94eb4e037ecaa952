"""Builds resgrow._C: operator schemas, CPU glue and one kernel unit per instruction set.

Install with ``pip install --no-build-isolation .`` into an environment that has torch.

Environment variables
    CXX        the C++ compiler (default: c++ or g++)
    MAX_JOBS   parallel compile jobs (ninja's default: one per core)
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


def stop(message: str) -> None:
    """End the build with one readable error instead of a compiler's traceback."""
    sys.exit(f"\nresgrow: cannot build: {message}\n")


def require_compiler() -> None:
    wanted = os.environ.get("CXX", "").split()
    candidates = wanted[:1] or ["c++", "g++"]
    if not any(shutil.which(name) for name in candidates):
        stop(
            f"no C++ compiler found (looked for {', '.join(candidates)}). Install one "
            "(Debian/Ubuntu: apt-get install g++ make; Fedora: dnf install gcc-c++ make), "
            "or point CXX at yours, then run the same command again."
        )


def require(module: str) -> None:
    try:
        __import__(module)
    except ImportError as error:
        stop(
            f"{module} is not importable here ({error}). Run `pip install torch ninja pybind11 setuptools wheel` "
            "first and build with `pip install --no-build-isolation .`."
        )


def extension():
    import pybind11
    from torch.utils.cpp_extension import CppExtension

    sources = ["csrc/schema.cpp", "csrc/module.cpp"]
    for folder in ("autograd", "cpu"):
        sources += sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(f"csrc/{folder}/*.cpp"))
    # One unit per instruction set. Each sets its own target by pragma and is chosen
    # at run time, so no unit is ever compiled for the build host's own processor.
    units = ["base"]
    if platform.machine().lower() in ("x86_64", "amd64"):
        units += ["avx2", "avx512"]
    sources += [f"csrc/cpu/kernels/isa_{unit}.cpp" for unit in units]
    return CppExtension(
        "resgrow._C",
        sources,
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
        define_macros=[(f"RESGROW_HAVE_{unit.upper()}", "1") for unit in units],
        # -O3: gcc 12 does not vectorise at -O2. -fopenmp: without it at::parallel_for
        # is a plain loop. No -std: torch's own headers decide it.
        extra_compile_args=["-O3", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"],
        extra_link_args=["-fopenmp"],
    )


def build_extension_class():
    from torch.utils.cpp_extension import BuildExtension

    return BuildExtension.with_options(use_ninja=True)


# Metadata commands (`egg_info`, `dist_info`, `sdist`) need neither compiler nor torch.
BUILDS = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}

if BUILDS & set(sys.argv[1:]):
    require_compiler()
    for needed in ("torch", "pybind11", "ninja"):
        require(needed)
    setup(ext_modules=[extension()], cmdclass={"build_ext": build_extension_class()})
else:
    setup()
