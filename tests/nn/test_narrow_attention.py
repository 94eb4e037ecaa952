"""Attention without some heads is attention whose heads give nothing: with every argument of torch's."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from resgrow.nn.attention import NarrowAttention
from resgrow.surgery.structure import Edit, mask, remove, structure
from resgrow.surgery.structure.heads import adapted


class Around(nn.Module):
    """The layer between two others, so that its heads are inside a model."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.before, self.attention = nn.Linear(5, 12), nn.MultiheadAttention(12, 4, **options)
        self.after = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after(self.attention(x, x, x, need_weights=False)[0])


def narrowed(**options: object) -> tuple[Around, Around, list[int]]:
    """A model without heads 1 and 3, and the same at full size, where they are zero."""
    torch.manual_seed(0)
    model = Around(**options).double().eval()
    if model.attention.out_proj.bias is not None:
        nn.init.normal_(model.attention.out_proj.bias)
    groups = structure(model, (torch.randn(2, 6, 5).double(),), "test").groups
    gone = {i: torch.tensor([False, True, False, True]) for i, group in enumerate(groups) if group.split_by}
    assert len(gone) == 1
    full = copy.deepcopy(model)
    mask(full, groups, gone)
    remove(Edit(model), groups, gone)
    assert type(model.attention) is NarrowAttention
    return model, full, [0, 2]


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"batch_first": True}, {"kdim": 7, "vdim": 9}], ids=str)
def test_every_argument(options: dict[str, object]) -> None:
    if "kdim" in options:
        torch.manual_seed(0)
        full = nn.MultiheadAttention(12, 4, **options).double()
        narrow = copy.deepcopy(full)
        narrow.__class__ = NarrowAttention
        kept = [0, 1, 2, 3]
    else:
        small, large, kept = narrowed(**options)
        narrow, full = small.attention, large.attention
    full.train(False)
    n, target, source = 3, 5, 6
    first = options.get("batch_first", False)

    def sequence(length: int, width: int) -> Tensor:
        return torch.randn(*((n, length) if first else (length, n)), width).double()

    q = sequence(target, 12)
    k, v = sequence(source, int(options.get("kdim", 12))), sequence(source, int(options.get("vdim", 12)))
    masks = [None, torch.rand(target, source) > 0.7, torch.randn(target, source).double()]
    paddings = [None, torch.arange(source).expand(n, -1) > torch.tensor([[3], [5], [4]])]
    for attn, padding, need, average in product(masks, paddings, [True, False], [True, False]):
        options_now = {"key_padding_mask": padding, "need_weights": need, "attn_mask": attn}
        got = narrow(q, k, v, average_attn_weights=average, **options_now)
        want = full(q, k, v, average_attn_weights=average, **options_now)
        torch.testing.assert_close(got[0], want[0], rtol=1e-10, atol=1e-12, equal_nan=True)
        if not need:
            assert got[1] is None
        elif not average:
            torch.testing.assert_close(got[1], want[1][:, kept], rtol=1e-10, atol=1e-12, equal_nan=True)
        else:
            assert got[1].shape == want[1].shape
    per_head = torch.randn(n * len(kept), target, source).double()
    everywhere = torch.zeros(n, 4, target, source).double()
    everywhere[:, kept] = per_head.view(n, len(kept), target, source)
    want = full(q, k, v, attn_mask=everywhere.flatten(0, 1))[0]
    torch.testing.assert_close(narrow(q, k, v, attn_mask=per_head)[0], want, rtol=1e-10, atol=1e-12)
    alone = [x[0] if first else x[:, 0] for x in (q, k, v)]
    torch.testing.assert_close(narrow(*alone)[0], full(*alone)[0], rtol=1e-10, atol=1e-12)
    with pytest.raises(RuntimeError, match="is_causal"):
        narrow(q, k, v, is_causal=True)


def test_gradients_and_dropout() -> None:
    model, full, _ = narrowed(batch_first=True)
    x = torch.randn(2, 6, 5).double()
    model(x).sum().backward()
    full(x).sum().backward()
    torch.testing.assert_close(model.before.weight.grad, full.before.weight.grad, rtol=1e-10, atol=1e-12)
    model.attention.dropout = 0.5
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    torch.testing.assert_close(model(x), full(x), rtol=1e-10, atol=1e-12)


def test_inside_torch_s_own_encoder() -> None:
    """Its fused path would take the layer's weights past the layer."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 4, 16, batch_first=True), 2).double().eval()
    x = torch.randn(2, 6, 12).double()
    groups = structure(encoder, (x,), "test").groups
    gone = {i: torch.arange(group.size) % 4 == 1 for i, group in enumerate(groups)}
    assert sum(bool(group.split_by) for group in groups) == 2
    full = copy.deepcopy(encoder)
    mask(full, groups, gone)
    edit = Edit(encoder)
    with torch.inference_mode():
        before = encoder(x)
        remove(edit, groups, gone)
        torch.testing.assert_close(encoder(x), full(x), rtol=1e-10, atol=1e-12)
        edit.undo()
        assert type(encoder.layers[0].self_attn) is nn.MultiheadAttention
        assert torch.equal(encoder(x), before)


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_what_has_no_narrow_form_keeps_its_heads(option: str) -> None:
    model = Around(batch_first=True, **{option: True}).double().eval()
    groups = structure(model, (torch.randn(2, 6, 5).double(),), "test").groups
    assert not any(group.split_by for group in groups)
    with pytest.raises(ValueError, match="add_bias_kv nor add_zero_attn"):
        adapted(model.attention, 4, 3)
