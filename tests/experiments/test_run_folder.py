from __future__ import annotations

import json
import math
import os

import pytest

from resgrow._errors import RunError
from resgrow.experiments.run_folder import HISTORY, STATUS, RunFolder, default_folder, read_history


def status(folder):
    return json.loads((folder / STATUS).read_text())


def test_says_unfinished_from_the_start(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b", {"fit": 1})
    found = status(tmp_path / "a" / "b")
    assert found["state"] == "running"
    assert found["message"].startswith("unfinished")
    assert found["pid"] == os.getpid()
    assert json.loads((folder.path / "config.json").read_text()) == {"fit": 1}


def test_status_comes_before_every_other_file(tmp_path, monkeypatch):
    order = []
    original = RunFolder.write_text
    monkeypatch.setattr(
        RunFolder, "write_text", lambda self, name, text: (order.append(name), original(self, name, text))[1]
    )
    RunFolder(tmp_path / "run", {})
    assert order[0] == STATUS


def test_marks_keep_the_start(tmp_path):
    folder = RunFolder(tmp_path, {})
    started = status(tmp_path)["started"]
    folder.mark("failed", "because")
    assert status(tmp_path)["started"] == started
    assert (status(tmp_path)["state"], status(tmp_path)["message"]) == ("failed", "because")


@pytest.mark.parametrize("name", ["status.json", "history.jsonl", "summary.json", "model.safetensors", "report.html"])
def test_a_folder_with_a_run_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(RunError, match=f"must not hold a run yet .*{name}.*--out"):
        RunFolder(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_other_files_in_the_folder_do_not_matter(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path, {})
    assert status(tmp_path)["state"] == "running"


def test_a_folder_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"run folder must be writable .*--out"):
        RunFolder(tmp_path / "file" / "run", {})


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(RunError, match="run folder must be writable"):
        RunFolder(tmp_path / "locked", {})


def test_history_is_one_strict_json_object_per_line(tmp_path):
    folder = RunFolder(tmp_path, {})
    folder.record({"kind": "move", "ratio": math.nan, "text": "two\nlines", "more": [math.inf, 1.5]})
    folder.record({"kind": "epoch"})
    lines = (tmp_path / HISTORY).read_text().split("\n")
    assert len(lines) == 3
    assert lines[-1] == ""
    assert read_history(tmp_path) == [
        {"kind": "move", "ratio": None, "text": "two\nlines", "more": [None, 1.5]},
        {"kind": "epoch"},
    ]


def test_every_line_is_one_write(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, {})
    written = []
    original = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: (written.append(data), original(fd, data))[1])
    folder.record({"kind": "epoch", "values": list(range(1000))})
    assert len(written) == 1
    assert written[0].endswith(b"}\n")


def test_a_full_disk_is_an_error_not_a_half_line(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, {})
    monkeypatch.setattr(os, "write", lambda fd, data: 3)
    with pytest.raises(RunError, match=r"got 3 of \d+ bytes"):
        folder.record({"kind": "epoch"})


def test_default_folder_uses_the_name_of_a_data_folder():
    assert default_folder("/some/where/photos/", "resnet8").name.startswith("photos-resnet8-")
