"""Name of an operation -> its rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from resgrow.surgery.structure.call import Call, by_name
from resgrow.surgery.structure.rules import layers, move, reduce
from resgrow.surgery.structure.rules.elementwise import elementwise
from resgrow.surgery.structure.values import Tracker

Rule = Callable[[Tracker, Call], Any]

_NAMES: tuple[tuple[Rule, str], ...] = (
    (layers.convolution, "conv1d conv2d conv3d convolution _convolution"),
    (layers.transposed_convolution, "conv_transpose1d conv_transpose2d conv_transpose3d"),
    (layers.linear, "linear"),
    (layers.addmm, "addmm"),
    (layers.embedding, "embedding"),
    (layers.batch_norm, "batch_norm instance_norm"),
    (layers.group_norm, "group_norm"),
    (layers.layer_norm, "layer_norm rms_norm"),
    (layers.prelu, "prelu"),
    (layers.tristate_relu, "tristate_relu"),
    (
        move.rearranged,
        "permute transpose t numpy_T expand contiguous clone select unbind roll flip movedim alias detach "
        "lift_fresh_copy pixel_shuffle pixel_unshuffle repeat channel_shuffle",
    ),
    (move.reshaped, "view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as"),
    (move.made, "new_zeros new_ones new_empty new_full"),
    (move.checked, "_assert_tensor_metadata _assert_async"),
    (move.cut, "slice narrow split split_with_sizes tensor_split"),
    (move.chunks, "chunk"),
    (move.padded, "pad constant_pad_nd"),
    (move.joined, "cat concat"),
    (move.indexed, "index"),
    (reduce.reduced, "mean sum amax amin"),
    (
        reduce.pooled,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d adaptive_max_pool2d",
    ),
    (reduce.resized, "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d"),
    (reduce.softmax, "softmax log_softmax _softmax"),
    (reduce.matmul, "matmul bmm mm"),
    (reduce.attention, "scaled_dot_product_attention"),
    # Element by element, but not tagged so by torch.
    (
        elementwise,
        "dropout feature_dropout alpha_dropout hardswish rrelu to _to_copy type_as fill zero copy zeros_like",
    ),
)
_RULES = {name: rule for rule, names in _NAMES for name in names.split()}


def find_rule(op: Any) -> Rule | None:
    """The rule of an overload; of one without: None."""
    pointwise = torch.Tag.pointwise in getattr(op, "tags", ())
    return by_name(_RULES, op) or (elementwise if pointwise else None)
