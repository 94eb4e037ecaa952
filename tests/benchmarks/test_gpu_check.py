"""benchmarks/gpu_check.sh with tools that only pretend: order, limits, what is kept, and the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
ALL = ["build", "library", "tests", "memcheck", "racecheck", "synccheck", "initcheck", "bench"]

PYTHON = f"""#!/bin/sh
case "$*" in
  *get_device_properties*) if [ -z "$NO_GPU" ]; then echo "9.0 NVIDIA H200, 132 multiprocessors, torch 2.11.0"; fi ;;
  *_gpu_summary.py*) exec {sys.executable} "$@" ;;
  *gpu_bench.py*) mkdir -p "$3"; echo '{{"copy": 4.3}}' > "$3/gpu.json"; echo '| copy | 4.3 |' > "$3/gpu.md" ;;
  *"-m cuda"*) echo "$TORCH_CUDA_ARCH_LIST $RESGROW_CUDA"; echo "1 passed"; sleep ${{SLEEP:-0}}; exit ${{FAIL:-0}} ;;
  *) echo "did $*" ;;
esac
"""
SANITIZER = '#!/bin/sh\necho "========= ERROR SUMMARY: 0 errors"\n'


@pytest.fixture
def call(tmp_path):
    """Runs the script with stand-ins for Python and compute-sanitizer; returns the finished process."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("python", PYTHON), ("compute-sanitizer", SANITIZER)):
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [SCRIPT, "--out", str(tmp_path / "out"), *arguments],
            env={"PATH": path, "PYTHON": "python", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def results(tmp_path):
    return json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))


def test_all_stages_and_what_is_kept(call, tmp_path):
    done = call()
    assert done.returncode == 0, done.stderr
    found = results(tmp_path)
    assert [(row["stage"], row["outcome"]) for row in found["stages"]] == [(stage, "passed") for stage in ALL]
    assert found["bench"] == {"gpu": {"copy": 4.3}}
    assert found["device"].startswith("9.0 NVIDIA H200")
    table = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "| tests | passed |" in table
    assert "ERROR SUMMARY: 0 errors" in table
    assert table.endswith("| copy | 4.3 |\n")
    assert len(list((tmp_path / "out").iterdir())) <= 8
    assert "9.0 1\n" in (tmp_path / "out" / "tests.log").read_text(encoding="utf-8")


def test_a_failure_is_told_and_later_stages_run(call, tmp_path):
    done = call("tests", "memcheck", "bench", FAIL="3")
    assert done.returncode == 1
    outcomes = {row["stage"]: row["outcome"] for row in results(tmp_path)["stages"]}
    assert outcomes == {"tests": "failed (3)", "memcheck": "passed", "bench": "passed"}


def test_a_stage_ends_when_time_is_up(call, tmp_path):
    done = call("--seconds", "1", "tests", "bench", SLEEP="30")
    assert done.returncode == 1
    outcomes = {row["stage"]: (row["outcome"], row["said"]) for row in results(tmp_path)["stages"]}
    assert outcomes == {"tests": ("out of time", "1 passed"), "bench": ("out of time", "no time was left for it")}


def test_dry_run_only_tells(call, tmp_path):
    done = call("--dry-run")
    assert done.returncode == 0
    told = [line.partition(", at most ")[0] for line in done.stdout.splitlines()]
    assert sorted(told) == sorted(ALL)
    assert "build, at most 300 s: python setup.py build_ext --inplace" in done.stdout
    assert list((tmp_path / "out").iterdir()) == []


def test_without_a_gpu_one_error_says_so(call):
    done = call(NO_GPU="1")
    assert done.returncode == 1
    assert "gpu_check: python must have a torch that sees an NVIDIA GPU; set PYTHON" in done.stderr


def test_other_words_get_the_usage(call):
    done = call("fly")
    assert done.returncode == 2
    assert "benchmarks/gpu_check.sh [--out DIR]" in done.stderr
