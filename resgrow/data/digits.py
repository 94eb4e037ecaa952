"""The data set that needs no download: scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels."""

from __future__ import annotations

import numpy as np

from resgrow.data.dataset import RawImages

TEST_SHARE = 0.2
SPLIT_SEED = 0


def read() -> RawImages:
    """A fixed stratified split: 1,437 training and 360 test images (N, 1, 8, 8)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED
    )
    classes = tuple(str(i) for i in range(10))
    return RawImages(train_images, train_labels, test_images, test_labels, classes)
