"""profile: every number by hand, on layers of all kinds; and that the model is left as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from structure_nets import Net
from surgery_nets import convnet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import resgrow
from resgrow.nn import BlockSparseConv2d, BlockSparseLinear, lenet5, resnet
from resgrow.surgery import Masks, Profile, compact, count_macs, count_params, profile


def counts(model: nn.Module, *inputs: Tensor, masks: Any = None) -> Profile:
    return profile(model, inputs, masks=masks, memory=False)


def test_lenet_by_hand() -> None:
    for batch in (1, 3):
        found = profile(lenet5(), torch.zeros(batch, 1, 28, 28))
        rows = {row.name: row for row in found.layers}
        assert list(rows) == list("0123456789")
        assert {name: row.params for name, row in rows.items() if row.params} == {
            "0": 520,
            "3": 25_050,
            "7": 400_500,
            "9": 5_010,
        }
        macs = {"0": 24 * 24 * 20 * 25, "3": 8 * 8 * 50 * 500, "7": 800 * 500, "9": 500 * 10}
        assert {name: row.macs for name, row in rows.items() if row.macs} == macs
        assert (found.params, found.macs, found.batch) == (431_080, sum(macs.values()), batch)
        assert [row.width for row in found.layers] == [20, None, None, 50, None, None, None, 500, None, 10]
        floats = [20 * 24 * 24, 20 * 12 * 12, 20 * 12 * 12, 50 * 8 * 8, 800, 800, 0, 500, 500, 10]
        assert [row.activation_bytes for row in found.layers] == [4 * batch * count for count in floats]
        assert rows["2"].kind == "ReLU"
        assert found.widths() == {"0": 20, "3": 50, "7": 500, "9": 10}
        assert found["7"] is rows["7"]
    with pytest.raises(KeyError):
        found["11"]


def test_resnet20_has_the_macs_the_paper_gives() -> None:
    x = torch.zeros(1, 3, 32, 32)
    found = counts(resnet(20), x)
    assert found.macs == 40_813_184 == count_macs(resnet(20), x)  # 40.6 million, and shortcut projections
    assert found["layer3.2.conv2"].macs == 64 * 64 * 9 * 64
    assert found["layer1.0"].kind == "BasicBlock"
    assert found["layer1.0"].activation_bytes == 4 * 16 * 32 * 32  # the sum
    assert (found["layer1.0"].width, found["layer1.0"].params) == (None, 0)
    order = [row.name for row in found.layers if row.name.startswith("layer2.0")]
    assert order[:3] == ["layer2.0", "layer2.0.downsample.0", "layer2.0.downsample.1"]  # as they run
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        resnet(20).eval()(x)
    assert counter.get_total_flops() == 2 * found.macs


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "grouped": (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2), (3, 4, 9, 9), 16 * 6 * 2 * 9, 6),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (3, 4, 5, 5), 25 * 4 * 9, 4),
    "1d": (lambda: nn.Conv1d(4, 6, 3), (3, 4, 9), 7 * 6 * 4 * 3, 6),
    "3d": (lambda: nn.Conv3d(2, 3, 2), (3, 2, 4, 4, 4), 27 * 3 * 2 * 8, 3),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (3, 4, 5, 5), 25 * 4 * 6 * 9, 6),
    "transposed in groups": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), (3, 4, 5), 5 * 4 * 3 * 3, 6),
    "sequences": (lambda: nn.Linear(4, 6), (3, 7, 4), 7 * 24, 6),
    "lstm": (lambda: nn.LSTM(4, 5, 2, batch_first=True), (3, 7, 4), 7 * 4 * (5 * 4 + 5 * 5 + 2 * 5 * 5), 5),
    "both ways": (lambda: nn.GRU(4, 5, batch_first=True, bidirectional=True), (3, 7, 4), 7 * 2 * 3 * 5 * 9, 10),
    "norm": (lambda: nn.GroupNorm(2, 4), (3, 4, 5), 0, 4),
    "layer norm": (lambda: nn.LayerNorm((2, 4)), (3, 2, 4), 0, 4),
    "gain": (lambda: Net(lambda n, x: x * n.gain, gain=nn.Parameter(torch.ones(5))), (3, 5), 0, 5),
    "matrix and vector": (lambda: Net(lambda n, x: x @ n.w, w=nn.Parameter(torch.ones(5))), (3, 5), 5, 0),
    "einsum": (
        lambda: Net(lambda n, x: torch.einsum("nti,io->nto", x, n.w), w=nn.Parameter(torch.ones(5, 2))),
        (3, 4, 5),
        40,
        2,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_products_of_all_kinds(name: str) -> None:
    make, shape, macs, width = LAYERS[name]
    layer = make()
    found = counts(layer, torch.randn(shape))
    assert found.macs == macs
    assert found.params == count_params(layer)
    assert [(row.name, row.width) for row in found.layers] == [("", width or None)]
    assert found.notes == ()


def test_bilinear_layers_and_those_of_blocks() -> None:
    assert counts(nn.Bilinear(3, 4, 5), torch.randn(2, 3), torch.randn(2, 4)).macs == 60
    there = torch.zeros(2, 8, 3, 3, dtype=torch.bool)
    there[0, :4, 1] = True  # 12 blocks of 16x1
    sparse = BlockSparseConv2d.from_dense(nn.Conv2d(8, 32, 3, padding=1), there)
    found = counts(sparse, torch.randn(2, 8, 5, 5))
    assert (found.macs, found.params, found.layers[0].width) == (25 * 12 * 16, 12 * 16 + 32, 32)
    linear = BlockSparseLinear.from_dense(nn.Linear(8, 32), there[:, :, 1, 1])
    mask = torch.zeros(32, 8, dtype=torch.bool)
    mask[:16, :2] = True
    found = counts(linear, torch.randn(2, 7, 8), masks=Masks(linear, {"weight": mask}))
    assert (found.macs, found.live_macs) == (7 * 4 * 16, 7 * 2 * 16)
    assert (found.params, found.live_params) == (4 * 16 + 32, 2 * 16 + 32)


def attention_macs(tokens: int, width: int) -> tuple[int, int]:
    """Of queries, keys, values and the two products of attention; and of the projection."""
    return tokens * 3 * width * width + 2 * tokens * tokens * width, tokens * width * width


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_by_hand(need_weights: bool) -> None:
    block = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(3, 5, 8)
    found = profile(block, {"query": x, "key": x, "value": x, "need_weights": need_weights}, memory=False)
    inner, outer = attention_macs(5, 8)
    assert [(row.name, row.macs, row.params) for row in found.layers] == [("", inner, 216), ("out_proj", outer, 72)]
    assert (found.layers[0].width, found.layers[0].kind) == (2, "MultiheadAttention")
    assert found["out_proj"].calls == 0  # its weight is taken, and it never runs
    assert found["out_proj"].activation_bytes == 4 * x.numel()


def test_transformer_layers_count_what_their_fast_path_hides() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.inference_mode():
        found = counts(layer, torch.randn(3, 5, 8))
    assert found.macs == sum(attention_macs(5, 8)) + 2 * 5 * 8 * 16
    assert torch.backends.mha.get_fastpath_enabled()
    assert found.params == count_params(layer)
    assert found.layers[0].kind == "TransformerEncoderLayer"
    assert found.layers[0].activation_bytes == 4 * 3 * 5 * (8 + 16 + 8)  # two sums and the activation between


def test_modules_that_run_twice_and_parameters_that_are_shared() -> None:
    layer = nn.Linear(4, 4)
    found = counts(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(2, 7, 4))
    assert [(row.name, row.calls, row.params, row.macs) for row in found.layers] == [("0", 2, 20, 224), ("1", 1, 0, 0)]
    assert found["0"].activation_bytes == 2 * 4 * 2 * 7 * 4
    tied = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    tied[1].weight = tied[0].weight
    found = counts(tied, torch.zeros(2, 3, dtype=torch.long))
    assert [(row.params, row.macs, row.width) for row in found.layers] == [(24, 0, 4), (0, 72, 6)]


def test_nested_inputs_and_outputs_of_functions() -> None:
    class Scores(nn.Module):
        def forward(self, *, query: Tensor, key: Tensor, scale: float) -> dict[str, list[Tensor]]:
            return {"scores": [query @ key.transpose(1, 2) * scale]}

    query, key = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    found = profile(Scores(), {"query": query, "key": key, "scale": 0.5}, memory=False)
    assert [(row.kind, row.macs, row.params) for row in found.layers] == [("Scores", 60, 0)]
    assert found.activation_bytes == 4 * 2 * 15


def test_what_works_in_place_takes_no_memory() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Identity(), nn.Unflatten(1, (2, 3)), nn.Dropout())
    assert [row.activation_bytes for row in counts(model, torch.randn(5, 4)).layers] == [120, 0, 0, 0, 0]


def test_masks_by_hand() -> None:
    model = lenet5()
    mask = torch.ones(500, 800, dtype=torch.bool)
    mask[:, :600] = False
    masks = Masks(model, {"7.weight": mask, "7.bias": torch.zeros(500, dtype=torch.bool)})
    found = counts(model, torch.zeros(1, 1, 28, 28), masks=masks)
    assert (found["7"].params, found["7"].live_params) == (400_500, 100_000)
    assert (found["7"].macs, found["7"].live_macs) == (400_000, 100_000)
    assert found.macs - found.live_macs == 300_000
    assert found.live_params == masks.live_parameters()
    assert "live MACs" in str(found)
    assert "live MACs" not in str(counts(model, torch.zeros(1, 1, 28, 28)))


def test_masks_of_slices_copies_and_transposed_weights() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    mask = torch.ones(24, 8, dtype=torch.bool)
    mask[:8] = False  # no queries: a third of the projections, and none of the products that have no weight
    x, other = torch.randn(3, 5, 8), torch.randn(3, 2, 8)
    found = counts(attention, x, other, other, masks=Masks(attention, {"in_proj_weight": mask}))
    assert found.macs - found.live_macs == 5 * 64
    half = nn.ConvTranspose2d(2, 3, 2, bias=False)
    mask = torch.rand(half.weight.shape) < 0.5
    with torch.autocast("cpu", torch.bfloat16):
        found = counts(half, torch.randn(1, 2, 4, 4), masks=Masks(half, {"weight": mask}))
    assert found.live_macs == 16 * int(mask.sum())
    last = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    mask = torch.rand(last.weight.shape) < 0.3
    found = counts(last, torch.randn(2, 4, 5, 5), masks=Masks(last, {"weight": mask}))
    assert found.live_macs == 9 * int(mask.sum())


def test_memory_saved_for_backward_by_hand() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    inputs, hidden = 3 * 4 * 4, 3 * 8 * 4  # the second layer's input is what ReLU needs
    assert profile(model, x).saved_bytes == inputs + hidden
    model[0].requires_grad_(False)
    assert profile(model, x).saved_bytes == hidden
    model.requires_grad_(False)
    assert profile(model, x).saved_bytes == 0
    norm = nn.BatchNorm2d(5)
    assert profile(norm, torch.randn(3, 5, 2, 2)).saved_bytes == 4 * (60 + 2 * 5)  # batch statistics, not running ones
    assert profile(nn.Sequential(nn.Dropout()), torch.randn(3, 8, requires_grad=True)).saved_bytes > 0


def test_peak_in_inference_by_hand() -> None:
    model = nn.Sequential(*(nn.Tanh() for _ in range(4)))
    found = profile(model, torch.randn(10, 100))
    assert found.peak_bytes == 2 * 4000
    assert found.activation_bytes == 4 * 4000
    assert profile(model, torch.randn(10, 100), memory=False).peak_bytes is None


def test_models_without_memory_are_counted() -> None:
    x = torch.randn(3, 1, 28, 28)
    real, found = profile(lenet5(), x), profile(lenet5().to("meta"), x.to("meta"), latency=True)
    assert found.layers == real.layers
    assert found.saved_bytes == real.saved_bytes
    assert (found.peak_bytes, found.seconds) == (None, None)
    assert found.notes == ("peaks and times are not known on meta: only on cpu and cuda",)


class Restless(nn.Module):
    """Writes to its buffers and draws random numbers, whatever its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.last = x[0]
        return self.norm(x + torch.randn_like(x))


