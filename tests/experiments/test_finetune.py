"""Architecture learning from trained weights, on images of a second: what is made, of what, and what is told."""

from __future__ import annotations

import shutil

import pytest
import torch
from alone import is_drawn, lines_of, made, told_in
from small import small_data

import resgrow
import resgrow.data
from resgrow.experiments.architecture import finetune, study
from resgrow.experiments.architecture.study import Study, afresh, inner_widths, pruned, widths
from resgrow.experiments.frame.runs import Runs
from resgrow.surgery import swap_activations
from resgrow.surgery.count import count_params

EXAMPLE = torch.zeros(1, 1, 8, 8)


@pytest.fixture
def data(monkeypatch):
    """Data, and trainings in batches of 16."""
    found = small_data(train=96, test=32)
    make_config = study.make_config
    monkeypatch.setattr(study, "make_config", lambda *given, **options: make_config(*given, **options, batch_size=16))
    monkeypatch.setattr(resgrow.data, "load", lambda name, data_dir: {"cifar10": found}[name])
    return found


def resnet():
    torch.manual_seed(1)
    return resgrow.nn.resnet(8, in_channels=1, num_classes=2)


def test_only_widths_inside_blocks_learn():
    gates = resgrow.Gates(swap_activations(resnet(), EXAMPLE, learn=inner_widths(resnet())))
    assert gates.widths() == widths(resnet()) == {"layer1.0.act1": 16, "layer2.0.act1": 32, "layer3.0.act1": 64}
    assert len(gates.parameters()) == 3  # no depth gates


@pytest.mark.parametrize("share", [0.8, 0.3])
def test_pruned_to_as_many_parameters(share):
    model = resnet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = int(share * count_params(model))
    left = count_params(pruned(model, wanted, EXAMPLE))
    assert wanted - 2 * 9 * 64 < left <= wanted  # the dearest channel: 64 inputs, 64 outputs, nine taps each
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_block_keeps_a_channel():
    assert widths(pruned(resnet(), 100, EXAMPLE)) == dict.fromkeys(widths(resnet()), 1)


def test_the_smallest_channels_go():
    model = resnet()
    with torch.no_grad():
        for name in ("conv1", "conv2"):
            dim = 0 if name == "conv1" else 1
            model.layer3[0].get_submodule(name).weight.narrow(dim, 5, 40).mul_(1e-3)
    small = pruned(model, count_params(model) - 40 * (9 * 32 + 9 * 64 + 2), EXAMPLE)
    assert widths(small) == {**widths(model), "layer3.0.act1": 24}


def test_afresh_starts_as_a_new_network_does():
    small = pruned(resnet(), 40_000, EXAMPLE)
    again = afresh(small, 7)
    assert widths(again) == widths(small)
    assert not again.layer3[0].bn2.weight.any()
    weight = again.layer3[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * weight.shape[0])) ** 0.5, rel=0.1)
    assert torch.equal(weight, afresh(small, 7).layer3[0].conv2.weight)
    assert not torch.equal(weight, afresh(small, 8).layer3[0].conv2.weight)


def test_gates_start_from_the_base_and_controls_have_their_size(data, tmp_path):
    made = Study(Runs(tmp_path, "finetune"), data, "resnet8", 0, 4, 2)
    made.magnitude(0.1)
    made.scratch(0.1)
    made.plain()
    base, gates, magnitude, scratch, plain = made.runs
    assert [run["what"] for run in made.runs] == ["base", "gates", "magnitude", "scratch", "plain"]
    assert gates["before"] == plain["before"] == base["accuracy"] > 0.9
    assert gates["params"] < base["params"] == plain["params"]
    assert gates["macs"] < base["macs"]
    # So few steps close whole blocks, and of single channels one stays in each.
    assert gates["params"] == scratch["params"]
    assert gates["widths"] == scratch["widths"] == dict.fromkeys(base["widths"], 0)
    assert magnitude["widths"] == dict.fromkeys(base["widths"], 1)
    assert gates["deviation"] <= 1e-12
    assert len(gates["curve"]) == 2 * 6
    assert scratch["before"] < 0.9 < scratch["accuracy"]


def test_the_base_is_made_once_and_again_if_it_got_lost(data, tmp_path):
    made = Study(Runs(tmp_path, "finetune"), data, "resnet8", 0, 2, 1)
    first = made.base().state_dict()
    again = made.base().state_dict()
    shutil.rmtree(tmp_path / "finetune")
    lost = made.base().state_dict()
    assert len(list(made.runs)) == 1
    for name, value in first.items():
        assert torch.equal(value, again[name])
        torch.testing.assert_close(value, lost[name])


def test_parts_bring_what_they_need_and_the_report_tells(data, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "COEFFICIENTS", (0.1, 0.2))
    monkeypatch.setattr(finetune, "SCRATCH", (0.2,))
    made(finetune.EXPERIMENT, tmp_path, 2, 3, "scratch")
    lines = lines_of(tmp_path)
    assert [(run["what"], run.get("gates"), run["seed"]) for run in lines] == [
        (what, coefficient, seed)
        for seed in (0, 1)
        for what, coefficient in (("base", None), ("gates", 0.2), ("scratch", 0.2))
    ]
    assert lines[1]["fine"] == 1
    made(finetune.EXPERIMENT, tmp_path, 2, 3, "scratch", "magnitude", "plain")
    told = told_in(tmp_path)
    rows = [row.split(" | ") for row in told.splitlines() if row.startswith("| ")][2:]
    assert [(row[0], row[1], row[2], row[3]) for row in rows] == [
        ("| base (resnet8)", "", "3", "2"),
        ("| plain", "", "3 + 1", "2"),
        ("| gates", "0.1", "3 + 1", "2"),
        ("| magnitude", "0.1", "3 + 1", "2"),
        ("| gates", "0.2", "3 + 1", "2"),
        ("| magnitude", "0.2", "3 + 1", "2"),
        ("| scratch", "0.2", "4", "2"),
    ]
    assert rows[0][4] == "16-32-64, 16-32-64"
    assert rows[0][6] == rows[1][6] == "100.0 ± 0.0"
    assert is_drawn(tmp_path)
    assert made(finetune.EXPERIMENT, tmp_path, 2, 3) == ""


def test_part_of_the_results_is_told():
    run = {"what": "gates", "model": "resnet8", "epochs": 5, "fine": 2, "seed": 0, "gates": 0.1, "params": 10}
    run |= {"macs": 2_000_000, "widths": {"a": 3, "b": 4}, "before": 0.7, "accuracy": 0.75, "deviation": 2e-15}
    told = finetune.tell([run])
    assert "| gates | 0.1 | 5 + 2 | 1 | 3-4 | 10 |  | 2.00 | 70.00 | 75.00 |" in told
    assert "at most 2.0e-15" in told
