"""Small data sets on disk, in the layouts that the loaders read."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(path: Path, array: np.ndarray) -> None:
    data = idx_bytes(array)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def make_mnist(folder: Path, suffix: str = ".gz", train: int = 20, test: int = 10, size: int = 28) -> Path:
    """Four IDX files; label i of image i is i % 10 and is painted into its pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = np.broadcast_to(labels[:, None, None] * 20, (count, size, size)).copy()
        images[:, 0, 0] = 255
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", labels)
    return folder


def make_cifar(folder: Path, per_batch: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        labels = (np.arange(per_batch) % 10).astype(np.uint8)
        pixels = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        pixels[:, 0] = labels  # first red pixel says the label
        np.concatenate([labels[:, None], pixels], axis=1).tofile(folder / name)
    return folder


def make_cifar100(folder: Path, count: int = 20) -> Path:
    """Class and superclass bytes; the class is i * 7 % 100 and is painted into the first red pixel."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train.bin", "test.bin"):
        pixels, labels = cifar_pixels(count, 7)
        np.concatenate([labels[:, None] // 5, labels[:, None], pixels], axis=1).tofile(folder / name)
    (folder / "fine_label_names.txt").write_text("".join(f"fine_{i}\n" for i in range(100)))
    return folder


def cifar_pixels(count: int, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 3072) and labels i * stride % 100, painted into the first red pixel."""
    labels = (np.arange(count) * stride % 100).astype(np.uint8)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3072), dtype=np.uint8)
    pixels[:, 0] = labels
    return pixels, labels


def python2_pickle(value: object) -> bytes:
    """Protocol 2 as Python 2 and numpy 1 write it, which Python 3 cannot: strings without an encoding."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: object) -> bytes:
    if isinstance(value, str):
        return _python2(value.encode())
    if isinstance(value, bytes):
        size = len(value)
        return (b"U" + bytes([size]) if size < 256 else b"T" + size.to_bytes(4, "little")) + value
    if isinstance(value, int):
        return b"K" + bytes([value]) if value < 256 else b"J" + value.to_bytes(4, "little")
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_python2, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(key) + _python2(each) for key, each in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    number = b"cnumpy\ndtype\nU\x02" + value.dtype.str[1:].encode() + b"K\x00K\x01\x87R"
    order = value.dtype.str[:1].encode()
    state = b"(K\x03U\x01" + order + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return array + b"(K\x01" + _python2(value.shape) + number + state + b"\x89" + _python2(value.tobytes()) + b"tb"


def make_cifar_python(folder: Path, per_batch: int = 4) -> Path:
    """``cifar-10-batches-py`` with the keys of the originals."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels, labels = cifar_pixels(per_batch)
        batch = {"batch_label": name, "labels": labels.tolist(), "data": pixels, "filenames": ["a.png"] * per_batch}
        (folder / name).write_bytes(python2_pickle(batch))
    names = {"num_cases_per_batch": 10000, "label_names": [f"name {i}" for i in range(10)], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(names))
    return folder


def make_cifar100_python(folder: Path, count: int = 20) -> Path:
    """``cifar-100-python`` with the keys of the originals."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        pixels, labels = cifar_pixels(count, 7)
        batch = {"filenames": ["a.png"] * count, "batch_label": name, "fine_labels": labels.tolist()}
        batch |= {"coarse_labels": (labels // 5).tolist(), "data": pixels}
        (folder / name).write_bytes(python2_pickle(batch))
    names = {"fine_label_names": [f"fine_{i}" for i in range(100)], "coarse_label_names": ["coarse"] * 20}
    (folder / "meta").write_bytes(python2_pickle(names))
    return folder


def make_images(folder: Path, mode: str = "RGB", size: tuple[int, int] = (10, 8)) -> Path:
    for half in ("train", "test"):
        for value, name in ((40, "cat"), (200, "dog")):
            (folder / half / name).mkdir(parents=True, exist_ok=True)
            for i in range(3):
                Image.new(mode, size, color=value + i if mode == "L" else (value, i, 0)).save(
                    folder / half / name / f"{i}.png"
                )
    return folder
