import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resgrow.nn import resnet


@pytest.mark.parametrize(("depth", "layers", "parameters"), [(8, 7, 78_042), (20, 19, 272_474), (56, 55, 855_770)])
def test_depth_counts_layers(depth: int, layers: int, parameters: int) -> None:
    model = resnet(depth)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == layers
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("width", "stages"), [(0.01, (1, 1, 1)), (0.4, (6, 13, 26)), (2.0, (32, 64, 128))])
def test_width_scales_the_stages(width: float, stages: tuple[int, int, int]) -> None:
    model = resnet(8, width, in_channels=1, num_classes=3)
    assert tuple(s[0].conv1.out_channels for s in (model.layer1, model.layer2, model.layer3)) == stages
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_blocks_start_as_their_shortcuts() -> None:
    model = resnet(20, 0.25).eval()
    x = torch.randn(2, 3, 8, 8)
    y = F.relu(model.bn1(model.conv1(x)))
    for stage in (model.layer1, model.layer2, model.layer3):
        for block in stage:
            y = F.relu(y if block.downsample is None else block.downsample(y))
    torch.testing.assert_close(model(x), model.fc(y.mean((2, 3))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 18}, "6n\\+2"),
        ({"depth": 2}, "6n\\+2"),
        ({"width": 0.0}, "width"),
        ({"width": float("nan")}, "width"),
        ({"num_classes": 0}, "num_classes=0"),
    ],
)
def test_refuses_what_cannot_work(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resnet(**options)  # type: ignore[arg-type]
