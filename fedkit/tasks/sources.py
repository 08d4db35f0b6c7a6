"""Examples from where people keep data: files, folders, and data sets of other libraries.

What is read here stays where it is until a batch needs it (see `fedkit.tasks.lazy_array`): pixels
stay bytes, and memory is bounded by the batch. Targets are read at once, since a fleet is divided
by them.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedkit.core.errors import DataError
from fedkit.core.lookup import theirs
from fedkit.preprocess.wav import check_wav, read_wav
from fedkit.tasks.lazy_array import Items, LazyArray, StoredArray, as_array
from fedkit.tasks.task import Examples

if TYPE_CHECKING:
    from datasets import Dataset

Rows = Callable[[NDArray[Any]], NDArray[Any]]
"""Makes rows [m, ...] of other rows [m, ...]."""

INPUTS, TARGETS, OWNERS = "inputs.npy", "targets.npy", "owners.npy"
"""The files of a stored data set; the last may be missing."""

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_MOST_SAMPLES = 1 << 24
_NPY: Any = np.lib.format  # Public, but untyped in numpy 1.


class Indexed(Protocol):
    """A data set that is indexed by number, as torch's map-style `Dataset` is."""

    def __len__(self) -> int:
        """Return how many items there are."""

    def __getitem__(self, index: int, /) -> Any:
        """Return the item of a number."""


# Files of numpy ------------------------------------------------------------------------------


def npy(path: Path | str) -> LazyArray:
    """Return the rows of an .npy file, read when they are needed.

    Raises:
        DataError: It cannot be read, is not an .npy file, or is shorter than it says.
    """
    return StoredArray(path)


def stored(folder: Path | str) -> Examples:
    """Return the examples of a folder with `inputs.npy`, `targets.npy` and perhaps `owners.npy`.

    Inputs are read when a batch needs them, targets and owners at once.

    Raises:
        DataError: A file is missing or cannot be read.
    """
    within = Path(folder)
    inputs, targets = StoredArray(within / INPUTS), StoredArray(within / TARGETS)
    owners = np.load(within / OWNERS) if (within / OWNERS).is_file() else None
    return Examples(as_array(inputs), targets[:], owners)


def store(folder: Path | str, items: Iterable[tuple[ArrayLike, ArrayLike]], count: int) -> None:
    """Write a data set that can only be iterated, so that `stored` can read it in any order.

    Args:
        folder: Where to. It must not be there yet, and is there whole or not at all.
        items: (input, target) of each example; all inputs are alike, and all targets.
        count: How many there are.

    Raises:
        DataError: The folder is there, or the items are fewer, more, or unlike each other.
    """
    final = Path(folder)
    if final.exists():
        raise DataError(f"{final} is there already; remove it, or read it with sources.stored")
    if count < 1:
        raise DataError(f"{final}: count is {count}; a data set has at least one item")
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.") as unnamed:
        within = Path(unnamed) / final.name
        within.mkdir()
        _write(within, items, count, str(final))
        within.rename(final)


def _write(
    folder: Path, items: Iterable[tuple[ArrayLike, ArrayLike]], count: int, name: str
) -> None:
    remaining = iter(items)
    with (folder / INPUTS).open("wb") as inputs, (folder / TARGETS).open("wb") as targets:
        columns = _Column(inputs, count), _Column(targets, count)
        for index in range(count):
            with theirs(f"item {index} for {name}", DataError):
                pair = next(remaining, None)
                if pair is None:
                    raise DataError(f"{name}: {index} items came, and count is {count}")
                for column, value in zip(columns, pair, strict=True):
                    column.append(np.asarray(value), f"item {index} for {name}")
        if next(remaining, None) is not None:
            raise DataError(f"{name}: more items came than the {count} of count")


class _Column:
    """An .npy file that is written row by row."""

    def __init__(self, file: BinaryIO, count: int) -> None:
        self._file, self._count = file, count
        self._kind: tuple[tuple[int, ...], np.dtype[Any]] | None = None

    def append(self, row: NDArray[Any], title: str) -> None:
        kind = row.shape, row.dtype
        if row.dtype.kind not in "fiub":
            raise DataError(f"{title} holds {row.dtype}; it must hold numbers")
        if self._kind is None:
            self._kind, whole = kind, (self._count, *row.shape)
            described = {"descr": row.dtype.str, "fortran_order": False, "shape": whole}
            _NPY.write_array_header_1_0(self._file, described)
        if kind != self._kind:
            raise DataError(f"{title} holds {_kind(kind)}, and the first {_kind(self._kind)}")
        self._file.write(row.tobytes())


