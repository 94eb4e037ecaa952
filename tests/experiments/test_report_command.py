from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from moves import move

from resgrow.cli import main
from resgrow.controller.logs import JsonLines
from resgrow.experiments.run_folder import RunFolder

sys.path.append(str(Path(__file__).parents[1] / "report"))
import example_run


@pytest.fixture
def folder(tmp_path):
    """A run that is at work."""
    made = RunFolder(tmp_path / "run", example_run.config())
    for event in example_run.history():
        made.record(event)
    yield made
    made.close()


def pages(folder):
    return (folder / "report.html").read_text(), (folder / "report.png").read_bytes()


def test_a_run_at_work_is_drawn_as_far_as_it_came(folder, capsys):
    assert main(["report", str(folder.path)]) == 0
    text, image = pages(folder.path)
    assert "State: running (unfinished" in text
    assert "The history reaches step 30." in text
    assert image.startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"report: {folder.path / 'report.html'} and {folder.path / 'report.png'}\n"
    folder.record({"event": "move", **asdict(move(step=40, kind="shrink"))})
    with open(folder.path / "history.jsonl", "a") as file:
        file.write('{"kind": "epo')  # the next line is being written
    assert main(["report", str(folder.path)]) == 0
    assert "The history reaches step 40." in pages(folder.path)[0]


def test_a_run_that_was_stopped_before_anything_happened(tmp_path):
    made = RunFolder(tmp_path / "run", {})
    made.mark("interrupted", "stopped by SIGTERM")
    made.close()
    assert main(["report", str(made.path)]) == 0
    assert "State: interrupted (stopped by SIGTERM). No step has been made yet." in pages(made.path)[0]


def test_a_finished_run_gets_its_whole_report(folder, tmp_path):
    folder.write_json("summary.json", example_run.summary())
    out = tmp_path / "figures"
    out.mkdir()
    assert main(["report", str(folder.path), "--out", str(out)]) == 0
    text, _ = pages(out)
    assert "Dense against sized" in text
    assert "budget met" in text
    assert not (folder.path / "report.html").exists()


def test_a_controller_s_log_is_drawn_beside_it(tmp_path):
    log = JsonLines(tmp_path / "moves.jsonl")
    log.size(1, {"params": 1000.0}, 0.5)
    log.move(move(step=5))
    assert main(["report", str(log.path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"moves.jsonl", "moves.html", "moves.png"}
    text = (tmp_path / "moves.html").read_text()
    assert "<h1>moves.jsonl</h1>" in text
    assert "conv1: 3, conv2: 1" in text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "which does not exist"),
        ("precious\n", "line 1 of"),
        ('{"event": "size", "step": 1, "cost": {}, "loss": null}\n[]\n', "line 2 of"),
        ('{"a": 1}\n', "every line must be an event"),
        ('{"event": "move", "step": 1}\n', "a move must have"),
    ],
)
def test_other_files_are_one_line_and_nothing_is_written(tmp_path, capsys, lines, message):
    file = tmp_path / "log.jsonl"
    if lines is not None:
        file.write_text(lines)
    before = sorted(tmp_path.iterdir())
    assert main(["report", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("resgrow: error: report: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_folders_that_do_not_fit(tmp_path, capsys, folder):
    assert main(["report", str(tmp_path)]) == 2
    assert "without history.jsonl" in capsys.readouterr().err
    assert main(["report", str(folder.path), "--out", str(tmp_path / "none")]) == 2
    assert "--out must be an existing folder" in capsys.readouterr().err
    (folder.path / "summary.json").write_text("{")
    assert main(["report", str(folder.path)]) == 2
    assert "must be JSON that resgrow wrote" in capsys.readouterr().err
    assert not (folder.path / "report.html").exists()
    assert json.loads((folder.path / "status.json").read_text())["state"] == "running"
