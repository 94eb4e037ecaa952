"""Every experiment's --quick: it runs, answers, and leaves what its folder should hold.

Parts that lack their data set, as where RESGROW_DATA_DIR is not set, are left out, and experiments all of whose parts
do are skipped.
"""

from __future__ import annotations

import csv
import json

import pytest

from resgrow.cli import main
from resgrow.experiments.frame.registry import REGISTRY

# What resgrow.data says where files or the name of their folder lack.
LACKING = ("must be there (", "got neither --data-dir nor")


@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTRY)
def test_quick(name, tmp_path, capsys):
    code = main(["experiment", name, "--quick", "--out", str(tmp_path)])
    said = capsys.readouterr().err
    lacking = any(text in said for text in LACKING)
    if code == 2 and lacking and not (tmp_path / "quick").exists():
        pytest.skip(said)
    assert code == 0 or lacking, said
    folder = tmp_path / "quick" / name
    summary = json.loads((folder / "results.json").read_text())
    sentences = summary["answer"].count(". ") + 1
    assert sentences == 2, summary["answer"]
    assert "no rule that concludes" not in summary["answer"]
    assert summary["quick"]
    assert summary["seconds"] > 0
    assert summary["text"] in (folder / f"{name}.md").read_text()
    assert summary["tables"]
    for table, rows in summary["tables"].items():
        assert len(list(csv.DictReader((folder / f"{table}.csv").open()))) == len(rows) > 0
    assert (folder / f"{name}.png").exists() == summary["figure"]
