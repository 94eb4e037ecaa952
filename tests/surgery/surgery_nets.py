"""Small networks that the surgery tests share."""

import torch
from torch import Tensor, nn

from resgrow.nn import ResNet, TriStateReLU, resnet


def saliency_like(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
        for name, parameter in model.named_parameters()
    }


def convnet() -> nn.Sequential:
    """Everything a plain Sequential may hold, with odd widths and nested; input (N, 2, 11, 11)."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(5, 7, 2, bias=False),
        TriStateReLU(7),
        nn.AvgPool2d(2, stride=1),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(28, 6),
        nn.Identity(),
        nn.ReLU(),
        nn.Linear(6, 3),
    )
    return randomised(model)


def small_resnet() -> ResNet:
    torch.manual_seed(0)
    return randomised(resnet(8, 0.25, in_channels=2, num_classes=3))


def randomised(model: nn.Module) -> nn.Module:
    """Norm statistics, gains and biases as after some training, none of them special."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model
