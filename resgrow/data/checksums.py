"""MD5 sums of the files that data sets are published as.

The gzipped files of MNIST and Fashion-MNIST and the python batches of CIFAR-10 and CIFAR-100 as their authors and
torchvision publish them; the unpacked IDX files and the binary batches as they come out of the published archives (of
MNIST ``*.gz``, ``cifar-10-binary.tar.gz`` c32a1d4ab5d03f1284b67883e8d87530, ``cifar-100-binary.tar.gz``
03b5dce01913d631647c71ecec9e9cb8). They tell what was read; they are no protection against a forger.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping
from hashlib import md5
from pathlib import Path

# Name of a file -> MD5.
Table = Mapping[str, str]

MNIST: Table = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FASHION_MNIST: Table = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
CIFAR10: Table = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CIFAR100: Table = {
    "train.bin": "6172c7755cfe09b2fe270c85cebc1b15",
    "test.bin": "4499cfba6c016c1be1438163640a0898",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}


def agreeing(paths: Iterable[Path], table: Table) -> int:
    """How many of the files are those of ``table``; a ``.gz`` that was packed anew counts by what is in it.

    Raises OSError for files that cannot be read, or unpacked.
    """
    return sum(_agrees(path, table) for path in paths)


def _agrees(path: Path, table: Table) -> bool:
    data = path.read_bytes()
    if md5(data).hexdigest() == table.get(path.name):
        return True
    if path.suffix != ".gz" or path.stem not in table:
        return False
    return md5(gzip.decompress(data)).hexdigest() == table[path.stem]