def test_no_trace_is_left() -> None:
    model = nn.Sequential(Restless(), nn.Linear(4, 4)).train()
    model[1].eval()
    model[1].weight.grad = torch.ones(4, 4)
    calls: list[str] = []
    model.register_forward_hook(lambda *_: calls.append("mine"))
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]
    buffers = dict(model.named_buffers())
    state = {name: (value, value.clone(), value._version) for name, value in model.state_dict(keep_vars=True).items()}
    flags, seed = [module.training for module in model.modules()], torch.get_rng_state()
    for inputs in (torch.randn(6, 4), torch.randn(6, 5)):
        torch.set_rng_state(seed)
        if inputs.shape[1] == 5:
            with pytest.raises(ValueError, match=r"profile: the model must run on example_inputs \(got "):
                profile(model, inputs)
        else:
            profile(model, inputs, latency=True)
        assert [module.training for module in model.modules()] == flags
        assert torch.equal(torch.get_rng_state(), seed)
        assert [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()] == hooks
        assert all(model.get_buffer(name) is buffer for name, buffer in buffers.items())
        for name, value in model.state_dict(keep_vars=True).items():
            same, copy, version = state[name]
            assert value is same
            assert torch.equal(value, copy)
            assert value._version == version
        assert torch.equal(model[1].weight.grad, torch.ones(4, 4))
    assert calls


