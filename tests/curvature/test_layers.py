"""Every function that has a rule, against one sample at a time in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from measured import Logits, check, fast, noise, randomised
from torch import Tensor, nn

from resgrow.nn import TriStateReLU

SAMPLES = 4

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "linear on positions": (lambda: nn.Linear(5, 3), (2, 3, 5)),
    "linear without bias": (lambda: nn.Linear(5, 3, bias=False), (7, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3, stride=2, padding=1), (3, 9)),
    "conv1d depthwise": (lambda: nn.Conv1d(6, 6, 4, padding="same", groups=6), (6, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (3, 7, 6)),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 5, 5)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 5, 6)),
    "conv2d same": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same", dilation=(1, 2)), (2, 6, 6)),
    "conv2d valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid"), (2, 4, 4)),
    "conv2d reflected": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 4, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 3, 2), stride=(1, 2, 1), padding=1), (2, 3, 5, 4)),
    "conv3d grouped": (lambda: nn.Conv3d(4, 4, 2, groups=2, padding="same", dilation=2), (4, 3, 3, 4)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 4)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2, output_padding=1), (4, 3, 4)),
    "transposed 2d dilated": (
        lambda: nn.ConvTranspose2d(2, 3, 3, stride=1, padding=2, dilation=3, output_padding=2),
        (2, 4, 3),
    ),
    "transposed 2d dilated, unpadded": (lambda: nn.ConvTranspose2d(2, 3, 2, dilation=2, output_padding=1), (2, 4, 3)),
    "transposed depthwise": (lambda: nn.ConvTranspose2d(3, 3, 3, stride=3, padding=1, groups=3), (3, 3, 3)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 4, 2, stride=2, padding=1, groups=2), (2, 3, 3, 2)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(5), (5,)),
    "batch norm 1d on sequences": (lambda: nn.BatchNorm1d(5), (5, 3)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(3), (3, 2, 5)),
    "batch norm 3d": (lambda: nn.BatchNorm3d(3), (3, 2, 2, 3)),
    "layer norm": (lambda: nn.LayerNorm(5), (3, 5)),
    "layer norm over more": (lambda: nn.LayerNorm((3, 5), bias=False), (2, 3, 5)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (6, 5)),
    "instance norm": (lambda: nn.InstanceNorm2d(3, affine=True), (3, 5, 2)),
    "instance norm, tracking": (lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (3, 5)),
    "rms norm": (lambda: nn.RMSNorm(5), (3, 5)),
    "prelu": (lambda: nn.PReLU(), (3, 5)),
    "tri-state relu": (lambda: TriStateReLU(3), (3, 4, 2)),
    "tri-state relu of vectors": (lambda: TriStateReLU(8), (8,)),
    "prelu of vectors": (lambda: nn.PReLU(3), (3,)),
    "prelu per channel": (lambda: nn.PReLU(3), (3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    make, shape = LAYERS[name]
    with fast():
        check(randomised(Logits(make())), noise(SAMPLES, *shape))


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_any_number_of_samples(samples):
    layers = [nn.Conv1d(2, 3, 2), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)]
    with fast():
        check(randomised(Logits(nn.Sequential(*layers))), noise(samples, 2, 5))


class Table(nn.Module):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 3, **options)

    def forward(self, index: Tensor) -> Tensor:
        return self.table(index)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"padding_idx": -1}, {"sparse": True}])
@pytest.mark.parametrize("index", [[0, 5, 2, 1], [[0, 2, 0, 0], [2, 2, 5, 1], [1, 5, 1, 5], [3, 4, 3, 2]]])
def test_embedding_adds_repeated_indices_before_squaring(options, index):
    with fast():
        check(randomised(Logits(Table(**options))), torch.tensor(index))


@pytest.mark.parametrize("options", [{"scale_grad_by_freq": True}, {"max_norm": 1.0}])
def test_embeddings_without_a_rule_go_one_by_one(options):
    model = randomised(Logits(Table(**options)))
    with pytest.warns(UserWarning, match=r"no rule.*'model.table.weight' \(embedding\)"):
        check(model, torch.tensor([[0, 2, 0, 0], [2, 2, 5, 1], [1, 5, 1, 5], [3, 4, 3, 2]]))


class SelfAttention(nn.Module):
    def __init__(self, **options: bool | int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, **options)
        self.masks: dict[str, Tensor | bool] = {}

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        samples = len(x)
        x = x if self.attention.batch_first else x.transpose(0, 1)
        masks = dict(self.masks)
        if "per_head" in masks:
            masks["attn_mask"] = masks.pop("per_head").repeat(samples, 1, 1)
        out, shares = self.attention(x, x, x, key_padding_mask=hidden, **masks)
        out = out if self.attention.batch_first else out.transpose(0, 1)
        return out if shares is None else torch.cat([out.flatten(1), shares.flatten(1)], 1)


BLOCKED = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
MASKS: dict[str, dict[str, Tensor | bool]] = {
    "none": {},
    "no weights": {"need_weights": False},
    "weights per head": {"average_attn_weights": False},
    "boolean": {"attn_mask": BLOCKED},
    "boolean, no weights": {"attn_mask": BLOCKED, "need_weights": False},
    "additive": {"attn_mask": torch.linspace(-1, 1, 25, dtype=torch.float64).view(5, 5)},
    "per head": {"per_head": torch.linspace(-1, 1, 50, dtype=torch.float64).view(2, 5, 5)},
    "causal": {"attn_mask": BLOCKED, "is_causal": True, "need_weights": False},
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", MASKS)
def test_self_attention(masks, batch_first):
    model = SelfAttention(batch_first=batch_first)
    model.masks = MASKS[masks]
    with fast():
        check(randomised(Logits(model)), noise(SAMPLES, 5, 6))


@pytest.mark.parametrize("weights", [True, False])
def test_attention_with_padding(weights):
    model = SelfAttention(batch_first=True, bias=False)
    model.masks = {"need_weights": weights, "attn_mask": BLOCKED}
    hidden = torch.arange(5) >= torch.tensor([5, 3, 2, 4])[:, None]
    with fast():
        check(randomised(Logits(model)), noise(SAMPLES, 5, 6), hidden)


class CrossAttention(nn.Module):
    def __init__(self, **options: bool | int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 3, batch_first=True, **options)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.attention(x, memory, memory, need_weights=False)[0]


@pytest.mark.parametrize(("options", "width"), [({}, 6), ({"kdim": 5, "vdim": 5}, 5), ({"bias": False}, 6)])
def test_cross_attention(options, width):
    with fast():
        check(randomised(Logits(CrossAttention(**options))), noise(SAMPLES, 3, 6), noise(SAMPLES, 5, width))


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_without_a_rule_goes_one_by_one(options):
    with pytest.warns(UserWarning, match="no rule.*multi_head_attention_forward"):
        check(randomised(Logits(SelfAttention(batch_first=True, **options))), noise(SAMPLES, 5, 6))
