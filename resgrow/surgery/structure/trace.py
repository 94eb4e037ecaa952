"""A model's operations, by ``torch.export``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import InputKind
from torch.fx import Node

from resgrow.surgery.forward import AnyInputs, Example


@dataclass(frozen=True)
class Traced:
    """``nodes`` in order. ``stored``: placeholder -> name of the parameter or buffer that it stands for. ``inputs``:
    the placeholders of the model's arguments, in order."""

    nodes: tuple[Node, ...]
    stored: dict[str, str]
    outputs: tuple[Node, ...]
    inputs: tuple[Node, ...]


def traced(model: nn.Module, example_inputs: Example | AnyInputs, op: str) -> Traced:
    """The operations of one forward pass in evaluation mode.

    Raises:
        ValueError: ``torch.export`` cannot follow the model; the message has its first lines.
    """
    example = Example.of(example_inputs, op)
    training = {name: module.training for name, module in model.named_modules()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(model.eval(), example.args, dict(example.kwargs), strict=False)
    except Exception as error:
        first = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{op}: torch.export must be able to follow the model on example_inputs (got {type(error).__name__}: "
            f"{first}); name layers that can be changed without the rest, or change what it complains of"
        ) from error
    finally:
        for name, module in model.named_modules():
            module.training = training[name]
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)
    specs = exported.graph_signature.input_specs
    stored = {spec.arg.name: spec.target for spec in specs if spec.kind in kinds and spec.target is not None}
    nodes = tuple(exported.graph.nodes)
    results = [each for each in _flat(nodes[-1].args) if isinstance(each, Node)]
    given = {spec.arg.name for spec in specs if spec.kind == InputKind.USER_INPUT and hasattr(spec.arg, "name")}
    inputs = tuple(node for node in nodes if node.op == "placeholder" and node.name in given)
    return Traced(nodes, stored, tuple(results), inputs)


def _flat(arguments: Any) -> list[Any]:
    if isinstance(arguments, list | tuple):
        return [each for part in arguments for each in _flat(part)]
    return [arguments]
