import pytest
import torch
from surgery_nets import small_resnet
from torch import nn

from resgrow.nn import lenet5, resnet
from resgrow.surgery import Masks, count_macs, count_params, layer_positions


def test_lenet_by_hand() -> None:
    model = lenet5()
    assert count_params(model) == 431_080
    macs = [24 * 24 * 20 * 25, 8 * 8 * 50 * 500, 800 * 500, 500 * 10]
    for batch in (1, 3):
        assert count_macs(model, torch.zeros(batch, 1, 28, 28)) == sum(macs)


def test_resnet20_has_the_macs_the_paper_gives() -> None:
    # 40.6 million for 32 x 32 images, shortcut projections included.
    assert 40.5e6 < count_macs(resnet(20), torch.zeros(1, 3, 32, 32)) < 41e6


def test_sequences_groups_and_repeated_layers() -> None:
    layer = nn.Linear(4, 4)
    assert layer_positions(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(2, 7, 4)) == {"0": 14}
    grouped = nn.Conv2d(4, 6, 3, stride=2, groups=2)
    assert count_macs(grouped, torch.zeros(3, 4, 9, 9)) == 16 * 6 * 2 * 9


def test_masks_leave_out_what_is_absent() -> None:
    model = lenet5()
    mask = torch.ones(500, 800, dtype=torch.bool)
    mask[:, :600] = False
    bias = torch.zeros(500, dtype=torch.bool)
    masks = Masks(model, {"7.weight": mask, "7.bias": bias})
    x = torch.zeros(1, 1, 28, 28)
    assert count_macs(model, x) - count_macs(model, x, masks) == 300_000


def test_counting_leaves_no_trace() -> None:
    model = small_resnet().train()
    model.layer1.eval()
    flags = [module.training for module in model.modules()]
    mean = model.bn1.running_mean.clone()
    count_macs(model, torch.randn(2, 2, 8, 8))
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(model.bn1.running_mean, mean)
    with pytest.raises(ValueError, match=r"layer_positions: .*does not run"):
        count_macs(model, torch.zeros(1, 5, 8, 8))
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_without_macs_and_several_inputs() -> None:
    bilinear = nn.Bilinear(2, 3, 4)
    assert count_macs(bilinear, (torch.zeros(5, 2), torch.zeros(5, 3))) == 0
    assert count_params(bilinear) == 28
    with pytest.raises(TypeError, match="example_inputs"):
        count_macs(bilinear, [1, 2])  # type: ignore[list-item]
