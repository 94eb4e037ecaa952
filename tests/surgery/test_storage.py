import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from surgery_nets import convnet, saliency_like, small_resnet
from torch import nn

from resgrow.nn import Residual
from resgrow.surgery import compact, load, load_extra, prune, save
from resgrow.surgery.layer_table import ROWS, build, describe

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
    assert again.state_dict().keys() == small.state_dict().keys()
    for name, tensor in small.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
        assert again.state_dict()[name].dtype == tensor.dtype
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in small.parameters()]
    with torch.no_grad():
        torch.testing.assert_close(again(X.to(dtype)), small(X.to(dtype)))
    again.train()(X.to(dtype)).sum().backward()


def test_every_row_survives_a_round_trip_with_uncommon_arguments() -> None:
    relu = nn.ReLU(inplace=True)
    gain_only = nn.BatchNorm2d(4)
    gain_only.register_parameter("bias", None)
    layers: list[nn.Module] = [
        nn.Conv2d(2, 4, (3, 1), stride=(1, 2), padding=(1, 0), dilation=2, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular"),
        nn.BatchNorm2d(4, eps=1e-3, momentum=None, affine=False, track_running_stats=False),
        gain_only,
        relu,
        nn.MaxPool2d((2, 1), stride=1, padding=0, dilation=2, ceil_mode=True),
        nn.AvgPool2d(2, (2, 1), padding=1, ceil_mode=True, count_include_pad=False, divisor_override=3),
        nn.AdaptiveAvgPool2d((None, 3)),
        nn.Identity(),
        nn.Dropout(0.25, inplace=True),
        relu,
        nn.Flatten(2, 3),
        nn.Linear(9, 2, bias=False),
        nn.Sequential(),
        Residual(nn.Identity()),
    ]
    model = nn.Sequential(*layers, *convnet(), small_resnet())
    described = json.loads(json.dumps(describe(model)))
    again = build(described)
    assert str(again) == str(model)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert describe(build(described)) == describe(model)
    kinds = {type(module) for module in model.modules()}
    assert kinds == {row.kind for row in ROWS.values()}


def test_extra_comes_back(tmp_path: Path) -> None:
    save(convnet(), tmp_path, {"accuracy": 0.99, "classes": ["a", "b"]})
    assert load_extra(tmp_path) == {"accuracy": 0.99, "classes": ["a", "b"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


class Doubled(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("model", "extra", "error", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.GELU())), {}, TypeError, r"got GELU at 1\.0"),
        (Doubled(2, 2), {}, TypeError, "got Doubled at the top"),
        (nn.Sequential(*[nn.Linear(2, 2)] * 2), {}, ValueError, "shared with 1.weight"),
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


def config(**entries: Any) -> Any:
    def edit(head: dict[str, Any]) -> dict[str, Any]:
        head["model"]["config"].update(entries)
        return head

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited(format="other"), "resgrow-model"),
        (edited(version=2), "got 2"),
        (edited(extra=None), "entries"),
        (edited(surprise=1), "surprise"),
        (edited(frozen=[1]), "entries"),
        (edited(training=1), "entries"),
        (edited(sha256="0"), "checksum"),
        (edited(tensors={}), "lists"),
        (edited(model={"type": "os.system", "config": {}, "children": {}}), "os.system"),
        (edited(model={"type": ["Linear"], "config": {}, "children": {}}), "known type"),
        (edited(model={"type": "Linear"}), "type, config and children"),
        (edited(model=3), "got 3"),
        (edited(model={"type": "Linear", "config": {"bias": True}, "children": {}}), "in_features"),
        (edited(model={"type": "ResNet", "config": {}, "children": {}}), "cannot be built"),
        (edited(model={"type": "Sequential", "config": {}, "children": {"a.b": {}}}), "type, config and children"),
        (config(out_features=4), r"got .*\[3\].* for bias"),
        (config(out_features=-1), "cannot be built"),
        (config(out_features="3"), "cannot be built"),
        (config(bias=False), "bias"),
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
    save(nn.Linear(2, 3), tmp_path)
    path = tmp_path / "model.json"
    head = json.loads(path.read_text())
    for _ in range(300):
        head["model"] = {"type": "Sequential", "config": {}, "children": {"0": head["model"]}}
    path.write_text(json.dumps(head))
    with pytest.raises(ValueError, match=r"nests|fit"):
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