def test_latency_of_each_layer_and_of_the_model() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x)) + x

    model = nn.Sequential(Twice(), nn.ReLU(inplace=True))
    found = profile(model, torch.randn(4, 8), latency=True, memory=False)
    assert found.seconds is not None
    assert found.seconds > 0
    assert [row.name for row in found.layers] == ["0", "0.inner", "1"]
    assert all(row.seconds is not None and row.seconds > 0 for row in found.layers)
    assert str(found).splitlines()[0].endswith("ms")
    without = counts(model, torch.randn(4, 8))
    assert without.seconds is None
    assert without.layers[0].seconds is None


def test_what_fails_in_part_is_noted() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        if net.training:
            raise RuntimeError("only for inference\nand a second line")
        return x * 2

    found = profile(Net(forward), torch.randn(2, 3))
    assert found.saved_bytes is None
    assert found.notes == ("what is saved for backward is not known: only for inference",)
    assert str(found).splitlines()[-1] == found.notes[0]


def test_operations_without_a_formula_are_named() -> None:
    with torch.library._scoped_library("resgrow_test", "DEF") as library:
        library.define("product(Tensor x, Tensor w) -> Tensor")
        library.impl("product", lambda x, w: x @ w, "CompositeExplicitAutograd")
        net = Net(lambda n, x: torch.ops.resgrow_test.product(x, n.w), w=nn.Parameter(torch.ones(5, 2)))
        found = counts(net, torch.randn(3, 5))
    assert found.macs == 0
    assert found.notes == ("products of resgrow_test.product.default are not counted: no formula",)


