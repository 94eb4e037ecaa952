"""Which function has which rule. Names are torch's own, without underscores around them and a method's ``r`` or ``i``.

A new function is one row here, and a rule beside its kind where no existing one fits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from resgrow.curvature.lecun import elementwise, norms, pools, products
from resgrow.curvature.lecun.tape import Call


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _dropout(default: bool) -> Callable[..., Tensor]:
    def rule(call: Call, x: Tensor, p: float = 0.5, training: bool = default) -> Tensor:
        if training:
            call.refuse("in training mode it is random")
        return call.func(x, p, training)

    return rule


def _tristate_relu(call: Call, x: Tensor, width: Tensor, depth: Tensor) -> Tensor:
    """Gates act through thresholds, whose derivative is zero; what they send training is not a derivative."""
    return call.func(x, width.detach(), depth.detach())


# Entries of the Jacobian are all zero or one, and no second derivative: autograd's own backward is the rule.
TRANSPARENT = _words("""
    relu relu6 hardtanh threshold softshrink hardshrink clamp clip clamp_min clamp_max nan_to_num
    max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices
    adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices max_unpool1d max_unpool2d max_unpool3d
    cat concat concatenate stack hstack vstack dstack chunk split split_with_sizes tensor_split hsplit vsplit unbind
    view view_as reshape reshape_as flatten unflatten ravel permute transpose swapaxes swapdims movedim moveaxis t
    squeeze unsqueeze expand expand_as broadcast_to broadcast_tensors repeat repeat_interleave tile
    getitem setitem narrow select index_select gather take_along_dim masked_select masked_fill where diagonal diag
    tril triu unfold fold pad pixel_shuffle pixel_unshuffle channel_shuffle roll flip fliplr flipud rot90
    contiguous clone detach positive sum cumsum get copy fill zero
    to type type_as float double half bfloat16 cpu cuda sign round floor ceil trunc
""")

RULES: dict[str, Callable[..., Any]] = {
    # Layers with weights.
    "linear": products.linear,
    "matmul": products.matmul,
    "mm": products.matmul,
    "addmm": products.addmm,
    "conv1d": products.conv,
    "conv2d": products.conv,
    "conv3d": products.conv,
    "conv_transpose1d": products.conv_transpose,
    "conv_transpose2d": products.conv_transpose,
    "conv_transpose3d": products.conv_transpose,
    "embedding": products.embedding,
    "batch_norm": norms.batch_norm,
    "instance_norm": norms.instance_norm,
    "layer_norm": norms.layer_norm,
    "group_norm": norms.group_norm,
    "rms_norm": norms.rms_norm,
    # Averages and extremes.
    "mean": pools.mean,
    "avg_pool1d": pools.avg_pool(1),
    "avg_pool2d": pools.avg_pool(2),
    "avg_pool3d": pools.avg_pool(3),
    "adaptive_avg_pool1d": pools.adaptive_avg_pool(1),
    "adaptive_avg_pool2d": pools.adaptive_avg_pool(2),
    "adaptive_avg_pool3d": pools.adaptive_avg_pool(3),
    "amax": pools.extreme,
    "amin": pools.extreme,
    "max": pools.extreme_along,
    "min": pools.extreme_along,
    "maximum": pools.extreme,
    "minimum": pools.extreme,
    "interpolate": pools.interpolate,
    # Arithmetic.
    "add": elementwise.add,
    "sub": elementwise.subtract,
    "rsub": elementwise.reflected(elementwise.subtract),
    "mul": elementwise.multiply,
    "div": elementwise.divide,
    "rdiv": elementwise.reflected(elementwise.divide),
    "neg": elementwise.negate,
    "pow": elementwise.power,
    "rpow": elementwise.reflected(elementwise.power),
    # Piecewise linear activations with slopes other than zero and one.
    "leaky_relu": elementwise.activation(curved=False),
    "hardsigmoid": elementwise.activation(curved=False),
    "abs": elementwise.activation(curved=False),
    "rrelu": elementwise.rrelu,
    "prelu": elementwise.prelu,
    # Curved activations with their derivatives in closed form.
    "sigmoid": elementwise.sigmoid,
    "tanh": elementwise.tanh,
    "silu": elementwise.silu,
    "gelu": elementwise.gelu,
    # What the thresholds of others leave as it is.
    "dropout": _dropout(True),
    "dropout1d": _dropout(True),
    "dropout2d": _dropout(True),
    "dropout3d": _dropout(True),
    "alpha_dropout": _dropout(False),
    "feature_alpha_dropout": _dropout(False),
    "feature_dropout": _dropout(True),
    "resgrow::tristate_relu": _tristate_relu,
}

# Curved functions of one tensor, differentiated by autograd.
_CURVED = _words("""
    elu selu celu mish softplus softsign tanhshrink hardswish log_sigmoid exp exp2 expm1 log log1p log2 log10 sqrt rsqrt
    square reciprocal sin cos tan asin acos atan sinh cosh asinh acosh atanh erf erfc logit
""")
RULES |= {name: elementwise.activation(curved=True) for name in _CURVED}

ALIASES = {
    "radd": "add",
    "iadd": "add",
    "subtract": "sub",
    "isub": "sub",
    "rmul": "mul",
    "imul": "mul",
    "multiply": "mul",
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "itruediv": "div",
    "idiv": "div",
    "rtruediv": "rdiv",
    "negative": "neg",
    "ipow": "pow",
    "absolute": "abs",
    "logsigmoid": "log_sigmoid",
}
