"""The switch between fibers: the assembly of this processor and of arm64, and the way of all others."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import simt_build

WAYS = {
    "this processor's": ([], []),
    "ucontext": (["-DSIMT_NO_ASSEMBLY"], []),
    "arm64": (["-static"], ["qemu-aarch64"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_fibers_take_turns(way: str, tmp_path: Path) -> None:
    flags, emulator = WAYS[way]
    compiler = "aarch64-linux-gnu-g++" if emulator else simt_build.compiler()
    for needed in (compiler, *emulator):
        if not shutil.which(needed):
            pytest.skip(f"{needed} is not installed")
    here = simt_build.HERE
    program = tmp_path / "fibers"
    sources = [here / "fibers.cpp", here / "simt" / "fiber.cpp"]
    subprocess.run([compiler, "-std=c++17", "-O2", *flags, f"-I{here}", *sources, "-o", program], check=True)
    done = subprocess.run([*emulator, program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "12 66\n"
