"""What is known about functions that parameters enter: explicit tables, function -> rule.

A rule takes the function's own arguments and returns a :class:`~resgrow.curvature.rules.site.Site`, or None if this
call is none that it knows. A function is one rule and one row; functions without a row are differentiated one sample
at a time, which is exact as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resgrow import ops  # noqa: F401  (registers torch.ops.resgrow)
from resgrow.curvature.rules.attention import attention
from resgrow.curvature.rules.conv import conv, conv_transpose
from resgrow.curvature.rules.elementwise import copies, prelu, spread, tristate_relu
from resgrow.curvature.rules.embedding import embedding
from resgrow.curvature.rules.linear import addmm, linear, matmul
from resgrow.curvature.rules.norm import (
    batch_norm,
    functional_batch_norm,
    functional_instance_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from resgrow.curvature.rules.site import Formula, Site

__all__ = [
    "BROADCASTS",
    "COMPOSITES",
    "EXPANSIONS",
    "LIKE",
    "REARRANGEMENTS",
    "RULES",
    "Formula",
    "Site",
    "copies",
    "spread",
]


def _forms(names: str) -> frozenset[Any]:
    """Functions by their names, as functions and as methods, and those methods that work in place."""
    found = (
        getattr(place, form, None) for name in names.split() for place in (torch, Tensor) for form in (name, f"{name}_")
    )
    return frozenset(f for f in found if f is not None)


RULES: dict[Any, Callable[..., Site | None]] = {
    F.linear: linear,
    torch.matmul: matmul,
    Tensor.matmul: matmul,
    Tensor.__matmul__: matmul,
    torch.mm: matmul,
    Tensor.mm: matmul,
    torch.addmm: addmm,
    F.conv1d: partial(conv, 1),
    F.conv2d: partial(conv, 2),
    F.conv3d: partial(conv, 3),
    F.conv_transpose1d: partial(conv_transpose, 1),
    F.conv_transpose2d: partial(conv_transpose, 2),
    F.conv_transpose3d: partial(conv_transpose, 3),
    torch.batch_norm: batch_norm,
    F.batch_norm: functional_batch_norm,
    torch.instance_norm: instance_norm,
    F.instance_norm: functional_instance_norm,
    torch.group_norm: group_norm,
    F.group_norm: group_norm,
    torch.layer_norm: layer_norm,
    F.layer_norm: layer_norm,
    torch.rms_norm: rms_norm,
    F.rms_norm: rms_norm,
    F.embedding: embedding,
    F.prelu: prelu,
    torch.ops.resgrow.tristate_relu.default: tristate_relu,
}

COMPOSITES: dict[Any, Callable[..., Any]] = {F.multi_head_attention_forward: attention}
"""Functions rewritten in terms of others that have rules; NotImplemented means that this call has no rule."""

BROADCASTS = _forms(
    "add sub subtract rsub mul multiply div divide true_divide pow maximum minimum where lerp addcmul"
    " __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__"
    " __truediv__ __rtruediv__ __itruediv__ __rdiv__ __pow__ __rpow__"
) | {F.scaled_dot_product_attention}
"""Functions that broadcast their arguments: a parameter may be replaced by one copy for each sample."""

EXPANSIONS = _forms("expand expand_as broadcast_to repeat tile")
"""Functions by which a model itself makes a copy for each sample."""

REARRANGEMENTS = _forms(
    "view reshape flatten unflatten ravel t transpose swapaxes permute movedim squeeze unsqueeze contiguous clone"
    " chunk split unbind narrow select to float double"
) | {Tensor.T.__get__, Tensor.mT.__get__}  # type: ignore[attr-defined]
"""Functions each element of whose results is an element of the argument."""

LIKE = _forms("to type_as view_as reshape_as")
"""Functions that take no more than shape or dtype from arguments other than the first."""
