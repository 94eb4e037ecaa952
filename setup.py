"""Builds resgrow._C: operator schemas, CPU glue and one kernel unit per instruction set; and resgrow._C_cuda, the CUDA
kernels, where torch is a CUDA build and a toolkit of its major version is found.

Install with ``pip install --no-build-isolation .`` into an environment that has torch.

Environment variables
    CXX                    the C++ compiler (default: c++ or g++)
    MAX_JOBS               parallel compile jobs (ninja's default: one per core)
    RESGROW_CUDA           1: CUDA kernels, or an error that says what is missing; 0: none (default: where possible)
    CUDA_HOME              the CUDA toolkit (default: /usr/local/cuda, else the one of the nvcc on PATH)
    TORCH_CUDA_ARCH_LIST   architectures, as torch writes them (default: "8.0;9.0+PTX")
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from setuptools import setup

ROOT = Path(__file__).resolve().parent
CUDA_LIBRARY = "resgrow._C_cuda"
sys.path.insert(0, str(ROOT))  # build front ends leave it out

import setup_cuda  # noqa: E402


def stop(message: str) -> NoReturn:
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

    sources = ["csrc/schema.cpp", "csrc/module.cpp", "csrc/direct.cpp"]
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


def cuda_plan() -> setup_cuda.Plan:
    import torch

    def native() -> list[tuple[int, int]]:
        return [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]

    try:
        return setup_cuda.decide(torch.version.cuda, os.environ, native)
    except setup_cuda.Impossible as error:
        stop(str(error))


def cuda_extension(plan: setup_cuda.Plan):
    """The glue; the kernels' objects are linked in when they are there."""
    import pybind11
    from torch.utils.cpp_extension import CppExtension

    # Without a runtime in the toolkit, the one that c10_cuda is linked with serves.
    runtime = plan.toolkit.libraries
    return CppExtension(
        CUDA_LIBRARY,
        sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cuda/*.cpp")),
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include(), str(plan.toolkit.include)],
        define_macros=[
            ("RESGROW_CUDA_TOOLKIT", f'"{plan.toolkit.version}"'),
            ("RESGROW_CUDA_ARCHITECTURES", f'"{" ".join(plan.architectures)}"'),
        ],
        library_dirs=[str(runtime)] if runtime else [],
        libraries=["c10_cuda", "cudart"] if runtime else ["c10_cuda"],
        extra_compile_args=["-O2", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"],
    )


def build_extension_class(plan: setup_cuda.Plan):
    import torch
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        """nvcc compiles the CUDA kernels beside what torch's build helper does."""

        def finalize_options(self) -> None:
            super().finalize_options()
            # One folder for every kind of build; an editable one would begin in an empty temporary folder each time.
            self.build_temp = str(ROOT / "build" / f"{sys.implementation.cache_tag}-torch-{torch.__version__}")

        def build_extensions(self) -> None:
            with ThreadPoolExecutor(1) as beside:
                if plan.toolkit:
                    folder = Path(self.build_temp) / "cuda"
                    sources = sorted(ROOT.glob("csrc/cuda/kernels/*.cu"))
                    self.kernels = beside.submit(
                        setup_cuda.compile_kernels, plan, sources, ROOT / "csrc", folder, os.environ
                    )
                super().build_extensions()

        def build_extension(self, ext) -> None:
            if ext.name == CUDA_LIBRARY:
                ext.extra_objects = self.cuda_objects()
            super().build_extension(ext)

        def cuda_objects(self) -> list[str]:
            try:
                objects = self.kernels.result()
            except setup_cuda.Impossible as error:
                stop(str(error))
            report = ROOT / "build" / "ptxas.txt"
            report.parent.mkdir(exist_ok=True)
            logs = {path.stem: path.with_name(f"{path.name}.log").read_text(encoding="utf-8") for path in objects}
            report.write_text(setup_cuda.ptxas_report(plan, logs), encoding="utf-8")
            return [str(path) for path in objects]

    return Build.with_options(use_ninja=True)


def version(plan: setup_cuda.Plan | None) -> str:
    """The package's, with a local label for what is inside, as torch's own wheels have: 0.1.0+cu130."""
    text = (ROOT / "resgrow" / "__init__.py").read_text(encoding="utf-8")
    plain = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]
    return f"{plain}+cu{plan.toolkit.version.replace('.', '')}" if plan and plan.toolkit else plain


# Other metadata commands (`egg_info`, `sdist`) need neither compiler nor torch. What a build says of itself must not
# depend on the command that asks: `dist_info` is part of it.
BUILDS = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}
DESCRIBES = {"dist_info"}

if BUILDS & set(sys.argv[1:]):
    require_compiler()
    for needed in ("torch", "pybind11", "ninja"):
        require(needed)
    import ninja

    # An environment that is not activated has it beside its Python, not on the path.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), ninja.BIN_DIR])
    plan = cuda_plan()
    print(f"resgrow: {'with' if plan.toolkit else 'without'} CUDA kernels: {plan.why}", flush=True)
    if plan.toolkit:
        os.environ["CUDA_HOME"] = str(plan.toolkit.home)  # torch's build helper would tell of its own guess
    extensions = [extension(), *([cuda_extension(plan)] if plan.toolkit else [])]
    setup(version=version(plan), ext_modules=extensions, cmdclass={"build_ext": build_extension_class(plan)})
elif DESCRIBES & set(sys.argv[1:]):
    require("torch")
    setup(version=version(cuda_plan()))
else:
    setup(version=version(None))
