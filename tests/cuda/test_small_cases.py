"""The cases that benchmarks/gpu_check.sh gives to compute-sanitizer: every operator, ragged sizes, three types."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from gpu_small_cases import TOLERANCES, cases, worst


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_values_and_gradients(machine, dtype):
    errors = {case[0]: worst(case, dtype, machine.put, machine.on_host) for case in cases()}
    assert {name: error for name, error in errors.items() if error > TOLERANCES[dtype]} == {}
