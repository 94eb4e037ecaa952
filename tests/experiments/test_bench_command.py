"""resgrow bench: what it measures, prints and writes, and what it refuses. Times themselves are not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import resgrow
from resgrow._memory import peak_bytes
from resgrow.cli import main
from resgrow.experiments import bench_measure, bench_points
from resgrow.experiments.bench_points import Point, break_even
from resgrow.nn import BlockSparseConv2d
from resgrow.report.speed_plots import layers_png, speedup_png

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    """No measurement outlives a test."""
    monkeypatch.setenv("RESGROW_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder with a dense model for images of 3x8x8."""
    folder = tmp_path / "model"
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 16))
    resgrow.save(net, folder)
    return folder


def call(*arguments: object) -> int:
    return main(["bench", *map(str, arguments)])


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_prints_and_writes_a_dense_model(capsys, model, tmp_path):
    out = tmp_path / "out"
    options = ("--input", "3x8x8", "--batch", 2, "--repeats", 2, "--density", ".5,.25", "--block", "16x1,4x1")
    assert call(model, *options, "--out", out) == 0
    text = capsys.readouterr().out
    assert text.count("layers, blocks of 16x1") == text.count("layers, blocks of 4x1") == 2
    rows = cells(text)
    sizes = ["16x1", "16x1", "4x1", "4x1"]
    assert [row[1:3] for row in rows if row[0] == "0"] == [["16x3x3x3", size] for size in sizes]
    ends = [row for row in rows if row[0] in ("16x1", "4x1")]
    assert len(ends) == 8  # four combinations, times and memory
    assert [row[0] for row in ends] == sizes * 2
    assert f"written: {out}" in text
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "layers.png", "speedup.png"]
    assert (out / "speedup.png").read_bytes().startswith(PNG)
    found = json.loads((out / "bench.json").read_text())
    assert found["threads"] == torch.get_num_threads()
    assert found["config"]["densities"] == [0.5, 0.25]
    assert set(found["break_even"]) == {"16x1", "4x1"}
    for point, density in zip(found["points"], (0.5, 0.25) * 2, strict=True):
        assert point["density"] == pytest.approx(density, abs=0.02)
        assert list(point["seconds"]) == ["dense", "folded", "swapped", "fused"]
        assert all(seconds > 0 for seconds in point["seconds"].values())
        assert [layer["name"] for layer in point["layers"]] == ["0", "4"]
        measured = [layer for layer in point["layers"] if layer["dense"] is not None]
        assert point["layer_seconds"]["ideal"] == pytest.approx(sum(layer["ideal"] for layer in measured))
        weights = 4 * (16 * 27 + 16 * 576)
        rest = 4 * (32 + 16 * 4) + 8  # biases, norm, its count of batches
        assert point["held"]["dense"] == weights + rest
        assert point["peak"]["dense"] >= 4 * 2 * 16 * 36


def test_training_steps(capsys, model, tmp_path):
    out = tmp_path / "out"
    options = ("--input", "3x8x8", "--batch", 2, "--repeats", 1, "--density", ".5", "--train", "--method", "magnitude")
    assert call(model, *options, "--out", out) == 0
    text = capsys.readouterr().out
    assert "forward and both gradients" in text
    assert "training step, end to end" in text
    (point,) = json.loads((out / "bench.json").read_text())["points"]
    assert list(point["seconds"]) == ["dense", "swapped"]
    parameters = 4 * (16 * 27 + 16 * 576 + 2 * 16 + 2 * 16)
    assert point["held"]["dense"] == 3 * parameters + 4 * 32 + 8  # gradients and momenta; the norm's statistics


def test_a_sparse_model_is_measured_as_it_is(capsys, model, tmp_path):
    net = resgrow.load(model)
    resgrow.prune(net, resgrow.saliency(net, method="magnitude"), sparsity=0.75, block=(16, 1))
    resgrow.save(net, tmp_path / "sparse")
    out = tmp_path / "out"
    options = ("--input", "3x8x8", "--batch", 2, "--repeats", 1)
    assert call(tmp_path / "sparse", *options, "--out", out) == 0
    (point,) = json.loads((out / "bench.json").read_text())["points"]
    assert point["block"] == "auto"
    assert point["density"] == pytest.approx(0.25, abs=0.01)
    assert "layers, blocks of the fastest size, 24.9 % present" in capsys.readouterr().out
    assert call(tmp_path / "sparse", *options, "--density", ".1") == 2
    assert "--density is for dense models (got one with zeros)" in capsys.readouterr().err


