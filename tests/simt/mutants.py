"""Kernels with one synchronisation deleted: do the tests of their family notice?

    python tests/simt/mutants.py [csrc/cuda/kernels/FILE ...]

builds and tests each mutant of the files (default: of all) and names the survivors: synchronisations that no test
needs, or that nothing needs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import simt_build

KERNELS = simt_build.CUDA / "kernels"
SYNCHRONISATION = re.compile(r"^ *(__syncthreads\(\)|__syncwarp\(\)|copy_async_wait<[^;]*>\(\));", re.M)


@dataclass(frozen=True)
class Mutant:
    path: Path
    start: int
    end: int

    def __str__(self) -> str:
        text = self.path.read_text()
        return f"{self.path.name}:{text.count(chr(10), 0, self.start) + 1} {text[self.start : self.end]}"

    def source(self) -> str:
        text = self.path.read_text()
        return text[: self.start] + "(void)0" + text[self.end :]


def mutants(path: Path) -> list[Mutant]:
    return [Mutant(path, *match.span(1)) for match in SYNCHRONISATION.finditer(path.read_text())]


def kernel_files() -> list[Path]:
    """Those that have mutants; the layer under the kernels is no kernel."""
    files = sorted([*KERNELS.glob("*.cu"), *KERNELS.glob("*.cuh")])
    return [path for path in files if mutants(path)]


def units_with(path: Path) -> Iterator[Path]:
    """The units that a file is compiled in: itself, or those that include it."""

    def includes(file: Path) -> set[Path]:
        found = {file}
        for name in re.findall(r'#\s*include "(cuda/kernels/[^"]+)"', file.read_text()):
            found |= includes(KERNELS.parents[1] / name)
        return found

    return (unit for unit in sorted(KERNELS.glob("*.cu")) if path in includes(unit))


def build(mutant: Mutant, folder: Path) -> Path:
    """The interpreter with this mutant; everything else is taken from the ordinary build, which must be there."""
    changed = folder / "csrc" / "cuda" / "kernels" / mutant.path.name
    changed.parent.mkdir(parents=True)
    changed.write_text(mutant.source())
    units = list(units_with(mutant.path))
    taken = simt_build.sources()
    objects = [
        simt_build.build_folder() / simt_build.object_name(rule, source)
        for rule, files in taken.items()
        for source in files
        if source not in units and source.parent != simt_build.HERE / "kernels"
    ]
    by_rule = {"kernel": [changed if unit == mutant.path else unit for unit in units]}
    includes = [folder / "csrc", simt_build.HERE, simt_build.ROOT / "csrc"]
    (folder / "build.ninja").write_text(simt_build.ninja_file("mutant", by_rule, includes, objects))
    simt_build.ninja(folder)
    return folder / "mutant.so"


FAMILIES = ("block_sparse", "select", "squared_grad", "tristate_relu")


def of_family(name: str, paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.stem.removeprefix("test_").startswith(name)]


def tests_of(path: Path) -> list[Path]:
    """tests/cuda/test_<family>*.py of the family that the file's name begins with; of what they share, all."""
    tests = sorted((simt_build.ROOT / "tests" / "cuda").glob("test_*.py"))
    return next((of_family(name, tests) for name in FAMILIES if of_family(name, [path])), tests)


def one_file_per_family() -> list[Path]:
    """Of each family the file with the most synchronisations."""
    files = [of_family(name, kernel_files()) for name in FAMILIES]
    return [max(paths, key=lambda path: len(mutants(path))) for paths in files if paths]


def caught(mutant: Mutant) -> str:
    """What the first failing test says, or nothing where all pass."""
    with tempfile.TemporaryDirectory() as folder:
        library = build(mutant, Path(folder))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-k", "simt", "-p", "no:cacheprovider", "--tb=line"]
        done = subprocess.run(
            [*command, *map(str, tests_of(mutant.path))],
            cwd=simt_build.ROOT,
            env={**os.environ, "RESGROW_SIMT_LIBRARY": str(library)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode in (0, 1), f"the tests did not run:\n{done.stdout}{done.stderr}"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stdout.splitlines() if "Error" in line]
    return lines[0] if lines else done.stdout[-500:]


def main(names: list[str]) -> int:
    simt_build.build()
    survivors = 0
    for path in [Path(name).resolve() for name in names] or kernel_files():
        for mutant in mutants(path):
            verdict = caught(mutant)
            survivors += not verdict
            print(f"{'caught' if verdict else 'SURVIVES':8}  {mutant}  {verdict[:200]}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
