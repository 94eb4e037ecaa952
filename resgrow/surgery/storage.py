"""Models in a folder: ``model.safetensors`` holds the tensors, ``model.json`` the structure. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from resgrow._files import write_atomic
from resgrow.surgery.plans import Plan, describe, fit, from_json, stored_tensors, to_json, upgraded

FORMAT = "resgrow-model"
VERSION = 2
_KEYS = {
    1: {"format", "version", "model", "tensors", "sha256", "frozen", "training", "extra"},
    2: {"format", "version", "modules", "sha256", "extra"},
}


def save(model: nn.Module, folder: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write any model to ``folder``, which is made if need be: its tensors and its structure, whatever has changed it.

    Each file is replaced as a whole. The description carries a checksum of the tensors, so two files that do not belong
    together (a process killed between the two) are noticed by `load`.

    ``model.safetensors`` has the names of ``state_dict``, parameters and buffers that are shared under their first name
    only, and besides the buffers that are not persistent. ``model.json`` says for each module its class, its sizes and
    other plain numbers, its tensors, its mode, and for layers of `layer_table` what they are built from.

    Args:
        model: any; tensors are stored in their dtype, from any device.
        folder: where to write.
        extra: anything JSON can hold, given back by `load_extra`.

    Raises:
        TypeError: state outside of parameters and buffers (``get_extra_state``), tensors that are not dense (sparse,
            quantised, meta) or of a dtype that safetensors lacks, extra that is not a JSON object.
        ValueError: NaN or infinity in extra, block-sparse layers that share weights, modules nested too deeply.
        OSError: the folder cannot be made or written.
    """
    plan, found = describe(model)
    # Cloned: safetensors refuses tensors that share storage, as views into one flat buffer do.
    tensors = {name: t.cpu().clone(memory_format=torch.contiguous_format) for name, t in found.items()}
    try:
        data = safetensors.torch.save(tensors)
    except KeyError as error:
        raise TypeError(f"save: tensors must have a dtype that safetensors has (got {error}); convert them") from error
    text = _encode(
        {
            "format": FORMAT,
            "version": VERSION,
            "modules": to_json(plan),
            "sha256": hashlib.sha256(data).hexdigest(),
            "extra": {} if extra is None else extra,
        }
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "model.safetensors", data)
    write_atomic(folder / "model.json", text)


@torch.inference_mode(mode=False)  # parameters made in inference mode could never be trained
@torch.no_grad()
def load(folder: str | Path, model: nn.Module | Callable[[], nn.Module] | None = None) -> nn.Module:
    """The model that `save` wrote, with its dtypes, memory formats, modes (training or evaluation) and requires_grad.

    Args:
        folder: what `save` wrote; folders of earlier versions, too.
        model: one of the original constructor, of whatever sizes, or a function that makes one. It is brought into the
            saved structure in place and returned: its modules and, wherever it has them, its parameters stay the
            objects and on the devices that they are (those on "meta" get new ones). Sizes and all other plain numbers
            and flags become the saved ones; what is not a number (functions, text, configurations) stays as
            constructed. Modules that it has too many go, and blocks that it lacks are copies of their siblings.
            Without one, all layers have to be of the table (`layer_table`); the model is on the CPU then.

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        ValueError: a file is damaged, of another format or version, or does not belong to the other; the structure
            does not fit the model, or cannot be built without one. The given model is as it was then, to the bit.
        TypeError: ``model`` is not a module and does not return one.
    """
    given, folder = _given(model), Path(folder)
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
        plan = upgraded(head) if head["version"] == 1 else from_json(head["modules"])
    except RecursionError as error:
        raise ValueError(f"load: {folder / 'model.json'} nests too deeply; save the model again") from error
    _check_tensors(plan, tensors)
    return fit(plan, tensors, given)


def load_extra(folder: str | Path) -> dict[str, Any]:
    """What was given to `save` as extra. Raises as `load` does for ``model.json``."""
    extra: dict[str, Any] = _read_description(Path(folder))["extra"]
    return extra


def _given(model: nn.Module | Callable[[], nn.Module] | None) -> nn.Module | None:
    if model is None:
        return None
    made = model if isinstance(model, nn.Module) or not callable(model) else model()
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"load: model must be a torch.nn.Module or a function that returns one (got {type(made).__name__}); give "
            "one of the original constructor"
        )
    return made


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
    version = head.get("version")
    if type(version) is not int or version not in _KEYS:
        raise ValueError(f"load: {path} must be of version {VERSION} or older (got {version!r}); update resgrow")
    if set(head) != _KEYS[version] or not isinstance(head["extra"], dict) or not _is_good(head):
        raise ValueError(
            f"load: {path} must have the entries {sorted(_KEYS[version])} (got {sorted(head)}); save it again"
        )
    return head


def _is_good(head: dict[str, Any]) -> bool:
    if head["version"] != 1:
        return True
    names = head["frozen"]
    return isinstance(names, list) and all(isinstance(n, str) for n in names) and type(head["training"]) is bool


def _check_tensors(plan: Plan, tensors: dict[str, Tensor]) -> None:
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in stored_tensors(plan).items()}
    found = {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()}
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd:
        name = odd[0]
        raise ValueError(
            f"load: the tensors must be those that model.json lists (got {found.get(name, 'none')} for {name}, listed "
            f"is {wanted.get(name, 'none')}); save the model again"
        )
    for name, planned in stored_tensors(plan).items():
        if planned.trainable and not (tensors[name].is_floating_point() or tensors[name].is_complex()):
            raise ValueError(
                f"load: parameters that are trained must be floating point (got {planned.dtype} for {name}); save the "
                "model again"
            )
