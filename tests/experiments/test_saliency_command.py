"""resgrow saliency: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

import resgrow.data
from resgrow import load, save
from resgrow.cli import main
from resgrow.nn import resnet
from resgrow.saliency import saliency


@pytest.fixture
def model(tmp_path):
    """A folder with a model that takes the digits."""
    torch.manual_seed(0)
    folder = tmp_path / "model"
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    with torch.no_grad():
        net[3].weight[:, :14] = 0
    save(net, folder)
    return folder


def call(*arguments: object) -> int:
    return main(["saliency", *map(str, arguments)])


def test_prints_layers_and_writes_scores(capsys, model):
    assert call(model, "--data", "digits", "--damping", "1", "--curvature", "fisher", "--limit", "100") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "saliency by obd: rise of the mean loss"
    assert "predicted rise" in lines[2]
    rows = {cells[0]: cells for cells in ([cell.strip() for cell in line.split("│")[1:-1]] for line in lines) if cells}
    path = model / "saliency.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        meta = file.metadata()
    scores = safetensors.torch.load_file(path)
    data = resgrow.data.load("digits")
    chosen = torch.randperm(len(data.train_y), generator=torch.Generator().manual_seed(0))[:100]
    batches = [(data.train_x[part], data.train_y[part]) for part in chosen.split(128)]
    wanted = saliency(load(model), nn.CrossEntropyLoss(), batches, damping=1.0, curvature="fisher")
    assert list(scores) == sorted(wanted)
    for name, score in wanted.items():
        torch.testing.assert_close(scores[name], score, rtol=1e-4, atol=1e-9)
    total = sum(wanted.per_layer().values())
    for layer, (shape, live, elements) in {"0": ("4x1x3x3", 40, 40), "3": ("10x144", 1310, 1450)}.items():
        assert rows[layer][1:3] == [shape, f"{live:,}/{elements:,}"]
        amount = wanted.per_layer()[layer]
        assert float(rows[layer][3]) == pytest.approx(amount, rel=1e-2)
        assert rows[layer][4] == f"{100 * amount / total:.1f} %"
        assert float(rows[layer][5]) == pytest.approx(amount / live, rel=1e-2)
        values = torch.cat(
            [wanted[f"{layer}.{kind}"][load(model)[int(layer)].get_parameter(kind) != 0] for kind in ("weight", "bias")]
        )
        quantiles = values.quantile(torch.tensor([0, 0.25, 0.5, 0.75, 1])).tolist()
        assert [float(cell) for cell in rows[layer][6:]] == pytest.approx(quantiles, rel=0.06)
    assert rows["all"][4] == "100.0 %"
    assert (meta["format"], meta["version"], meta["method"], meta["unit"]) == (
        "resgrow-saliency",
        "1",
        "obd",
        "rise of the mean loss",
    )
    assert json.loads(meta["options"]) == {"curvature": "fisher", "damping": 1.0}
    assert json.loads(meta["data"]) == {"data": "digits", "limit": 100, "batch_size": 128, "seed": 0}
    assert json.loads(meta["damping"]) == 1.0
    assert "torch" in json.loads(meta["versions"])
    assert [entry.name for entry in model.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("block", "title", "units"),
    [
        ("3x5", "sums over blocks of 3x5", {"0.weight": "18", "3.weight": "116"}),
        ("channel", "sums over channels", {"0.weight": "4", "3.weight": "10"}),
    ],
)
def test_second_table_by_units(capsys, model, tmp_path, block, title, units):
    out = tmp_path / "s.safetensors"
    assert call(model, "--data", "digits", "--method", "magnitude", "--block", block, "--out", out) == 0
    text = capsys.readouterr().out
    assert title in text
    rows = {
        cells[0]: cells for cells in ([c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines()) if cells
    }
    for name, number in units.items():
        assert rows[name][1] == number
    sums = saliency(load(model), method="magnitude").per_channel()["3.weight"]
    if block == "channel":
        assert float(rows["3.weight"][7]) == pytest.approx(sums.max().item(), rel=0.06)
    assert out.exists()


@pytest.mark.parametrize(
    "method", ["random", "obs --hessian ggn-mc", "obs --hessian layer", "obs", "apoz", "obd --damping 1"]
)
def test_seeds_reproduce(capsys, model, tmp_path, method):
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        assert (
            call(model, "--data", "digits", "--limit", 40, "--seed", seed, "--out", file, "--method", *method.split())
            == 0
        )
    first, second, third = (safetensors.torch.load_file(file) for file in files)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--method", "obx"], "--method must be one of obd, magnitude"),
        (["--data", "no/such/folder"], "existing folder"),
        (["--damping", "much"], "--damping must be 'auto' or a number (got 'much')"),
        (["--damping", "-1"], "damping must be 'auto' or a number >= 0 (got -1.0)"),
        (["--damping", "1", "--method", "wanda"], "method 'wanda' takes no options (got damping=1.0)"),
        (["--curvature", "hess", "--damping", "1"], "curvature: method must be one of"),
        (["--hessian", "layer"], "method 'obd' takes"),
        (["--block", "16"], "--block must be none, channel or for example 16x1 (got '16')"),
        (["--block", "0x1"], "--block must be none, channel"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--threads", "0"], "saliency: --threads must be at least 1"),
        (["--out", "no/such/folder/file"], "folder must exist (got no/such/folder)"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(capsys, model, arguments, rule):
    assert call(model, "--data", "digits", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("resgrow: error: ")
    assert rule in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in model.iterdir()) == ["model.json", "model.safetensors"]


def test_an_existing_file_stays(capsys, model):
    (model / "saliency.safetensors").write_text("precious")
    assert call(model, "--data", "digits", "--method", "magnitude") == 2
    assert "must not be there yet" in capsys.readouterr().err
    assert (model / "saliency.safetensors").read_text() == "precious"


def test_models_that_do_not_fit_the_data_are_refused(capsys, tmp_path):
    save(resnet(8, 0.25, in_channels=3), tmp_path / "colour")
    assert call(tmp_path / "colour", "--data", "digits") == 2
    error = capsys.readouterr().err
    assert "the model must take images of shape (1, 8, 8)" in error
    assert error.count("\n") == 1
    save(resnet(8, 0.25, in_channels=1, num_classes=7), tmp_path / "seven")
    assert call(tmp_path / "seven", "--data", "digits") == 2
    assert "one number for each of 10 classes (got shape (1, 7)" in capsys.readouterr().err
    assert call(tmp_path, "--data", "digits") == 2
    assert "model.json is missing; give the folder that resgrow.save wrote" in capsys.readouterr().err
    (tmp_path / "seven" / "model.safetensors").write_bytes(b"")
    assert call(tmp_path / "seven", "--data", "digits") == 2
    assert "is damaged" in capsys.readouterr().err


def test_missing_mnist_is_one_line(capsys, model, tmp_path, monkeypatch):
    monkeypatch.delenv("RESGROW_DATA_DIR", raising=False)
    assert call(model, "--data", "mnist", "--data-dir", tmp_path) == 2
    assert "train-images-idx3-ubyte" in capsys.readouterr().err


def test_mistakes_of_the_program_keep_their_traceback(model, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("a bug")

    monkeypatch.setattr("resgrow.experiments.saliency_command.saliency", broken)
    with pytest.raises(ValueError, match="a bug"):
        call(model, "--data", "digits")


def test_runs_as_a_program(model, tmp_path):
    command = [sys.executable, "-m", "resgrow", "saliency", model, "--data", "digits", "--method", "random"]
    done = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "saliency by random: none: uniform on [0, 1)" in done.stdout
    assert f"written: {model / 'saliency.safetensors'}" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.startswith("resgrow: error: saliency: the file must not be there yet")