def test_models_of_functions(capsys, monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from resgrow.nn import BlockSparseLinear\n"
        "def build(): return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))\n"
        "def sparse(): return nn.Sequential(BlockSparseLinear.from_dense(nn.Linear(32, 16), torch.eye(32)[:1] > 0))\n"
        "def pair(): return nn.Sequential(nn.Linear(32, 16), nn.GRU(16, 16))\n"
        "class Branch(nn.Sequential):\n"
        "    def forward(self, x): return super().forward(x) if x.sum() < 1e9 else x\n"
        "def branch(): return Branch(nn.Linear(32, 16))\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ("--batch", 4, "--repeats", 1, "--input", 32)
    assert call("mine:build", *options, "--density", ".5") == 0
    assert "16x32" in capsys.readouterr().out
    assert call("mine:sparse", *options) == 0  # already swapped
    assert "3.1 %" in capsys.readouterr().out
    assert call("mine:branch", *options, "--density", ".5") == 0
    text = capsys.readouterr().out
    assert "not fused: fuse: torch.fx must be able to trace the model" in " ".join(text.split())
    assert "fused ms" not in text
    assert call("mine:pair", *options) == 2
    assert "the model must return one tensor (got tuple)" in capsys.readouterr().err
    assert call("mine:number", *options) == 2
    assert "must be a model, or give one when called without arguments (got int)" in capsys.readouterr().err


def test_built_in_models(capsys):
    assert call("resnet8", "--batch", 1, "--repeats", 1, "--density", ".5", "--no-fuse", "--threads", 1) == 0
    text = capsys.readouterr().out
    assert "layer3.0.downsample.0" in text
    assert "fused" not in text


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["nothing"], "the model must be resnet8, resnet20, resnet56, lenet5, torchvision:NAME"),
        (["no.such:thing"], "package.module:function must be importable (got 'no.such:thing'"),
        (["resgrow:nothing"], "must be importable"),
        (["resnet8", "--density", "0"], "--density must be numbers in (0, 1]"),
        (["resnet8", "--density", "half"], "--density must be numbers in (0, 1]"),
        (["resnet8", "--density", "1.5"], "--density must be numbers"),
        (["resnet8", "--block", "16"], "--block must be for example 16x1"),
        (["resnet8", "--block", "channel"], "--block must be"),
        (["resnet8", "--input", "3x-1"], "--input must be for example 3x224x224"),
        (["resnet8", "--input", "5x8x8"], "the model must take inputs of shape 5x8x8 (got the error"),
        (["resnet8", "--batch", "0"], "--batch must be at least 1"),
        (["resnet8", "--repeats", "0"], "--repeats must be at least 1"),
        (["resnet8", "--device", "tpu:first"], "--device must be cpu, or cuda"),
        (["resnet8", "--device", "cuda:99"], "for a GPU that torch sees"),
        (["resnet8", "--method", "obd"], "--method must be one of random, magnitude"),
        (["resnet8", "--seed", "-1"], "--seed must not be negative"),
        (["resnet8", "--threads", "0"], "bench: --threads must be at least 1"),
        (["resnet8", "--out", "no/such/folder"], "parent must exist (got no/such)"),
        (["torch.nn:ReLU", "--input", "3"], "must have Conv2d or Linear layers"),
    ],
)
def test_wrong_input_is_one_line(capsys, arguments, rule):
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("resgrow: error: bench: ")
    assert rule in error
    assert error.count("\n") == 1


def test_folders_need_an_input_shape_and_an_empty_place(capsys, model, tmp_path):
    assert call(model) == 2
    assert "the shape of an input must be known (got no --input)" in capsys.readouterr().err
    assert call(model, "--input", "3x8x8", "--out", model) == 2
    assert "must not hold anything yet" in capsys.readouterr().err
    assert sorted(path.name for path in model.iterdir()) == ["model.json", "model.safetensors"]
    (model / "model.safetensors").write_bytes(b"")
    assert call(model, "--input", "3x8x8") == 2
    assert "is damaged" in capsys.readouterr().err


