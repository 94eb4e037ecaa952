"""Networks and layers of the project."""

from resgrow.nn.lenet import lenet5
from resgrow.nn.resnet import BasicBlock, ResNet, resnet
from resgrow.nn.tristate_relu import TriStateReLU

__all__ = ["BasicBlock", "ResNet", "TriStateReLU", "lenet5", "resnet"]
