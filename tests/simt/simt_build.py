"""Builds the interpreter with every CUDA kernel and its glue into one extension for the host.

Kernels (``csrc/cuda/kernels/*.cu``) are compiled as C++ against ``tests/simt/simt/device.h``, by the compiler with its
thread sanitizer: its calls at each access of memory go to the interpreter, not to the sanitizer's runtime. Glue
(``csrc/cuda/*.cpp``) is compiled against the torch in use. ninja compiles what has changed, in ``build/simt-*``.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CUDA = ROOT / "csrc" / "cuda"
# The import shell of the real library has a PYBIND11_MODULE of its own.
NOT_GLUE = {"module.cpp"}

# -O1 and -g1: compiled in seconds, and a finding names its line. Without the splitting of aggregates a vector's access
# stays one access. Nothing is shared with another library of this kind in the process (mutated kernels).
COMMON_FLAGS = "-g1 -Wall -Wno-unknown-pragmas -DRESGROW_SIMT -fvisibility=hidden -fno-gnu-unique"
KERNEL_FLAGS = (
    f"-x c++ -std=c++17 -O1 -fno-tree-sra {COMMON_FLAGS} -Wno-psabi "
    "-fsanitize=thread,alignment,bounds,shift,integer-divide-by-zero --param=tsan-instrument-func-entry-exit=0"
)
MACHINE_FLAGS = f"-std=c++17 -O2 {COMMON_FLAGS}"


class NoCompilerError(RuntimeError):
    """There is nothing to compile with."""


def compiler() -> str:
    wanted = os.environ.get("CXX", "").split()
    for name in wanted[:1] or ["g++", "c++"]:
        if found := shutil.which(name):
            return found
    raise NoCompilerError("the SIMT interpreter needs a C++ compiler (g++)")


def torch_flags() -> str:
    """What torch's own builder of extensions passes, found in it rather than guessed: it changes with torch."""
    import pybind11
    import torch
    from torch.utils import cpp_extension

    standards = re.findall(r"-std=(c\+\+\d+)", Path(cpp_extension.__file__).read_text())
    includes = [*cpp_extension.include_paths(), pybind11.get_include(), sysconfig.get_paths()["include"]]
    return " ".join(
        [
            f"-std={max(standards)} -O1 {COMMON_FLAGS}",
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
            *(f"-isystem {path}" for path in includes),
        ]
    )


def link_flags() -> str:
    from torch.utils import cpp_extension

    paths = cpp_extension.library_paths()
    return " ".join([*(f"-L{p} -Wl,-rpath,{p}" for p in paths), "-lc10 -ltorch_cpu -ltorch -ltorch_python"])


def sources() -> dict[str, list[Path]]:
    """Every source by the rule that compiles it."""
    machine = sorted((HERE / "simt").glob("*.cpp"))
    with_torch = [p for p in machine if "torch/" in p.read_text() or "c10/" in p.read_text()]
    return {
        "kernel": [*sorted((CUDA / "kernels").glob("*.cu")), *sorted((HERE / "kernels").glob("*.cu"))],
        "machine": [p for p in machine if p not in with_torch],
        "glue": [
            *with_torch,
            *(p for p in sorted(CUDA.glob("*.cpp")) if p.name not in NOT_GLUE),
            *sorted((HERE / "kernels").glob("*.cpp")),
        ],
    }


def object_name(rule: str, source: Path) -> str:
    return f"{rule}-{source.parent.name}-{source.stem}.o"


def ninja_file(
    name: str, by_rule: dict[str, list[Path]], includes: Sequence[Path], other_objects: Sequence[Path] = ()
) -> str:
    """Compiles the sources by their rules and links them, with objects that are there already, into one extension."""
    paths = " ".join(f"-I{p}" for p in includes)
    flags = {"kernel": KERNEL_FLAGS, "machine": MACHINE_FLAGS, "glue": f"{torch_flags()} -DTORCH_EXTENSION_NAME=_simt"}
    lines = ["ninja_required_version = 1.5", f"cxx = {compiler()}"]
    for rule, own in flags.items():
        lines += [f"rule {rule}", f"  command = $cxx -MMD -MF $out.d -fPIC {own} {paths} -c $in -o $out"]
        lines += ["  depfile = $out.d", "  deps = gcc", f"  description = {rule} $in"]
    lines += ["rule link", f"  command = $cxx -shared $in {link_flags()} -o $out", "  description = link $out"]
    objects = [str(path) for path in other_objects]
    for rule, files in by_rule.items():
        for path in files:
            objects.append(object_name(rule, path))
            lines.append(f"build {objects[-1]}: {rule} {path}")
    lines += [f"build {name}.so: link {' '.join(objects)}", f"default {name}.so"]
    return "\n".join(lines) + "\n"


def ninja(folder: Path) -> None:
    program = shutil.which("ninja", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise NoCompilerError("the SIMT interpreter is built with ninja: pip install ninja")
    jobs = os.environ.get("MAX_JOBS")
    done = subprocess.run(
        [program, "-C", str(folder), *(["-j", jobs] if jobs else [])], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"the SIMT interpreter does not build:\n{done.stdout[-8000:]}{done.stderr[-4000:]}")


def build_folder() -> Path:
    """One per torch: objects of different ones do not mix."""
    import torch

    key = hashlib.sha256(f"{sys.version}{torch.__version__}{torch.__file__}".encode()).hexdigest()[:8]
    return ROOT / "build" / f"simt-{key}"


@functools.cache
def failure() -> str:
    """Builds, and returns what went wrong: once, however many tests ask."""
    try:
        _build()
    except NoCompilerError:
        raise
    except RuntimeError as error:
        return str(error)
    return ""


def build() -> Path:
    """The extension, brought up to date."""
    if message := failure():
        raise RuntimeError(message)
    return build_folder() / "_simt.so"


def _build() -> None:
    folder = build_folder()
    folder.mkdir(parents=True, exist_ok=True)
    text = ninja_file("_simt", sources(), [HERE, ROOT / "csrc"])
    plan = folder / "build.ninja"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes may run tests at once
        if not plan.exists() or plan.read_text() != text:
            plan.write_text(text)
        ninja(folder)


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_simt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
