"""The kernels for arm64: cross-compiled, made of NEON's fused multiply-adds, and right under an emulator.

Needs a cross compiler: Debian's g++-aarch64-linux-gnu, or ziglang from PyPI, which brings clang. With qemu-user too,
the products run.
"""

from __future__ import annotations

import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from native_build import FLAGS, INCLUDES, build, run, unit_source

TARGET = "aarch64-linux-gnu"
COMPILERS = {
    "gcc": [f"{TARGET}-g++"] if shutil.which(f"{TARGET}-g++") else [],
    "clang": [sys.executable, "-m", "ziglang", "c++", "-target", TARGET] if find_spec("ziglang") else [],
}
INSTALL = {"gcc": f"Debian's g++-{TARGET}", "clang": "ziglang from PyPI"}


def cross_compiler(name: str) -> list[str]:
    return COMPILERS[name] or pytest.skip(f"no cross compiler: {INSTALL[name]} is not installed")


def functions(assembly: str) -> dict[str, str]:
    """Mangled name to instructions."""
    parts = re.split(r"^(\w+):.*$", assembly, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", COMPILERS)
def test_products_are_vector_multiply_adds(name: str, tmp_path: Path) -> None:
    assembly = tmp_path / "base.s"
    run([*cross_compiler(name), *FLAGS, "-O3", *INCLUDES, "-S", unit_source("base"), "-o", assembly])
    for kernel in ("block_sparse_tiles", "block_sparse_correlate", "block_sparse_spread", "squared_grad_tile"):
        for letter, lanes in (("f", "4s"), ("d", "2d")):
            bodies = [body for name, body in functions(assembly.read_text()).items() if f"{kernel}I{letter}Li" in name]
            assert bodies
            assert all(re.search(rf"\bfmla\s+v\d+\.{lanes}", body) for body in bodies)


@pytest.mark.slow
def test_kernels_are_right_under_an_emulator(tmp_path: Path) -> None:
    compiler = cross_compiler("gcc")
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if not emulator:
        pytest.skip("no emulator: qemu-user is not installed")
    products, others = build(tmp_path, ["block_sparse", "kernels"], compiler, ["-O2", "-static"], ["base"], ["-O3"])
    assert "shapes right" in run([emulator, products, 200]).stdout
    assert "rounds right" in run([emulator, others, 200]).stdout
