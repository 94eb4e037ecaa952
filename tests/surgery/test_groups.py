import pytest
import torch
from surgery_nets import convnet, small_resnet
from torch import nn

from resgrow.nn import BasicBlock, lenet5, resnet
from resgrow.surgery import ChannelGroup, Consumer, channel_groups


def test_plain_and_nested_sequential() -> None:
    assert channel_groups(convnet(), "test") == [
        ChannelGroup("0.0", 5, ("0.1",), (Consumer("1", 1, ("0.1", "0.2", "0.3")),)),
        ChannelGroup("1", 7, ("2",), (Consumer("6", 4, ("2", "3", "4", "5")),)),
        ChannelGroup("6", 6, (), (Consumer("9", 1, ("7", "8")),)),
    ]


def test_resnet_offers_the_inside_of_its_blocks_only() -> None:
    groups = channel_groups(small_resnet(), "test")
    assert [group.producer for group in groups] == [f"layer{i}.0.conv1" for i in (1, 2, 3)]
    assert [group.followers for group in groups] == [(f"layer{i}.0.bn1",) for i in (1, 2, 3)]
    assert [group.consumers[0].name for group in groups] == [f"layer{i}.0.conv2" for i in (1, 2, 3)]
    assert len(channel_groups(resnet(20, 0.25), "test")) == 9


def test_blocks_in_a_sequential_end_the_chain_and_offer_their_inside() -> None:
    block = resnet(8, 0.25).layer1[0]
    assert isinstance(block, BasicBlock)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), block, nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1))
    assert [group.producer for group in channel_groups(model, "test")] == ["1.conv1", "2"]


class Reversed(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flip(0))


@pytest.mark.parametrize(
    ("layers", "producers"),
    [
        ([nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 1)], ["2"]),
        ([nn.Conv2d(2, 4, 1), nn.GELU(), nn.Conv2d(4, 1, 1)], []),
        ([nn.Conv2d(2, 4, 1), nn.Linear(4, 4), nn.Linear(4, 1)], ["1"]),
        ([nn.Conv2d(2, 4, 1), nn.Flatten(2), nn.Linear(16, 4)], []),
        ([nn.Linear(3, 4), nn.Flatten(), nn.Linear(8, 1)], []),
        ([nn.Linear(3, 4), nn.Flatten(), nn.Linear(4, 1)], ["0"]),
        ([nn.Linear(3, 4), nn.MaxPool2d(1), nn.Linear(4, 1)], []),
        ([nn.Conv2d(2, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)], ["0"]),
        ([nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(10, 1)], []),
        ([nn.Conv2d(2, 4, 1), nn.BatchNorm2d(3), nn.Conv2d(4, 1, 1)], []),
        ([nn.Conv2d(2, 4, 1), Reversed(nn.ReLU()), nn.Conv2d(4, 1, 1)], []),
        ([nn.Conv2d(2, 4, 1)], []),
    ],
)
def test_what_ends_a_chain(layers: list[nn.Module], producers: list[str]) -> None:
    assert [group.producer for group in channel_groups(nn.Sequential(*layers), "test")] == producers


def test_one_relu_may_stand_in_several_places() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 4), relu, nn.Linear(4, 5), relu, nn.Linear(5, 2))
    assert [group.consumers[0].path for group in channel_groups(model, "test")] == [("1",), ("3",)]


def test_refuses_other_models_and_shared_parameters() -> None:
    with pytest.raises(TypeError, match=r"test: .*got Linear.*block=\(1, 1\)"):
        channel_groups(nn.Linear(3, 2), "test")
    with pytest.raises(TypeError, match="got Reversed"):
        channel_groups(Reversed(*lenet5()), "test")
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"0\.weight shared with 1\.weight"):
        channel_groups(nn.Sequential(layer, layer), "test")
