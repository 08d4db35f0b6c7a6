"""Image sets of the hub: CIFAR-10, CIFAR-100, SVHN and CINIC-10, and how any image set is read.

Inputs are float32 [n, channels, height, width], level / 255, minus the mean, divided by the
standard deviation of each channel. A data set is looked for in this order:

1. `$FEDKIT_DATA/NAME`, or `data/NAME` where the variable is not set: the parquet files of the
   hub, in its folders or beside each other, or what `save_to_disk` of the library datasets wrote;
2. the hub of flwr-datasets, which downloads it once and keeps it in its cache.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import DataError
from fedkit.tasks.data_folder import data_folder
from fedkit.tasks.sources import normalise
from fedkit.tasks.task import Examples, Task

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "test"]
Bytes = NDArray[np.uint8]

PIECE = 1000
"""Images decoded at a time; between file and array each is a Python object of several kB."""


@dataclass(frozen=True)
class ImageSet:
    """A set of labelled images, square and of one size, with the splits train and test.

    Attributes:
        title: What people call it.
        name: Name of its task, and of its folder under `$FEDKIT_DATA`.
        hub_name: `owner/name` on the hub.
        image: Name of the hub's column of images.
        label: Name of the hub's column of class indices.
        classes: Number of classes; labels are 0 .. classes - 1.
        mean: Mean of each channel of the training images, at level / 255: three for RGB, one
            for grey.
        std: Standard deviation of each channel, over all pixels, at level / 255.
        model: Name of the task's model in the zoo.
        size: Height and width in pixels.
        subset: The configuration wanted where the hub has several; in its files, a folder.
    """

    title: str
    name: str
    hub_name: str
    image: str
    label: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model: str = "resnet18"
    size: int = 32
    subset: str | None = None

    @property
    def folder(self) -> Path:
        """The folder that is looked into first."""
        return data_folder(self.name)

    @property
    def mode(self) -> Literal["L", "RGB"]:
        """The images' mode, in the words of Pillow."""
        return "L" if len(self.mean) == 1 else "RGB"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one decoded image, (height, width) or (height, width, 3)."""
        return (self.size, self.size) if self.mode == "L" else (self.size, self.size, 3)


CIFAR10 = ImageSet(
    title="CIFAR-10",
    name="cifar10",
    hub_name="uoft-cs/cifar10",
    image="img",
    label="label",
    classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
"""CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test images."""

CIFAR100 = ImageSet(
    title="CIFAR-100",
    name="cifar100",
    hub_name="uoft-cs/cifar100",
    image="img",
    label="fine_label",
    classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
"""CIFAR-100 (Krizhevsky, 2009) with its 100 fine classes: 50,000 and 10,000 images."""

SVHN = ImageSet(
    title="SVHN",
    name="svhn",
    hub_name="ufldl-stanford/svhn",
    image="image",
    label="label",
    classes=10,
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    subset="cropped_digits",
)
"""Street View House Numbers (Netzer et al., 2011), cropped digits without the extra split:
73,257 and 26,032 images."""

CINIC10 = ImageSet(
    title="CINIC-10",
    name="cinic10",
    hub_name="flwrlabs/cinic10",
    image="image",
    label="label",
    classes=10,
    mean=(0.47889522, 0.47227842, 0.43047404),
    std=(0.24205776, 0.23828046, 0.25874835),
)
"""CINIC-10 (Darlow et al., 2018) without its validation split: 90,000 and 90,000 images."""


@functools.cache
def load(data: ImageSet, split: Split) -> Examples:
    """Return the examples of one split, read once per process.

    Raises:
        DataError: The data set is nowhere to be found, or is not what `data` says.
    """
    if data.folder.is_dir():
        return _read_folder(data, split)
    remedy = "put the hub's files into that folder (FEDKIT_DATA sets its parent)"
    return read_hub(data, split, absent=str(data.folder), remedy=remedy)


def read_hub(data: ImageSet, split: Split, absent: str, remedy: str) -> Examples:
    """Read one split from the hub or its cache.

    Args:
        data: What to read.
        split: Which part of it.
        absent: The folders that are not there, for the message.
        remedy: What else than a connection would help, for the message.

    Raises:
        DataError: It cannot be loaded, or is not what `data` says.
    """
    try:
        dataset = _open(data.hub_name, data.subset, split)
    except Exception as error:  # the hub's client raises the errors of half a dozen libraries
        raise DataError(
            f"{data.title} was not found: there is no folder {absent}, and the hub's "
            f"{data.hub_name} cannot be loaded ({_reason(error)}); {remedy}, or connect to the "
            "internet"
        ) from error
    return _read(dataset, data, source=data.hub_name)


def _read_folder(data: ImageSet, split: Split) -> Examples:
    try:
        dataset = _open_folder(data.folder, data.subset, split)
    except Exception as error:  # as above
        raise DataError(
            f"{data.folder} cannot be loaded as {data.title} ({_reason(error)}); the folder must "
            f"hold the parquet files of the hub's {data.hub_name}, or what save_to_disk made of "
            "it: complete it or remove it"
        ) from error
    return _read(dataset, data, source=str(data.folder))


def _open_folder(folder: Path, subset: str | None, split: Split) -> Dataset:
    if (folder / "dataset_dict.json").is_file():
        import datasets

        return datasets.load_from_disk(str(folder))[split]
    # The name of a configuration means nothing to bare files, and a folder may hold one only.
    within = folder / (subset or "")
    return _open(str(within if within.is_dir() else folder), None, split)


def _open(path: str, subset: str | None, split: Split) -> Dataset:
    # Set before the import, which reads it: loading a data set should not report usage.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from flwr_datasets import FederatedDataset

    # No shuffling here: the partition shuffles, with the seed of the run.
    hub = FederatedDataset(dataset=path, subset=subset, partitioners={}, shuffle=False)
    return hub.load_split(split)


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _read(dataset: Dataset, data: ImageSet, source: str) -> Examples:
    if not {data.image, data.label} <= set(dataset.column_names):
        raise DataError(
            f"{data.title} from {source} has columns {sorted(dataset.column_names)}; "
            f"{data.image!r} and {data.label!r} must be among them: fetch the data set again"
        )
    labels = dataset.select_columns(data.label).with_format("numpy")[:][data.label]
    return to_examples(_pixels(dataset, data, source), labels, data, source)


def _pixels(dataset: Dataset, data: ImageSet, source: str) -> Bytes:
    try:
        pieces = _decode(dataset, data)
    except Exception as error:  # those of datasets, Pillow and pyarrow
        raise DataError(
            f"{data.title} from {source} has a column {data.image!r} that cannot be decoded "
            f"({_reason(error)}); it must hold encoded images: fetch the data set again"
        ) from error
    shapes = {np.shape(image) for piece in pieces for image in piece}
    if shapes != {data.shape}:
        raise DataError(
            f"{data.title} from {source} has {len(dataset)} images, of shapes {sorted(shapes)}; "
            f"there must be some, all of shape {data.shape}: fetch the data set again"
        )
    return np.concatenate(pieces)


def _decode(dataset: Dataset, data: ImageSet) -> list[NDArray[np.generic]]:
    """Return uint8 [PIECE, *data.shape]s, or arrays of objects where the shapes differ."""
    import datasets

    images = dataset.select_columns(data.image)
    images = images.cast_column(data.image, datasets.Image(mode=data.mode)).with_format("numpy")
    return [piece[data.image] for piece in images.iter(batch_size=PIECE)]


def to_examples(
    pixels: Bytes, labels: NDArray[np.generic], data: ImageSet, source: str
) -> Examples:
    """Check the labels and normalise the images.

    Args:
        pixels: uint8 [n, *data.shape].
        labels: Class indices [n].
        data: What both must be.
        source: Where they are from, for the message.

    Raises:
        DataError: There are no labels, or one is no class index.
    """
    wrong = set(labels.tolist()) - set(range(data.classes))
    if wrong or len(labels) == 0:
        raise DataError(
            f"{data.title} from {source} has {len(labels)} labels, among them "
            f"{sorted(wrong, key=str)[:3]}; there must be some, all in 0 .. {data.classes - 1}: "
            "fetch the data set again"
        )
    return Examples(normalise(pixels, data.mean, data.std), labels.astype(np.int64))


def _task(data: ImageSet) -> Task:
    train, test = (functools.partial(load, data, split) for split in ("train", "test"))
    return Task(data.name, data.model, train, test)


TASKS = tuple(_task(data) for data in (CIFAR10, CIFAR100, SVHN, CINIC10))
"""The tasks `cifar10`, `cifar100`, `svhn` and `cinic10`."""
