import pytest
import torch

from resgrow.nn import lenet5


def test_has_the_size_the_literature_prunes() -> None:
    model = lenet5()
    assert sum(p.numel() for p in model.parameters()) == 431_080
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(("channels", "classes", "size"), [(3, 4, 16), (1, 10, 17), (2, 3, 32)])
def test_fits_other_images(channels: int, classes: int, size: int) -> None:
    assert lenet5(channels, classes, size)(torch.zeros(1, channels, size, size)).shape == (1, classes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1, 10, 15), "at least 16"), ((0, 10, 28), "in_channels=0"), ((1, 0, 28), "num_classes=0")],
)
def test_refuses_what_cannot_work(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lenet5(*arguments)
