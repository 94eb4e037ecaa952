"""Compiles what of the native code needs no torch, with the test programs of this folder, for any compiler."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ["-std=c++17", "-Wall", "-Wno-unknown-pragmas", "-Wno-psabi"]
INCLUDES = [f"-I{HERE / 'shim'}", f"-I{CSRC}", f"-I{HERE}"]
# Units of the instruction sets that a processor may have, as setup.py compiles them.
UNITS = {"x86_64": ("base", "avx2", "avx512"), "amd64": ("base", "avx2", "avx512")}


def units_here() -> tuple[str, ...]:
    return UNITS.get(platform.machine().lower(), ("base",))


def unit_source(name: str) -> Path:
    return CSRC / "cpu" / "kernels" / f"isa_{name}.cpp"


def run(command: Sequence[object], seconds: float = 600) -> subprocess.CompletedProcess[str]:
    """Runs it; the output's end is shown where it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-8000:]}"
    )
    return done


def build(
    folder: Path,
    programs: Sequence[str],
    compiler: Sequence[str],
    flags: Sequence[str],
    units: Sequence[str],
    unit_flags: Sequence[str] = (),
) -> list[Path]:
    """Programs of this folder, each with the torch-free glue and the kernels of ``units``, compiled side by side."""
    kernels = [unit_source(name) for name in units]
    glue = [CSRC / "cpu" / "isa.cpp", *sorted((CSRC / "cpu").glob("block_sparse_*.cpp"))]  # block_sparse.cpp has torch
    defines = [f"-DRESGROW_HAVE_{name.upper()}" for name in units]

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        own = unit_flags if source in kernels else ()
        run([*compiler, *FLAGS, *flags, *own, *defines, *INCLUDES, "-c", source, "-o", target])
        return target

    def linked(program: str) -> Path:
        target = folder / program
        run([*compiler, *flags, folder / f"{program}.o", *shared, "-pthread", "-o", target])
        return target

    mains = [HERE / f"{program}.cpp" for program in programs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*reversed(kernels), *glue, *mains]))  # the longest first
        shared = objects[: len(kernels) + len(glue)]
        return list(pool.map(linked, programs))