def test_torchvision_is_optional(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert call("torchvision:resnet18") == 2
    assert "torchvision must be importable for torchvision:resnet18" in capsys.readouterr().err


def test_torchvision_names(capsys):
    pytest.importorskip("torchvision")
    assert call("torchvision:resnet1") == 2
    assert "torchvision must have the model (got 'resnet1')" in capsys.readouterr().err


def test_forms_that_differ_are_reported(capsys, monkeypatch, model):
    def broken(net):
        other = resgrow.surgery.fuse(net)
        nn.init.zeros_(next(other.get_submodule("4").parameters()))
        return other

    monkeypatch.setattr(bench_points, "fuse", broken)
    assert call(model, "--input", "3x8x8", "--batch", 2, "--density", ".5") == 2
    assert "must give the outputs of the dense one" in capsys.readouterr().err


def point(density: float, share: float) -> Point:
    """``share``: time of the sparse layers over that of the dense ones."""
    layers = {"dense": 1.0, "sparse": share, "ideal": density}
    times = {"dense": 1.0, "swapped": share}
    return Point((16, 1), density, [], times, {"dense": 1.0, "swapped": 1 / share}, {}, {}, "", layers)


def test_break_even():
    assert break_even([point(0.5, 0.6)]) is None
    between = break_even([point(0.25, 0.4), point(0.5, 0.8), point(1.0, 1.2)])
    assert between == (pytest.approx(0.75), True)
    assert break_even([point(0.5, 0.8), point(0.25, 0.6)]) == (pytest.approx(0.75), False)
    assert break_even([point(0.25, 0.25), point(0.5, 0.4)]) == (1.0, False)  # faster at every density
    assert break_even([point(0.25, 0.5), point(0.5, 0.5)]) == (1.0, False)
    assert break_even([point(0.25, 1.1), point(0.5, 1.5)]) is None  # slower at every one measured


def test_plots_are_images():
    points = [point(0.5, 0.6), point(0.1, 0.2)]
    image = speedup_png({"16x1": points, "4x1": points[:1]}, {"16x1": (0.9, False), "4x1": None}, "a model")
    assert image.startswith(PNG)
    row = {"name": "conv", "dense": 1e-3, "sparse": 5e-4, "ideal": 4e-4, "density": 0.4}
    unmeasured = {"name": "fc", "dense": None, "sparse": None, "ideal": None, "density": None}
    assert layers_png([row, unmeasured], "a model").startswith(PNG)
    assert layers_png([unmeasured], "a model").startswith(PNG)


def test_memory_is_counted_exactly():
    layer = nn.Linear(16, 8, bias=False)
    layer.register_buffer("same", layer.weight.detach()[:2])
    assert bench_measure.held_bytes(layer) == 4 * 128
    optimizer = bench_measure.make_optimizer(layer)
    bench_measure.training_step(layer, torch.randn(3, 16), optimizer)()
    assert bench_measure.held_bytes(layer, optimizer) == 3 * 4 * 128
    x = torch.zeros(1000)
    assert peak_bytes(lambda: x.sin(), x.device) == 4000
    assert peak_bytes(lambda: x.sin().sin().sin(), x.device) == 8000


def test_calls_are_interleaved_in_turning_order():
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = bench_measure.interleaved(calls, 2, torch.device("cpu"))
    assert "".join(order) == "abbaab"
    assert {name: len(taken) for name, taken in times.items()} == {"a": 2, "b": 2}
    assert bench_measure.median_ratio([4.0, 9.0, 1.0], [2.0, 3.0, 1.0]) == 2


def test_steps_that_are_timed_leave_the_model():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten())
    before = model[0].weight.detach().clone()
    bench_measure.training_step(model, torch.randn(2, 2, 3, 3), bench_measure.make_optimizer(model))()
    torch.testing.assert_close(model[0].weight, before, rtol=1e-5, atol=1e-6)
    sparse = BlockSparseConv2d.from_dense(model[0], block=(4, 1))
    assert bench_measure.inference(nn.Sequential(sparse), torch.randn(1, 2, 3, 3))().is_inference()


def test_runs_as_a_program(model):
    command = [sys.executable, "-m", "resgrow", "bench", model, "--input", "3x8x8", "--repeats", "1", "--density", ".5"]
    done = subprocess.run([*command, "--threads", "1", "--batch", "2"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "inference, end to end" in done.stdout
