from __future__ import annotations

import torch
from torch import nn

from resgrow.experiments.summary import layer_table, move_counts, sizes


def network(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, width, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, 2))


def test_sizes_leave_out_zero_weights_and_biases_of_layers_but_not_those_of_norms():
    model = nn.Sequential(*network(2), nn.BatchNorm1d(2))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[3].bias[0] = 0
    assert not model[4].bias.any()
    found = sizes(model, torch.zeros(1, 1, 6, 6))
    assert found["stored_params"] == 18 + 64 + 2 + 4
    assert found["params"] == 9 + 64 + 1 + 4
    assert found["computed_macs"] == 18 * 16 + 64
    assert found["macs"] == 9 * 16 + 64


def test_layer_table_compares_by_name():
    rows = layer_table(network(4), network(1), torch.zeros(1, 1, 6, 6))
    assert [(row["name"], row["dense_width"], row["sized_width"]) for row in rows] == [("0", 4, 1), ("3", 2, 2)]
    assert [(row["dense_params"], row["sized_params"]) for row in rows] == [(36, 9), (130, 34)]


def test_a_layer_that_is_gone_has_width_zero():
    sized = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    rows = layer_table(network(4), sized, torch.zeros(1, 1, 6, 6))
    assert (rows[0]["sized_width"], rows[0]["sized_params"]) == (0, 0)


def test_move_counts():
    assert move_counts([{"accepted": True}, {"accepted": False}, {"accepted": True}]) == {"accepted": 2, "undone": 1}
