"""Files, folders and data sets of other libraries as examples; what does not fit is named."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from numpy.typing import NDArray
from PIL import Image as Pictures
from torch.utils import data as torch_data

from fedkit.core.errors import DataError
from fedkit.tasks import sources
from fedkit.tasks.lazy_array import is_lazy

DRAWS = np.random.default_rng(0)
LEVELS = DRAWS.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def normalised(levels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return what torchvision's ToTensor and Normalize make, in float64."""
    tensor = levels.astype(np.float64).transpose(0, 3, 1, 2) / 255
    shape = (-1, 1, 1)
    return (tensor - np.array(MEAN).reshape(shape)) / np.array(STD).reshape(shape)


# Stored


def pairs(count: int) -> Iterator[tuple[Any, Any]]:
    return ((np.full((2, 3), index, np.float32), np.int64(index % 2)) for index in range(count))


def test_what_can_only_be_iterated_is_stored_and_read(tmp_path: Path) -> None:
    sources.store(tmp_path / "new" / "data", pairs(5), 5)
    found = sources.stored(tmp_path / "new" / "data")
    assert is_lazy(found.inputs) and not is_lazy(found.targets)
    np.testing.assert_array_equal(found.inputs[[4, 0]][:, 1, 2], [4, 0])
    np.testing.assert_array_equal(found.targets, [0, 1, 0, 1, 0])
    file = np.load(tmp_path / "new" / "data" / "inputs.npy")
    np.testing.assert_array_equal(file[:, 0, 0], range(5))
    np.save(tmp_path / "new" / "data" / "owners.npy", np.array(["a", "b", "a", "c", "c"]))
    owners = sources.stored(tmp_path / "new" / "data").owners
    assert owners is not None and owners.tolist() == ["a", "b", "a", "c", "c"]


