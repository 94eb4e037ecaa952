"""Networks and layers of the project."""

from resgrow.nn.block_sparse import BlockSparseConv2d, BlockSparseLinear
from resgrow.nn.constants import Shift, Zero, Zeros
from resgrow.nn.fused import FusedConv2d, FusedLinear
from resgrow.nn.lenet import lenet5
from resgrow.nn.pooled import PooledConv2d
from resgrow.nn.residual import KeyedModuleList, Residual
from resgrow.nn.resnet import BasicBlock, ResNet, resnet
from resgrow.nn.tristate_relu import TriStateReLU

__all__ = [
    "BasicBlock",
    "BlockSparseConv2d",
    "BlockSparseLinear",
    "FusedConv2d",
    "FusedLinear",
    "KeyedModuleList",
    "PooledConv2d",
    "ResNet",
    "Residual",
    "Shift",
    "TriStateReLU",
    "Zero",
    "Zeros",
    "lenet5",
    "resnet",
]