def _kind(found: tuple[tuple[int, ...], np.dtype[Any]]) -> str:
    return f"{found[1]} of shape {found[0]}"


# Data sets of other libraries ----------------------------------------------------------------


def torch_dataset(dataset: Indexed, targets: ArrayLike | None = None) -> Examples:
    """Return the examples of a map-style torch `Dataset` of (input, target) items.

    Args:
        dataset: It must give the same item for an index at each call; what it changes at random
            belongs in `Examples.augment`, which is seeded.
        targets: The targets [n], where they are at hand (`dataset.targets` in torchvision); else
            each item is made once, to read its target.

    Raises:
        DataError: It is empty, or an item is no pair or unlike the first; says which.
    """
    name, count = type(dataset).__name__, len(dataset)

    def part(which: int, index: int) -> NDArray[Any]:
        found = dataset[index]
        if not isinstance(found, Sequence) or len(found) != 2:
            raise DataError(
                f"{name}: item {index} is a {type(found).__name__}; it must be (input, target)"
            )
        return np.asarray(found[which])

    inputs = Items(count, functools.partial(part, 0), name)
    if targets is None:
        targets = Items(count, functools.partial(part, 1), name)[:]
    return Examples(as_array(inputs), targets)  # type: ignore[arg-type]  # converted there


def hub_dataset(
    dataset: Dataset,
    inputs: str = "image",
    targets: str = "label",
    owners: str = "",
    make: Rows | None = None,
    columns: Sequence[str] = (),
) -> Examples:
    """Return the examples of a data set of the library datasets, as `load_dataset` gives one.

    Args:
        dataset: One split.
        inputs: Name of the column of inputs: numbers, or images, which are uint8 [height, width]
            or [height, width, channels].
        targets: Name of the column of targets.
        owners: Name of a column that says whose each example is, or "".
        make: Makes float32 inputs [m, ...] of some rows [m, ...] of the column, such as
            `pixels(mean, std)`.
        columns: Names of further columns that partitions may go by.

    Raises:
        DataError: A column is missing, or the rows of one are not alike.
    """
    wanted = [inputs, targets, *([owners] if owners else []), *columns]
    if missing := [name for name in wanted if name not in dataset.column_names]:
        raise DataError(
            f"the data set has no column {', '.join(missing)}; its columns are "
            f"{', '.join(dataset.column_names)}"
        )
    column = dataset.select_columns(inputs).with_format("numpy")
    rows: LazyArray = Items(
        len(dataset), lambda index: column[index][inputs], f"column {inputs!r}", "row {}".format
    )
    others = {name: _column(dataset, name) for name in wanted[1:]}
    made = rows if make is None else rows.map(make)
    return Examples(
        as_array(made),
        others[targets],
        others[owners] if owners else None,
        columns={name: others[name] for name in columns},
    )


def _column(dataset: Dataset, name: str) -> NDArray[Any]:
    with theirs(f"column {name!r} of the data set", DataError):
        return np.asarray(dataset.select_columns(name).with_format("numpy")[:][name])


# Folders -------------------------------------------------------------------------------------


