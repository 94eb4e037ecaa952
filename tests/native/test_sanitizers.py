"""The torch-free C++ of the package under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from native_build import build, run, units_here

COMPILER = os.environ.get("CXX", "").split() or ["g++"]
MEMORY = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREADS = ["-O1", "-g1", "-fsanitize=thread"]


def require_sanitizer(folder: Path, flags: list[str]) -> None:
    """Skips where a program that does nothing cannot be built or run with them."""
    if not shutil.which(COMPILER[0]):
        pytest.skip(f"no C++ compiler {COMPILER[0]} here")
    source, program = folder / "nothing.cpp", folder / "nothing"
    source.write_text("int main() {}\n")
    for command in ([*COMPILER, *flags, source, "-o", program], [program]):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{' '.join(flags)} does not work here: {done.stderr.strip()[-300:]}")


@pytest.mark.slow
def test_kernels_touch_only_memory_that_is_theirs(tmp_path: Path) -> None:
    require_sanitizer(tmp_path, MEMORY)
    # Kernels are a matter of seconds to compile with checks only where nothing is unrolled.
    products, others = build(tmp_path, ["block_sparse", "kernels"], COMPILER, MEMORY, units_here(), ["-O0"])
    assert "shapes right" in run([products, 300]).stdout
    assert "rounds right" in run([others, 300]).stdout


@pytest.mark.slow
def test_threads_do_not_race(tmp_path: Path) -> None:
    """One instruction set: how work is dealt out does not depend on it."""
    require_sanitizer(tmp_path, THREADS)
    (products,) = build(tmp_path, ["block_sparse"], COMPILER, THREADS, ["base"], ["-O0"])
    assert "shapes right" in run([products, 60]).stdout
