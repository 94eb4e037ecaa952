"""resgrow count: what it prints and writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import resgrow
from resgrow.cli import main
from resgrow.experiments.named_models import BUILT_IN, Subject

PNG = b"\x89PNG\r\n\x1a\n"


def call(*arguments: object) -> int:
    return main(["count", *map(str, arguments)])


def net(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 5)
    )


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """A model for images of 3x8x8, and a narrower one."""
    for name, width in (("wide", 16), ("narrow", 4)):
        resgrow.save(net(width), tmp_path / name)
    return tmp_path / "wide", tmp_path / "narrow"


def test_prints_and_writes_a_model(capsys, folders, tmp_path):
    out = tmp_path / "out"
    assert call(folders[0], "--input", "3x8x8", "--batch", 2, "--latency", "--out", out, "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "wide"
    assert lines[1].split() == ["layer", "kind", "width", "params", "MACs", "activations", "ms"]
    assert lines[2].split()[:7] == ["0", "Conv2d", "16", "448", "15,552", "4.5", "KiB"]
    assert lines[-3].split()[:3] == ["all", "3,365", "18,432"]
    assert lines[-2].startswith("batch 2, ")
    assert lines[-1] == f"written: {out}"
    assert sorted(path.name for path in out.iterdir()) == ["profile.csv", "profile.json", "widths.png"]
    assert (out / "widths.png").read_bytes().startswith(PNG)
    rows = list(csv.DictReader((out / "profile.csv").open()))
    assert [row["name"] for row in rows] == list("01234")
    assert (rows[4]["kind"], rows[4]["params"], rows[4]["macs"]) == ("Linear", "2885", "2880")
    found = json.loads((out / "profile.json").read_text())
    assert found["totals"]["params"] == 3365
    assert found["totals"]["seconds"] > 0
    assert found["layers"][0]["activation_bytes"] == 4 * 2 * 16 * 36
    assert (found["batch"], found["against"], found["masked"]) == (2, None, False)


def test_compares_two_models(capsys, folders, tmp_path):
    out = tmp_path / "out"
    wide, narrow = folders
    assert call(narrow, "--against", wide, "--input", "3x8x8", "--latency", "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "wide → narrow"
    assert lines[2].split()[:9] == ["0", "16", "→", "4", "448", "→", "112", "×0.25", "15,552"]
    assert next(line for line in lines if line.startswith("all")).split()[1:4] == ["3,365", "→", "845"]
    rows = list(csv.DictReader((out / "profile.csv").open()))
    assert (rows[0]["width_before"], rows[0]["width_after"], rows[0]["width_ratio"]) == ("16", "4", "0.25")
    found = json.loads((out / "profile.json").read_text())
    assert found["before"]["totals"]["params"] == 3365
    assert found["after"]["totals"]["params"] == 845
    assert found["totals"]["seconds_before"] == found["before"]["totals"]["seconds"] > 0
    assert (out / "widths.png").read_bytes().startswith(PNG)


def test_the_shape_of_one_model_serves_the_other(capsys, tmp_path):
    resgrow.save(resgrow.nn.resnet(8, 0.5), tmp_path / "half")
    assert call(tmp_path / "half", "--against", "resnet8", "--threads", torch.get_num_threads()) == 0
    total = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("all"))
    assert total.split()[1:4] == ["78,042", "→", "19,954"]


def test_zeros_are_told_apart(capsys, monkeypatch, tmp_path):
    model = net(16)
    with torch.no_grad():
        model[0].weight[:8] = 0
    resgrow.save(model, tmp_path / "sparse")
    assert call(tmp_path / "sparse", "--input", "3x8x8") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "live params" in lines[1]
    assert lines[2].split()[2:7] == ["16", "448", "232", "15,552", "7,776"]
    monkeypatch.setitem(BUILT_IN, "lenet5", lambda: Subject(model, (3, 8, 8), drawn=True))
    assert call("lenet5") == 0  # a zero among random weights is one by chance
    assert "live params" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["nothing"], "the model must be resnet8, resnet20, resnet56, lenet5, torchvision:NAME"),
        (["resnet8", "--against", "no.such:thing"], "package.module:function must be importable"),
        (["resnet8", "--input", "3x-1"], "--input must be for example 3x224x224"),
        (["resnet8", "--input", "5x8x8"], "resnet8 must take inputs of shape 5x8x8 (got the error: "),
        (["resnet8", "--batch", "0"], "--batch must be at least 1"),
        (["resnet8", "--device", "cuda:99"], "for a GPU that torch sees"),
        (["resnet8", "--threads", "0"], "--threads must be at least 1"),
        (["resnet8", "--out", "no/such/folder"], "parent must exist (got no/such)"),
        (["torch.nn:ReLU"], "the shape of an input must be known (got no --input)"),
    ],
)
def test_wrong_input_is_one_line(capsys, arguments, rule):
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("resgrow: error: count: ")
    assert rule in error
    assert error.count("\n") == 1


def test_a_folder_in_use_is_left_alone(capsys, folders):
    assert call("resnet8", "--out", folders[0]) == 2
    assert "must not hold anything yet" in capsys.readouterr().err
    assert sorted(path.name for path in folders[0].iterdir()) == ["model.json", "model.safetensors"]


def test_runs_as_a_program():
    command = [sys.executable, "-m", "resgrow", "count", "lenet5", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "431,080  2,293,000" in done.stdout


def test_torchvision_models(capsys):
    pytest.importorskip("torchvision")
    assert call("torchvision:resnet18") == 0
    assert "11,689,512  1,814,073,344" in capsys.readouterr().out
