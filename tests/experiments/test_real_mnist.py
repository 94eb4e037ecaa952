"""The main job on real data: two epochs, and it must already work."""

from __future__ import annotations

import io
import os

import pytest
from rich.console import Console

from resgrow.experiments.config import make_config
from resgrow.experiments.fit import fit


@pytest.mark.slow
@pytest.mark.data
def test_lenet5_finds_two_percent_of_its_weights(tmp_path):
    if not os.environ.get("RESGROW_DATA_DIR"):
        pytest.skip("RESGROW_DATA_DIR is not set")
    config = make_config("mnist", "lenet5", "params=0.02", epochs=2)
    summary = fit(config, tmp_path / "run", Console(file=io.StringIO()))
    assert summary["budget_met"]
    assert summary["sized"]["params"] <= 0.02 * 431_080
    assert summary["dense"]["accuracy"] > 0.985
    assert summary["sized"]["accuracy"] > 0.97