def test_compact_before_and_after() -> None:
    model = convnet().eval()
    x = torch.randn(2, 2, 11, 11)
    masks = resgrow.prune(model, resgrow.saliency(model, method="magnitude"), sparsity=0.5, block="channel")
    before = profile(model, x, masks=masks)
    after = profile(compact(model, x), x)
    assert before.live_params == after.params < before.params
    assert before.live_macs == after.macs < before.macs == count_macs(model, x)
    ratio = before.compare(after).totals()
    assert ratio["live_params_ratio"] == 1
    dense = profile(convnet(), x).compare(after)
    assert dense.totals()["live_macs_ratio"] == after.macs / before.macs
    assert dense.totals()["saved_bytes_ratio"] == after.saved_bytes / before.saved_bytes
    narrower = next(row for row in dense.to_rows() if row["width_before"] != row["width_after"])
    assert (narrower["width_before"], narrower["width_after"]) == (
        before[narrower["name"]].width,
        after[narrower["name"]].width,
    )
    text = str(dense)
    assert f"{narrower['width_before']} → {narrower['width_after']}" in text
    assert f"{before.params:,} → {after.params:,}" in text.splitlines()[-2]


def test_layers_that_are_gone_or_new() -> None:
    x = torch.randn(2, 4)
    first = counts(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), x)
    last = nn.Sequential(nn.Linear(4, 3), nn.Identity())
    last.add_module("extra", nn.Linear(3, 2))
    compared = first.compare(counts(last, x))
    rows = compared.to_rows()
    assert [(row["name"], row["state"]) for row in rows] == [
        ("0", "kept"),
        ("1", "kept"),
        ("extra", "new"),
        ("2", "gone"),
    ]
    assert (rows[0]["live_params_ratio"], rows[2]["live_params_before"], rows[3]["width_after"]) == (0.5, None, None)
    lines = str(compared).splitlines()
    assert lines[3].split() == ["extra", "2", "8", "new", "6", "16", "B"]
    assert "gone" in lines[4]
    assert lines[5].startswith("all")
    assert "44 → 23" in lines[5]
    with pytest.raises(
        ValueError, match=r"compare: both profiles must be of the same number of samples \(got 2 and 1\)"
    ):
        first.compare(counts(last, x[:1]))


