"""Fashion-MNIST (Xiao et al., 2017): 60,000 training and 10,000 test images of 28x28, ten classes.

Inputs are float32 [n, 1, 28, 28], grey level / 255, minus `MEAN`, divided by `STD` (both of the
training images). The data is looked for in this order:

1. `$FEDKIT_DATA/fashion-mnist`, or `data/fashion-mnist` where the variable is not set;
2. `/usr/share/datasets/fashion-mnist`, where Debian's package dataset-fashion-mnist puts it;
3. the hub of flwr-datasets, which downloads it once and keeps it in its cache.

A folder holds the four published idx files, packed (.gz) or not.
"""

from __future__ import annotations

import functools
import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from fedkit.core.errors import DataError
from fedkit.core.files import read_whole
from fedkit.tasks.hub import Bytes, ImageSet, Split, read_hub, to_examples
from fedkit.tasks.task import Examples, Task

MEAN = 0.2860
STD = 0.3530
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
IMAGES = ImageSet(
    title="Fashion-MNIST",
    name="fashion-mnist",
    hub_name="zalando-datasets/fashion_mnist",
    image="image",
    label="label",
    classes=10,
    mean=(MEAN,),
    std=(STD,),
    model="resnet8",
    size=28,
)

_MOST_BYTES = 5 * 60_000 * 28 * 28
"""Bytes of a file, packed or not, that is still read."""

_FILE_PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}


def train_data() -> Examples:
    """Return the 60,000 training examples; DataError if they are nowhere to be found."""
    return _load("train")


def test_data() -> Examples:
    """Return the 10,000 test examples; DataError if they are nowhere to be found."""
    return _load("test")


@functools.cache
def _load(split: Split) -> Examples:
    for folder in (IMAGES.folder, DEBIAN_FOLDER):
        if folder.is_dir():
            return _examples(*read_folder(folder, split), source=str(folder))
    return read_hub(
        IMAGES,
        split,
        absent=f"{IMAGES.folder} and no {DEBIAN_FOLDER}",
        remedy="put the four idx .gz files into the first folder (FEDKIT_DATA sets its parent), or "
        "install the Debian package dataset-fashion-mnist",
    )


def _examples(images: Bytes, labels: Bytes, source: str) -> Examples:
    """Check that the two belong together; images uint8 [n, 28, 28], labels uint8 [n]."""
    if len(images) != len(labels) or images.shape[1:] != IMAGES.shape:
        raise DataError(
            f"Fashion-MNIST from {source} has images of shape {images.shape} and {len(labels)} "
            "labels; it must be [n, 28, 28] and n labels: fetch the data set again"
        )
    return to_examples(images, labels, IMAGES, source)


def read_folder(folder: Path, split: Split) -> tuple[Bytes, Bytes]:
    """Read images uint8 [n, height, width] and labels uint8 [n] of one split.

    Raises:
        DataError: A file is missing, no idx file of the right kind, truncated or corrupt.
    """
    prefix = _FILE_PREFIX[split]
    images = read_idx(_find(folder, f"{prefix}-images-idx3-ubyte"), dimensions=3)
    labels = read_idx(_find(folder, f"{prefix}-labels-idx1-ubyte"), dimensions=1)
    return images, labels


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(
        f"{folder} has no {name}.gz; the folder must hold the four idx files of Fashion-MNIST: "
        "complete it or remove it"
    )


def read_idx(path: Path, dimensions: int) -> Bytes:
    """Read an idx file of unsigned bytes.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each
    dimension as a big-endian 32-bit number, then the values.

    Args:
        path: The file; packed with gzip if its name ends in .gz.
        dimensions: Number of dimensions it must have.

    Raises:
        DataError: The file cannot be read, is of another kind, or its length is wrong.
    """
    raw = _read_bytes(path)
    magic = bytes([0, 0, 8, dimensions])
    start = 4 + 4 * dimensions
    if raw[:4] != magic or len(raw) < start:
        raise DataError(
            f"{path} starts with {raw[:start].hex(' ') or 'nothing'}; an idx file of bytes with "
            f"{dimensions} dimensions starts with {magic.hex(' ')} and its shape: fetch it again"
        )
    shape = np.frombuffer(raw, ">u4", dimensions, offset=4).tolist()
    if len(raw) - start != math.prod(shape):
        raise DataError(
            f"{path} holds {len(raw) - start} values; its shape {shape} needs "
            f"{math.prod(shape)}: fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        raw = read_whole(path, _MOST_BYTES)
        if path.suffix != ".gz":
            return raw
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as packed:
            unpacked = packed.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch it again") from error
    if len(unpacked) > _MOST_BYTES:
        raise DataError(
            f"{path} unpacks to more than {_MOST_BYTES:,} bytes, five times what the largest file "
            "of the data set holds: fetch it again"
        )
    return unpacked


TASK = Task(IMAGES.name, IMAGES.model, train_data, test_data)
"""The task `fashion-mnist`."""
