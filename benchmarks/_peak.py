"""The peak of multiply-adds of this machine, measured beside what is compared with it.

A small C++ library is compiled for the instruction set that the kernels use, with the compiler that ``CXX`` names or
the system's own. Its calls are contestants like any other, so that what else the machine does falls on them alike.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

from resgrow._load import _C
from resgrow._stopwatch import fair_clock

SOURCE = Path(__file__).with_name("peak.cpp")
# Instruction set: vector bytes and the compiler's flags.
FLAGS = {
    "base": (16, []),
    "avx2": (32, ["-mavx2", "-mfma"]),
    "avx512": (64, ["-mavx512f", "-mfma", "-mprefer-vector-width=512"]),
}
SECONDS = 2e-3  # of one call: long against the clock, short against a benchmark


class Peak:
    """Calls that take as long as ``threads`` cores at their peak take for ``flops`` operations.

    One core runs, and the others are taken to be as fast: beside them wait torch's threads, spinning.

    Attributes:
        registers: a call with all operands in registers: the peak.
        broadcast: a call with operands as the block-sparse kernels read them, from the first-level cache.
        flops: floating-point operations that all cores together do in the time of either call.
    """

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._rounds = 10_000
        self.registers = self._call(library.registers)
        self.broadcast = self._call(library.broadcast)
        self.registers()
        clock = fair_clock()
        start = clock()
        self.registers()
        self._rounds = max(1, round(self._rounds * SECONDS / (clock() - start)))
        self.flops = float(library.operations()) * self._rounds * threads

    def _call(self, function: Callable[[int, float], float]) -> Callable[[], object]:
        return lambda: function(self._rounds, 1e-9)


@cache
def peak(threads: int) -> Peak | None:
    """The peak of ``threads`` threads; None, with a warning that says why, where it cannot be measured."""
    library = _library(_C.cpu_isa())
    return None if library is None else Peak(library, threads)


@cache
def _library(isa: str) -> ctypes.CDLL | None:
    compilers = [*os.environ.get("CXX", "").split()[:1], "c++", "g++", "clang++"]
    compiler = next((name for name in compilers if shutil.which(name)), None)
    if compiler is None:
        warnings.warn(
            f"the peak of multiply-adds is not measured: no C++ compiler (looked for {', '.join(compilers)}); install "
            "one or point CXX at yours",
            stacklevel=3,
        )
        return None
    size, flags = FLAGS[isa]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "peak.so"
        command = [
            compiler,
            "-O3",
            "-shared",
            "-fPIC",
            f"-DVECTOR_BYTES={size}",
            *flags,
            str(SOURCE),
            "-o",
            str(target),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            warnings.warn(f"the peak of multiply-adds is not measured: {done.stderr.strip()}", stacklevel=3)
            return None
        library = ctypes.CDLL(str(target))
    for function in (library.registers, library.broadcast):
        function.argtypes, function.restype = [ctypes.c_long, ctypes.c_float], ctypes.c_float
    return library
