import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stored import assert_same
from surgery_nets import convnet, saliency_like, small_resnet
from torch import nn

from resgrow.nn import BlockSparseConv2d, BlockSparseLinear, Residual, Shift, TriStateReLU, Zero, Zeros
from resgrow.surgery import compact, load, load_extra, prune, save
from resgrow.surgery.layer_table import ROWS

X = torch.randn(2, 2, 11, 11)


@pytest.mark.parametrize("make", [convnet, small_resnet])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_compacted_models_come_back(tmp_path: Path, make: Any, dtype: torch.dtype) -> None:
    model = make()
    prune(model, saliency_like(model), sparsity=0.6, block="channel")
    small = compact(model, X).to(dtype, memory_format=torch.channels_last).eval()
    next(small.parameters()).requires_grad_(False)
    save(small, tmp_path / "deep" / "folder")
    again = load(str(tmp_path / "deep" / "folder"))
    assert str(again) == str(small)
    assert not again.training
    assert_same(again, small)
    with torch.no_grad():
        assert torch.equal(again(X.to(dtype)), small(X.to(dtype)))
    again.train()(X.to(dtype)).sum().backward()


def test_every_row_survives_a_round_trip_with_uncommon_arguments(tmp_path: Path) -> None:
    relu = nn.ReLU(inplace=True)
    gain_only = nn.BatchNorm2d(4)
    gain_only.register_parameter("bias", None)
    layers: list[nn.Module] = [
        nn.Conv1d(2, 4, 3, dilation=2),
        nn.Conv2d(2, 4, (3, 1), stride=(1, 2), padding=(1, 0), dilation=2, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular"),
        nn.Conv3d(2, 2, (1, 2, 3)),
        nn.ConvTranspose1d(2, 4, 3, bias=False),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
        nn.ConvTranspose3d(2, 2, 2),
        nn.BatchNorm1d(3),
        nn.BatchNorm2d(4, eps=1e-3, momentum=None, affine=False, track_running_stats=False),
        nn.BatchNorm3d(3, affine=False),
        gain_only,
        nn.LayerNorm((2, 3), eps=1e-3, bias=False),
        nn.LayerNorm(3, elementwise_affine=False),
        nn.GroupNorm(2, 4, eps=1e-3),
        nn.Embedding(5, 3, padding_idx=1, max_norm=2.0),
        relu,
        nn.ReLU6(),
        nn.LeakyReLU(0.2),
        nn.PReLU(3),
        nn.GELU("tanh"),
        nn.SiLU(inplace=True),
        nn.ELU(0.5),
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.Softmax(-1),
        nn.MaxPool2d((2, 1), stride=1, padding=0, dilation=2, ceil_mode=True),
        nn.AvgPool2d(2, (2, 1), padding=1, ceil_mode=True, count_include_pad=False, divisor_override=3),
        nn.AdaptiveAvgPool2d((None, 3)),
        nn.Identity(),
        nn.Dropout(0.25, inplace=True),
        relu,
        nn.Flatten(2, 3),
        nn.Linear(9, 2, bias=False),
        nn.Sequential(),
        nn.ModuleList([nn.ReLU()]),
        TriStateReLU(3, learn="width", inplace=True),
        sparse(nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), groups=2), (2, 1)),
        sparse(nn.Conv2d(4, 6, 3, bias=False).to(memory_format=torch.channels_last), (4, 2)),
        sparse(nn.Linear(5, 7).requires_grad_(False), (2, 2)),
        Residual(nn.Identity()),
        Zero(),
        Zeros(2, 6, -1),
        Shift(torch.randn(4, 1, 1)),
    ]
    model = nn.Sequential(*layers, *convnet(), small_resnet())
    save(model, tmp_path)
    again = load(tmp_path)
    assert str(again) == str(model)
    assert again[15] is again[32]
    assert_same(again, model)
    kinds = {type(module) for module in model.modules()}
    assert kinds == {row.kind for row in ROWS.values()}


def sparse(layer: nn.Conv2d | nn.Linear, block: tuple[int, int]) -> nn.Module:
    layer.weight.data[::2] = 0
    kind = BlockSparseConv2d if isinstance(layer, nn.Conv2d) else BlockSparseLinear
    return kind.from_dense(layer, block=block)  # type: ignore[arg-type]


