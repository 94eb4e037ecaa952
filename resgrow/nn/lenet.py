"""LeNet-5 in the size the pruning literature uses (20-50-500-10)."""

from torch import nn


def lenet5(in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> nn.Sequential:
    """LeNet-5 with 20 and 50 filters and 500 hidden neurons: conv5, pool, ReLU twice, then two linear layers.

    Args:
        in_channels: channels of the input images.
        num_classes: number of logits.
        image_size: height and width of the input images, at least 16 pixels.

    Returns:
        A plain ``nn.Sequential`` from ``(N, in_channels, image_size, image_size)`` to ``(N, num_classes)``;
        431,080 parameters with the defaults.

    Raises:
        ValueError: a count below 1, or images too small for two 5 x 5 convolutions with pooling.
    """
    if in_channels < 1 or num_classes < 1:
        raise ValueError(
            "lenet5: in_channels and num_classes must be at least 1 "
            f"(got in_channels={in_channels}, num_classes={num_classes})"
        )
    side = ((image_size - 4) // 2 - 4) // 2
    if side < 1:
        raise ValueError(
            f"lenet5: image_size must be at least 16 (got {image_size}); enlarge the images or use resnet(8)"
        )
    return nn.Sequential(
        nn.Conv2d(in_channels, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(50 * side * side, 500),
        nn.ReLU(),
        nn.Linear(500, num_classes),
    )