def image_folder(
    folder: Path | str,
    mean: Sequence[float],
    std: Sequence[float],
    size: tuple[int, int] | None = None,
) -> Examples:
    """Return the images of a folder that holds a folder for each class.

    Classes are numbered from 0 in the order of their folders' names, as torchvision's
    `ImageFolder` does. The header of each file is read at once, its pixels when they are needed.

    Args:
        folder: Holds `CLASS/FILE`.
        mean: Of each channel, at level / 255: three for RGB, one for grey. Images are converted.
        std: Standard deviation of each channel.
        size: (height, width) that images are brought to, bilinearly; by default all must have the
            same.

    Returns:
        Inputs float32 [n, channels, height, width], targets int64 [n].

    Raises:
        DataError: There is no image, one cannot be read, or one has another size.
    """
    files, labels = _class_folders(Path(folder), _IMAGES)
    mode = {1: "L", 3: "RGB"}.get(len(mean), "")
    make = pixels(mean, std)
    sizes = [_image_size(file) for file in files]
    odd = next((i for i, found in enumerate(sizes) if found != sizes[0]), None)
    if size is None and odd is not None:
        raise DataError(
            f"{files[odd]} has {_by(sizes[odd])} pixels and {files[0]} {_by(sizes[0])}; give "
            "size=(height, width) to bring all to one size"
        )

    def image(index: int) -> NDArray[np.uint8]:
        from PIL import Image

        with Image.open(files[index]) as found:
            colours = found.convert(mode)
            if size is not None and size != sizes[index]:
                colours = colours.resize(size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(colours, np.uint8)

    rows = Items(len(files), image, str(folder), lambda index: str(files[index]))
    return Examples(as_array(rows.map(make)), labels)


def wav_folder(folder: Path | str, samples: int, rate: int) -> Examples:
    """Return the sounds of a folder that holds a folder for each class.

    Classes are numbered as in `image_folder`. Files are PCM of 16 bits and one channel.

    Args:
        folder: Holds `CLASS/FILE.wav`.
        samples: Length that sounds are cut to, or filled up to with silence.
        rate: Samples per second that all files must have.

    Returns:
        Inputs float32 [n, 1, samples] in -1 .. 1, targets int64 [n].

    Raises:
        DataError: There is no sound, one cannot be read, or is of another kind.
    """
    if not 0 < samples <= _MOST_SAMPLES:
        raise DataError(f"samples is {samples}; it must be 1 to {_MOST_SAMPLES:,}")
    files, labels = _class_folders(Path(folder), (".wav",))
    for file in files:
        check_wav(file, rate)

    def sound(index: int) -> NDArray[np.float32]:
        codes = read_wav(files[index], rate, samples)
        return np.pad(codes, (0, samples - len(codes)))[None].astype(np.float32) / 2**15

    rows = Items(len(files), sound, str(folder), lambda index: str(files[index]))
    return Examples(as_array(rows), labels)


def _class_folders(folder: Path, endings: tuple[str, ...]) -> tuple[list[Path], NDArray[np.int64]]:
    """Return files of class folders, class by class, and the number of each one's class."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; it must hold a folder for each class")
    classes = sorted(each for each in folder.iterdir() if each.is_dir())
    files = [
        [file for file in sorted(each.rglob("*")) if file.suffix.lower() in endings]
        for each in classes
    ]
    for each, held in zip(classes, files, strict=True):
        if not held:
            raise DataError(f"{each} holds no file *{', *'.join(endings)}; remove it or fill it")
    if not files:
        raise DataError(f"{folder} holds no folders; it must hold one for each class")
    labels = np.repeat(np.arange(len(classes)), [len(held) for held in files])
    return [file for held in files for file in held], labels


def _image_size(file: Path) -> tuple[int, int]:
    """Return (height, width), from the header."""
    from PIL import Image

    with theirs(str(file), DataError), Image.open(file) as image:
        return image.height, image.width


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


# Pixels --------------------------------------------------------------------------------------


def pixels(mean: Sequence[float], std: Sequence[float]) -> Rows:
    """Return a function that makes inputs of levels; see `normalise`.

    Raises:
        DataError: There is not one mean and one positive deviation for each of 1 or 3 channels.
    """
    if len(mean) not in (1, 3) or len(std) != len(mean) or not all(s > 0 for s in std):
        raise DataError(
            f"mean is {mean} and std {std}; they must hold a number for each channel, 1 or 3, and "
            "no deviation may be 0"
        )
    return functools.partial(normalise, mean=mean, std=std)


def normalise(
    levels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32]:
    """Return levels / 255, minus the mean, divided by the standard deviation of each channel.

    Args:
        levels: uint8 [n, height, width] or [n, height, width, channels].
        mean: One number for each channel.
        std: As `mean`.

    Returns:
        float32 [n, channels, height, width].
    """
    channels_last = levels.reshape(*levels.shape[:3], len(mean))
    inputs = np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2), np.float32)
    inputs /= np.float32(255)  # in place, as what follows: a copy is 600 MB for 50,000 images
    inputs -= np.array(mean, np.float32)[:, None, None]
    inputs /= np.array(std, np.float32)[:, None, None]
    return inputs