def test_rows_and_dictionaries_go_into_json() -> None:
    found = profile(lenet5(), torch.zeros(1, 1, 28, 28))
    assert found.to_rows()[0]["name"] == "0"
    told = json.loads(json.dumps(found.compare(found).as_dict()))
    assert told["before"]["totals"]["macs"] == found.macs
    assert told["totals"]["live_macs_ratio"] == 1
    assert len(told["after"]["layers"]) == len(found.layers)
    table = str(found).splitlines()
    assert table[0].split() == ["layer", "kind", "width", "params", "MACs", "activations"]
    assert table[1].split() == ["0", "Conv2d", "20", "520", "288,000", "45.0", "KiB"]
    assert table[-2].split()[:3] == ["all", "431,080", "2,293,000"]
    assert repr(found) == "Profile(10 layers, 431,080 parameters, 2,293,000 MACs)"


@pytest.mark.parametrize(
    ("inputs", "error", "rule"),
    [
        (torch.zeros(0, 4), ValueError, "at least one sample"),
        ("text", TypeError, "example_inputs must be a tensor"),
        ({}, TypeError, "must be a tensor or a sequence"),
        ({"scale": 2}, TypeError, "must be a tensor or a sequence"),
        ((), TypeError, "must be a tensor or a sequence"),
        (torch.zeros(2, 5), ValueError, "must run on example_inputs"),
    ],
)
def test_wrong_inputs(inputs: Any, error: type[Exception], rule: str) -> None:
    with pytest.raises(error, match=f"profile: .*{rule}"):
        profile(nn.Linear(4, 2), inputs)


def test_wrong_models_and_masks() -> None:
    with pytest.raises(ValueError, match=r"profile: parameters must be initialised \(got lazy ones\)"):
        profile(nn.LazyLinear(3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"profile: modules must be Python's \(got a scripted one\)"):
        profile(torch.jit.script(nn.Linear(4, 3)), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="mask must have its parameter's shape"):
        profile(nn.Linear(4, 2), torch.zeros(2, 4), masks={"weight": torch.ones(2, 3, dtype=torch.bool)})


def test_torchvision_models() -> None:
    models = pytest.importorskip("torchvision.models")
    found = counts(models.resnet18(), torch.zeros(1, 3, 224, 224))
    assert (found.params, found.macs) == (11_689_512, 1_814_073_344)
    with torch.device("meta"):
        vit = models.vit_b_16()
    tokens, width, hidden, layers = 197, 768, 3072, 12
    by_hand = 196 * 768 * width + layers * (sum(attention_macs(tokens, width)) + 2 * tokens * width * hidden) + 768_000
    found = profile(vit.to_empty(device="cpu"), torch.zeros(1, 3, 224, 224), memory=False)
    assert found.macs == by_hand
    assert 17.5e9 < found.macs < 17.7e9
    attention = found["encoder.layers.encoder_layer_3.self_attention"]
    assert (attention.width, attention.macs) == (12, attention_macs(tokens, width)[0])


def test_transformers_models() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(**sizes, intermediate_size=24, max_position_embeddings=8)
    model = transformers.BertModel(config)
    ids = torch.randint(32, (2, 6))
    found = profile(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    inner, outer = attention_macs(6, 16)
    assert found.macs == 2 * (inner + outer + 2 * 6 * 16 * 24) + 16 * 16
    assert found.params == count_params(model)
    assert found["encoder.layer.1.attention.self"].width == 4
    assert found.saved_bytes
