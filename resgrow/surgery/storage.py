"""Models in a folder: ``model.safetensors`` holds the tensors, ``model.json`` the structure. Nothing is unpickled."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from resgrow._files import write_atomic
from resgrow.surgery.layer_table import build, describe

FORMAT = "resgrow-model"
VERSION = 1
_KEYS = {"format", "version", "model", "tensors", "sha256", "frozen", "training", "extra"}


def save(model: nn.Module, folder: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write a model of the layer types in `layer_table` to ``folder``, which is made if need be.

    Each file is replaced as a whole. The description carries a checksum of the tensors, so two files that do not belong
    together (a process killed between the two) are noticed by `load`.

    Args:
        model: `nn.Sequential` or `resgrow.nn.ResNet`; tensors are stored in their dtype, from any device.
        folder: where to write.
        extra: anything JSON can hold, given back by `load_extra`.

    Raises:
        TypeError: a layer without a row in the table, extra that is not a JSON object.
        ValueError: shared parameters, or NaN or infinity in extra.
        OSError: the folder cannot be made or written.
    """
    structure = describe(model)
    tensors = _tensors(model)
    data = safetensors.torch.save(tensors)
    text = _encode(
        {
            "format": FORMAT,
            "version": VERSION,
            "model": structure,
            "tensors": {name: _signature(tensor) for name, tensor in tensors.items()},
            "sha256": hashlib.sha256(data).hexdigest(),
            "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
            "training": model.training,
            "extra": {} if extra is None else extra,
        }
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "model.safetensors", data)
    write_atomic(folder / "model.json", text)


def load(folder: str | Path) -> nn.Module:
    """The model that `save` wrote, on the CPU, with its dtypes, mode (training or evaluation) and requires_grad.

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        ValueError: a file is damaged, of another format or version, or does not belong to the other.
    """
    folder = Path(folder)
    head = _read_description(folder)
    data = _read(folder / "model.safetensors")
    if hashlib.sha256(data).hexdigest() != head["sha256"]:
        raise ValueError(
            f"load: {folder / 'model.safetensors'} is damaged or belongs to another model.json (its checksum differs); "
            "save the model again"
        )
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"load: {folder / 'model.safetensors'} is damaged ({error}); save the model again") from error
    try:
        with torch.device("meta"):
            model = build(head["model"])
    except RecursionError as error:
        raise ValueError(f"load: {folder / 'model.json'} nests layers too deeply; save the model again") from error
    _check_tensors(model, tensors, head["tensors"])
    model.load_state_dict(tensors, assign=True)
    frozen = set(head["frozen"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model.train(head["training"])


def load_extra(folder: str | Path) -> dict[str, Any]:
    """What was given to `save` as extra. Raises as `load` does for ``model.json``."""
    extra: dict[str, Any] = _read_description(Path(folder))["extra"]
    return extra


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if owners.setdefault(id(parameter), name) != name:
            raise ValueError(
                f"save: layers must not share parameters (got {owners[id(parameter)]} shared with {name}); "
                "give each layer its own"
            )
    # Cloned: safetensors refuses tensors that share storage, as views into one flat buffer do.
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def _signature(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _encode(head: dict[str, Any]) -> str:
    if not isinstance(head["extra"], dict):
        raise TypeError(f"save: extra must be a dict (got {type(head['extra']).__name__})")
    try:
        return json.dumps(head, indent=1, allow_nan=False)
    except TypeError as error:
        raise TypeError(
            f"save: extra must hold only what JSON can ({error}); convert it to numbers and text"
        ) from error
    except ValueError as error:
        raise ValueError(f"save: extra must hold finite numbers only ({error}); replace NaN and infinity") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"load: {path} is missing; give the folder that resgrow.save wrote") from error


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    try:
        head = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"load: {path} is not valid JSON ({error}); save the model again") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise ValueError(f"load: {path} must say format {FORMAT!r}; give the folder that resgrow.save wrote")
    if head.get("version") != VERSION:
        raise ValueError(f"load: {path} must be of version {VERSION} (got {head.get('version')!r}); update resgrow")
    names = head.get("frozen")
    good = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if set(head) != _KEYS or not good or type(head["training"]) is not bool or not isinstance(head["extra"], dict):
        raise ValueError(f"load: {path} must have the entries {sorted(_KEYS)} (got {sorted(head)}); save it again")
    return head


def _check_tensors(model: nn.Module, tensors: dict[str, Tensor], listed: Any) -> None:
    found = {name: _signature(tensor) for name, tensor in tensors.items()}
    if found != listed:
        raise ValueError("load: the tensors must be those that model.json lists; save the model again")
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name, {}).get("shape"))
    if odd:
        name = odd[0]
        raise ValueError(
            f"load: tensors must fit the described layers (got {found.get(name, 'no tensor')} for {name}, "
            f"layer wants {wanted.get(name, 'none')}); save the model again"
        )
    for name, _ in model.named_parameters():
        if not tensors[name].is_floating_point():
            raise ValueError(f"load: parameters must be floating point (got {found[name]['dtype']} for {name})")