def failing() -> Iterator[Any]:
    yield from pairs(2)
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("items", "count", "message"),
    [
        (lambda: pairs(4), 5, "4 items came, and count is 5"),
        (lambda: pairs(6), 5, "more items came than the 5"),
        (lambda: pairs(1), 0, "count is 0"),
        (failing, 3, "item 2 for .* failed with OSError: the disk is gone"),
        (lambda: [*pairs(2), (np.zeros((2, 4), np.float32), np.int64(0))], 3, r"item 2 .*\(2, 4\)"),
        (lambda: [*pairs(2), (np.zeros((2, 3)), np.int64(0))], 3, "item 2 .* holds float64"),
        (lambda: [*pairs(2), (np.zeros((2, 3), np.float32),)], 3, "item 2"),
        (lambda: [(object(), 1)], 1, "item 0 for .* object"),
    ],
)
def test_a_store_that_fails_leaves_nothing(
    items: Any, count: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        sources.store(tmp_path / "data", items(), count)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_stored_over(tmp_path: Path) -> None:
    sources.store(tmp_path / "data", pairs(2), 2)
    with pytest.raises(DataError, match="is there already"):
        sources.store(tmp_path / "data", pairs(3), 3)
    assert len(sources.stored(tmp_path / "data")) == 2
    (tmp_path / "data" / "targets.npy").unlink()
    with pytest.raises(DataError, match=r"targets\.npy"):
        sources.stored(tmp_path / "data")


# Data sets of other libraries


def test_a_torch_dataset_gives_its_items() -> None:
    x, y = torch.randn(9, 2, 3), torch.arange(9) % 4
    for targets in (None, y):
        found = sources.torch_dataset(torch_data.TensorDataset(x, y), targets)
        np.testing.assert_array_equal(found.inputs[[8, 2]], x[[8, 2]].numpy())
        np.testing.assert_array_equal(found.targets, y.numpy())
    part = sources.torch_dataset(torch_data.Subset(torch_data.TensorDataset(x, y), [5, 1]))
    np.testing.assert_array_equal(part.inputs[:], x[[5, 1]].numpy())


class Shrinking(torch_data.Dataset[Any]):
    """A data set whose items go away."""

    held = 5

    def __len__(self) -> int:
        return self.held

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index >= self.held:
            raise IndexError(index)
        return np.zeros(3), index


def test_torch_datasets_that_do_not_fit_are_refused() -> None:
    data = Shrinking()
    found = sources.torch_dataset(data)
    data.held = 2
    with pytest.raises(DataError, match="Shrinking: reading item 4 failed with IndexError"):
        found.inputs[[1, 4]]
    data.held = 0
    with pytest.raises(DataError, match="no items"):
        sources.torch_dataset(data)
    with pytest.raises(DataError, match="item 0 is a Tensor; it must be"):
        sources.torch_dataset(torch.zeros(3, 3))
    uneven = [(np.zeros(3), 0), (np.zeros(4), 1)]
    with pytest.raises(DataError, match=r"item 1 is float64 \(4,\)"):
        sources.torch_dataset(uneven).inputs[:]


def images() -> Dataset:
    features = Features({"img": Image(), "kind": ClassLabel(num_classes=3), "who": Value("string")})
    rows = {
        "img": [Pictures.fromarray(each) for each in LEVELS],
        "kind": [0, 1, 2, 0, 1, 2],
        "who": list("aabbcc"),
    }
    return Dataset.from_dict(rows, features)


def test_a_data_set_of_the_hub_gives_its_images() -> None:
    found = sources.hub_dataset(images(), "img", "kind", "who", sources.pixels(MEAN, STD))
    assert is_lazy(found.inputs) and found.inputs.dtype == np.float32
    np.testing.assert_allclose(found.inputs[[3, 0]], normalised(LEVELS[[3, 0]]), atol=1e-6)
    assert found.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.owners is not None and found.owners.tolist() == list("aabbcc")
    raw = sources.hub_dataset(images(), "img", "kind")
    np.testing.assert_array_equal(raw.inputs[:], LEVELS)


def test_columns_that_are_not_there_are_named() -> None:
    with pytest.raises(DataError, match="no column image, label; its columns are img, kind, who"):
        sources.hub_dataset(images())
    mixed = Dataset.from_dict({"image": [[1.0, 2.0], [3.0]], "label": [0, 1]})
    with pytest.raises(DataError, match="row 1 is"):
        sources.hub_dataset(mixed).inputs[:]
    text = Dataset.from_dict({"image": [[1.0], [3.0]], "label": ["a", "b"]})
    with pytest.raises(Exception, match="targets are <U1, which is text"):
        sources.hub_dataset(text)


# Folders


def picture_folder(folder: Path) -> Path:
    for index, levels in enumerate(LEVELS):
        kind = "dog" if index % 2 else "cat"
        within = folder / "pictures" / kind / ("deep" if index == 3 else "")
        within.mkdir(parents=True, exist_ok=True)
        Pictures.fromarray(levels).save(within / f"{index}.png")
    (folder / "pictures" / "notes.txt").write_text("not a class")
    return folder / "pictures"


ORDER = [0, 2, 4, 1, 5, 3]


def test_a_folder_of_images_is_numbered_by_its_folders(tmp_path: Path) -> None:
    found = sources.image_folder(picture_folder(tmp_path), MEAN, STD)
    assert found.targets.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(found.inputs[:], normalised(LEVELS[ORDER]), atol=1e-6)
    grey = sources.image_folder(tmp_path / "pictures", [0.5], [0.25], size=(7, 9))
    assert grey.inputs.shape == (6, 1, 7, 9)
    with Pictures.open(tmp_path / "pictures" / "cat" / "2.png") as picture:
        wanted = np.asarray(picture.convert("L").resize((9, 7), Pictures.Resampling.BILINEAR))
    np.testing.assert_allclose(grey.inputs[[1]][0, 0], (wanted / 255 - 0.5) / 0.25, atol=1e-6)


def test_image_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        sources.image_folder(tmp_path / "missing", MEAN, STD)
    with pytest.raises(DataError, match="holds no folders"):
        sources.image_folder(folder / "cat", MEAN, STD)
    for mean, std in (((0.5, 0.5), (1.0, 1.0)), (MEAN, (1.0,)), (MEAN, (1.0, 0.0, 1.0))):
        with pytest.raises(DataError, match="a number for each channel"):
            sources.image_folder(folder, mean, std)
    Pictures.new("RGB", (9, 9)).save(folder / "dog" / "9.png")
    with pytest.raises(DataError, match=r"9\.png has 9 x 9 pixels and .*0\.png 5 x 4; give size"):
        sources.image_folder(folder, MEAN, STD)
    whole = (folder / "dog" / "9.png").read_bytes()
    Pictures.fromarray(LEVELS[0]).save(folder / "dog" / "9.png")
    whole = (folder / "dog" / "9.png").read_bytes()
    (folder / "dog" / "9.png").write_bytes(whole[: len(whole) // 2])
    cut = sources.image_folder(folder, MEAN, STD)
    with pytest.raises(DataError, match=r"reading .*9\.png failed"):
        cut.inputs[:]
    (folder / "dog" / "9.png").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"9\.png failed with UnidentifiedImageError"):
        sources.image_folder(folder, MEAN, STD)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no file"):
        sources.image_folder(folder, MEAN, STD)


def sound(path: Path, codes: Any, rate: int = 8000, width: int = 2, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(np.asarray(codes, f"<i{width}" if width > 1 else "u1").tobytes())


def test_a_folder_of_sounds_is_cut_and_filled(tmp_path: Path) -> None:
    sound(tmp_path / "no" / "b.wav", [1, -2, 3])
    sound(tmp_path / "yes" / "a.WAV", [-(2**15), 2**15 - 1, 5, 6, 7])
    found = sources.wav_folder(tmp_path, samples=4, rate=8000)
    wanted = np.array([[[1, -2, 3, 0]], [[-(2**15), 2**15 - 1, 5, 6]]]) / 2**15
    np.testing.assert_array_equal(found.inputs[:], wanted.astype(np.float32))
    assert found.targets.tolist() == [0, 1] and found.inputs.dtype == np.float32


def test_sounds_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    sound(tmp_path / "no" / "a.wav", [1, 2, 3])
    for how in ({"rate": 16000}, {"width": 1}, {"width": 4}, {"channels": 3}):
        sound(tmp_path / "yes" / "b.wav", [1, 2, 3], **how)
        with pytest.raises(DataError, match=r"b\.wav has .*; all must have 8000 of 16 bits in 1"):
            sources.wav_folder(tmp_path, 4, 8000)
    (tmp_path / "yes" / "b.wav").write_bytes(b"RIFFnothing")
    with pytest.raises(DataError, match=r"b\.wav cannot be read as a \.wav file"):
        sources.wav_folder(tmp_path, 4, 8000)
    sound(tmp_path / "yes" / "b.wav", range(100))
    whole = (tmp_path / "yes" / "b.wav").read_bytes()
    (tmp_path / "yes" / "b.wav").write_bytes(whole[:-150])
    with pytest.raises(DataError, match=r"b\.wav cannot be read|b\.wav.*ends after 25 of 100"):
        sources.wav_folder(tmp_path, 100, 8000).inputs[:]
    for samples in (0, -1, 1 << 40):
        with pytest.raises(DataError, match="samples is"):
            sources.wav_folder(tmp_path, samples, 8000)