def test_extra_comes_back(tmp_path: Path) -> None:
    save(convnet(), tmp_path, {"accuracy": 0.99, "classes": ["a", "b"]})
    assert load_extra(tmp_path) == {"accuracy": 0.99, "classes": ["a", "b"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


class Stateful(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)

    def get_extra_state(self) -> int:
        return 1


class Holding(nn.Module):
    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("held", tensor)


def tied_sparse() -> nn.Module:
    model = nn.Sequential(sparse(nn.Linear(4, 4), (2, 2)), sparse(nn.Linear(4, 4), (2, 2)))
    model[1].values = model[0].values
    return model


def nested(depth: int) -> nn.Module:
    module: nn.Module = nn.ReLU()
    for _ in range(depth):
        module = nn.Sequential(module)
    return module


@pytest.mark.parametrize(
    ("model", "extra", "error", "message"),
    [
        (nn.Sequential(Stateful()), {}, TypeError, "got Stateful at 0"),
        (nn.Sequential(nn.LazyLinear(2)), {}, TypeError, "not initialised for 0.weight"),
        (nn.Linear(2, 2, device="meta"), {}, TypeError, "meta tensor for weight"),
        (Holding(torch.zeros(2, dtype=torch.complex128)), {}, TypeError, "complex128"),
        (Holding(torch.ones(2, 2).to_sparse()), {}, TypeError, "dense"),
        (tied_sparse(), {}, ValueError, r"got 1\.values, which is 0\.values"),
        (nested(70), {}, ValueError, "nest"),
        (nn.Linear(2, 2), {"loss": float("nan")}, ValueError, "finite"),
        (nn.Linear(2, 2), {"loss": torch.ones(2)}, TypeError, "JSON"),
        (nn.Linear(2, 2), ["loss"], TypeError, "dict"),
    ],
)
def test_save_refuses_before_it_writes(
    tmp_path: Path, model: nn.Module, extra: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        save(model, tmp_path / "run", extra)
    assert not (tmp_path / "run").exists()


def test_save_over_another_model_replaces_it(tmp_path: Path) -> None:
    save(convnet(), tmp_path)
    save(nn.Linear(2, 3), tmp_path)
    assert str(load(tmp_path)) == str(nn.Linear(2, 3))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*resgrow\.save"):
        load(tmp_path / "nowhere")
    save(convnet(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="file"):
        load(tmp_path / "file")


def edited(**entries: Any) -> Any:
    return lambda head: {**head, **entries}


def module(**entries: Any) -> Any:
    """The entry of the model itself changed."""

    def edit(head: dict[str, Any]) -> dict[str, Any]:
        head["modules"][""].update(entries)
        return head

    return edit


def inner(name: str, **entries: Any) -> Any:
    """A part of it changed."""

    def edit(head: dict[str, Any]) -> dict[str, Any]:
        head["modules"][""][name].update(entries)
        return head

    return edit


def config(**entries: Any) -> Any:
    def edit(head: dict[str, Any]) -> dict[str, Any]:
        head["modules"][""]["layer"]["config"].update(entries)
        return head

    return edit


def tensor(**entries: Any) -> Any:
    def edit(head: dict[str, Any]) -> dict[str, Any]:
        head["modules"][""]["tensors"]["weight"].update(entries)
        return head

    return edit


def deep(levels: int) -> Any:
    nested: Any = "x"
    for _ in range(levels):
        nested = [nested]
    return {"shape": nested} if levels % 2 else nested


EMBEDDING = {
    "num_embeddings": 3,
    "embedding_dim": 2,
    "padding_idx": 7,
    "max_norm": None,
    "norm_type": 2.0,
    "scale_grad_by_freq": False,
    "sparse": False,
}
LAYER = {"type": "torch.nn.ReLU", "training": True, "numbers": {}, "tensors": {}, "layer": None}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited(format="other"), "resgrow-model"),
        (edited(version=3), "got 3"),
        (edited(version=True), "got True"),
        (edited(version=1), "entries"),
        (edited(extra=None), "entries"),
        (edited(surprise=1), "surprise"),
        (edited(sha256="0"), "checksum"),
        (edited(modules=3), "got 3"),
        (edited(modules={}), "begin with the model itself"),
        (edited(modules={"": None}), "type, training"),
        (edited(modules={"": {"same": ""}}), "before it"),
        (lambda head: {**head, "modules": {**head["modules"], "a.b": LAYER}}, "after the one that holds it"),
        (lambda head: {**head, "modules": {**head["modules"], "a.": LAYER}}, "after the one that holds it"),
        (lambda head: {**head, "modules": {**head["modules"], "a": {"same": "b"}}}, "before it"),
        (lambda head: {**head, "modules": {**head["modules"], "a": LAYER}}, "table"),
        (module(type=3), "type must be text"),
        (module(training=1), "training true or false"),
        (module(numbers={"in_features": {}}), "numbers must be"),
        (module(numbers={"in_features": "2"}), "numbers must be"),
        (module(numbers={"in_features": [[2]]}), "numbers must be"),
        (module(numbers={"forward": 2}), "numbers beside the config"),
        (module(tensors=[]), "by name"),
        (module(tensors={}), "lists"),
        (module(layer="Linear"), "row and config"),
        (module(layer={"row": "os.system", "config": {}}), "os.system"),
        (module(layer={"row": ["Linear"], "config": {}}), "known type"),
        (module(layer={"row": "Linear", "config": {"bias": True}}), "in_features"),
        (module(layer={"row": "ResNet", "config": {}}), "cannot be built"),
        (module(layer={"row": "Identity", "config": {}}), "contradict"),
        (module(layer={"row": "BlockSparseLinear", "config": {"block": [1, 1]}}), "cannot be built"),
        (module(type="builtins.object"), "contradict"),
        (module(layer=None), r"model=\.\.\."),
        (inner("numbers", in_features=1), "numbers beside the config"),
        (inner("tensors", weight=None), "lists"),
        (inner("tensors", weight={"same": "bias"}), "before it"),
        (inner("tensors", bias={"same": "weight"}), "lists"),
        (inner("tensors", more=None), "no tensor more"),
        (tensor(shape=[3, -2]), "sizes"),
        (tensor(shape=[2, 3]), "lists"),
        (tensor(shape=[True, 2]), "sizes"),
        (tensor(dtype="float64"), "lists"),
        (tensor(trainable=1), "sizes"),
        (tensor(trainable=None), "weight as a parameter"),
        (tensor(format="channels_last"), "format"),
        (tensor(format=["contiguous"]), "format"),
        (config(out_features=4), r"got \(3, 2\) for weight, layer wants \(4, 2\)"),
        (config(out_features=-1), "cannot be built"),
        (config(out_features="3"), "cannot be built"),
        (config(bias=False), "bias"),
        (config(bias=deep(900)), "nests|cannot be built|not valid"),
        (inner("tensors", weight=deep(900)), "nests|must have shape|not valid"),
        (module(layer={"row": "Embedding", "config": EMBEDDING}), "cannot be built"),
        (lambda head: [head], "format"),
    ],
)
def test_damaged_descriptions(tmp_path: Path, edit: Any, message: str) -> None:
    save(nn.Linear(2, 3), tmp_path)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("text", [b"", b'{"format"', b"\xff\xfe\x00", b"[" * 100_000])
def test_descriptions_that_are_not_json(tmp_path: Path, text: bytes) -> None:
    save(nn.Linear(2, 3), tmp_path)
    (tmp_path / "model.json").write_bytes(text)
    with pytest.raises(ValueError, match="not valid JSON"):
        load(tmp_path)


def test_layers_nested_without_end(tmp_path: Path) -> None:
    save(nested(3), tmp_path)
    path = tmp_path / "model.json"
    head = json.loads(path.read_text())
    for depth in range(4, 80):
        head["modules"][".".join("0" * depth)] = head["modules"]["0"]
    path.write_text(json.dumps(head))
    with pytest.raises(ValueError, match="nests"):
        load(tmp_path)


@pytest.mark.parametrize("length", [0, 5, 60, -1])
def test_truncated_tensors(tmp_path: Path, length: int) -> None:
    save(nn.Linear(2, 3), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load(tmp_path)


def test_tensors_that_are_damaged_though_the_checksum_fits(tmp_path: Path) -> None:
    save(nn.Linear(2, 3), tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()[:-4]
    (tmp_path / "model.safetensors").write_bytes(data)
    path = tmp_path / "model.json"
    head = {**json.loads(path.read_text()), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(head))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load(tmp_path)
