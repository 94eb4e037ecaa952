"""Native operators: ``squared_grad`` (curvature), ``select`` (thresholds and masks), ``tristate_relu`` and
``block_sparse`` (layers that skip absent blocks).

Each family is one module here; :mod:`resgrow.ops.reference` says in plain torch what every operator means,
and :func:`decompositions` gives programs that are exported the same in aten.
"""

from resgrow.ops.block_sparse import block_sparse_conv2d, block_sparse_linear, block_sparse_probe
from resgrow.ops.decompositions import decompositions
from resgrow.ops.select import select_mask, select_mask_obd, select_threshold
from resgrow.ops.squared_grad import (
    squared_grad_bias,
    squared_grad_conv2d,
    squared_grad_linear,
    squared_grad_norm,
    squared_input_grad_conv2d,
    squared_input_grad_linear,
    squared_input_grad_norm,
)
from resgrow.ops.tristate_relu import tristate_relu

__all__ = [
    "block_sparse_conv2d",
    "block_sparse_linear",
    "block_sparse_probe",
    "decompositions",
    "select_mask",
    "select_mask_obd",
    "select_threshold",
    "squared_grad_bias",
    "squared_grad_conv2d",
    "squared_grad_linear",
    "squared_grad_norm",
    "squared_input_grad_conv2d",
    "squared_input_grad_linear",
    "squared_input_grad_norm",
    "tristate_relu",
]
