"""The image sets of the hub, read by the real libraries from small copies of the hub's folders."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fedkit.cli import main
from fedkit.core.errors import DataError
from fedkit.tasks import hub, load_task
from fedkit.tasks.hub import CIFAR10, CIFAR100, CINIC10, SVHN, ImageSet, Split
from fedkit.tasks.task import Examples
from tests.sets import slow_but

N = 40
DATA = {data.name: data for data in (CIFAR10, CIFAR100, SVHN, CINIC10)}

# Per task: the folder of its files on the hub, its splits and its other columns.
HUB: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "cifar10": ("plain_text", ("train", "test"), ()),
    "cifar100": ("cifar100", ("train", "test"), ("coarse_label",)),
    "svhn": ("cropped_digits", ("train", "test", "extra"), ()),
    "cinic10": ("data", ("train", "validation", "test"), ()),
}


def sample(data: ImageSet, split: str, n: int = N) -> tuple[NDArray[np.uint8], list[int]]:
    """Return images uint8 [n, 32, 32, 3] and labels, the first and last class among them."""
    splits = ("train", "test", "extra", "validation")
    rng = np.random.default_rng(splits.index(split))
    labels = rng.integers(0, data.classes, n)
    labels[:2] = 0, data.classes - 1
    return rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8), labels.tolist()


def table(data: ImageSet, images: Any, labels: Any, others: tuple[str, ...] = ()) -> Any:
    columns = {data.image: list(images), data.label: labels}
    features = {data.image: datasets.Image(), data.label: datasets.Value("int64")}
    for name in others:
        columns[name] = [7] * len(labels)
        features[name] = datasets.Value("int64")
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def write_hub(root: Path, data: ImageSet) -> Path:
    """Write a small copy of the hub's repository below `root`; return its folder."""
    repository = root / data.name
    folder, splits, others = HUB[data.name]
    for split in splits:
        part = table(data, *sample(data, split), others)
        part.to_parquet(str(repository / folder / f"{split}-00000-of-00001.parquet"))
    card = f"---\nconfigs:\n{config(folder, splits)}"
    if data is SVHN:
        other = datasets.Dataset.from_dict({"digits": [1, 2]})
        other.to_parquet(str(repository / "full_numbers" / "train-00000-of-00001.parquet"))
        card += config("full_numbers", ("train",))
    (repository / "README.md").write_text(f"{card}---\n")
    return repository


def config(folder: str, splits: tuple[str, ...]) -> str:
    files = "".join(f"  - split: {split}\n    path: {folder}/{split}-*\n" for split in splits)
    return f"- config_name: {folder}\n  data_files:\n{files}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty `$FEDKIT_DATA`, with the cache of the library beside it."""
    monkeypatch.setenv("FEDKIT_DATA", str(tmp_path / "place"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub.load.cache_clear()
    yield tmp_path / "place"
    hub.load.cache_clear()


def slow_reference(data: ImageSet, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    inputs = np.empty((len(images), 3, 32, 32))
    for channel, row, column in itertools.product(range(3), range(32), range(32)):
        level = images[:, row, column, channel] / 255
        inputs[:, channel, row, column] = (level - data.mean[channel]) / data.std[channel]
    return inputs


def check_is_sample(examples: Examples, data: ImageSet, split: Split) -> None:
    images, labels = sample(data, split)
    assert examples.inputs.dtype == np.float32 and examples.inputs.flags.c_contiguous
    assert examples.targets.dtype == np.int64
    assert examples.targets.tolist() == labels
    np.testing.assert_allclose(examples.inputs, slow_reference(data, images), atol=2e-6)


def check_task(data: ImageSet) -> None:
    task = load_task(data.name)
    check_is_sample(task.train_data(), data, "train")
    check_is_sample(task.test_data(), data, "test")


def check_data_error(name: str, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        load_task(name).train_data()
    message = str(caught.value)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("data", slow_but((CIFAR10, CIFAR100), DATA.values()), ids=DATA)
def test_the_model_of_a_task_takes_its_inputs(place: Path, data: ImageSet) -> None:
    write_hub(place, data)
    task = load_task(data.name)
    assert task.model == "resnet18"
    outputs = task.build_model(seed=0).eval()(torch.from_numpy(task.test_data().inputs[:2]))
    assert outputs.shape == (2, data.classes)


# Where the data is


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_a_copy_of_the_hubs_files_is_read_from_the_local_folder(
    place: Path, data: ImageSet
) -> None:
    write_hub(place, data)
    check_task(data)


@pytest.mark.parametrize("data", slow_but((CIFAR10, CINIC10), DATA.values()), ids=DATA)
def test_without_a_folder_the_hub_is_asked(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: ImageSet
) -> None:
    repository = write_hub(tmp_path, data)
    real = datasets.load_dataset

    def load_copy(path: str, name: str | None) -> datasets.DatasetDict:
        assert path == data.hub_name
        return real(str(repository), name)

    monkeypatch.setattr(datasets, "load_dataset", load_copy)
    check_task(data)


def test_bare_files_beside_each_other_will_do(place: Path) -> None:
    place.mkdir()
    files = write_hub(place.parent, SVHN) / "cropped_digits"
    shutil.copytree(files, place / "svhn")
    check_task(SVHN)


def test_what_save_to_disk_wrote_is_read_without_a_copy_in_the_cache(place: Path) -> None:
    splits = {split: table(CIFAR10, *sample(CIFAR10, split)) for split in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(str(place / "cifar10"))
    check_task(CIFAR10)
    assert not (place.parent / "cache").exists()


def test_a_split_is_read_once_per_process(place: Path) -> None:
    repository = write_hub(place, CINIC10)
    task = load_task("cinic10")
    first = task.train_data()
    shutil.rmtree(repository)
    assert task.train_data() is first


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_a_data_set_that_is_nowhere_names_both_places(place: Path, data: ImageSet) -> None:
    check_data_error(
        data.name,
        f"{data.title} was not found: there is no folder {place / data.name},",
        f"the hub's {data.hub_name} cannot be loaded (Couldn't reach '{data.hub_name}'",
        "put the hub's files into that folder (FEDKIT_DATA sets its parent)",
        "connect to the internet",
    )


# Images of all kinds


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_another_mode_become_rgb(place: Path, mode: str) -> None:
    images, labels = sample(CIFAR10, "train")
    pictures = [Image.fromarray(image).convert(mode) for image in images]
    table(CIFAR10, pictures, labels).to_parquet(str(place / "cifar10" / "train.parquet"))
    levels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    found = load_task("cifar10").train_data().inputs
    np.testing.assert_allclose(found, slow_reference(CIFAR10, levels), atol=2e-6)


@pytest.mark.parametrize("piece", [1, 7, N, N + 1])
def test_pieces_of_any_size_make_the_same_examples(
    place: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    write_hub(place, CIFAR10)
    monkeypatch.setattr(hub, "PIECE", piece)
    check_is_sample(load_task("cifar10").train_data(), CIFAR10, "train")


def test_50_000_images_would_need_less_than_a_gigabyte(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "PIECE", hub.PIECE // 4)
    n = 3 * hub.PIECE
    table(CIFAR10, *sample(CIFAR10, "train", n)).to_parquet(str(place / "cifar10/train.parquet"))
    load_task("cifar10")
    tracemalloc.start()
    examples = load_task("cifar10").train_data()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(examples) == n
    assert peak / n * 50_000 < 1e9


# What is refused


def write_train(place: Path, dataset: Any) -> None:
    dataset.to_parquet(str(place / "cifar10" / "train.parquet"))


def test_other_columns_are_refused(place: Path) -> None:
    images, labels = sample(CIFAR10, "train")
    write_train(place, table(CIFAR10, images, labels).rename_column("img", "image"))
    source = f"CIFAR-10 from {place / 'cifar10'}"
    check_data_error(
        "cifar10", f"{source} has columns ['image', 'label']; 'img' and 'label' must be among them"
    )


@pytest.mark.parametrize("rows", [28, 33])
@pytest.mark.parametrize("which", [slice(None), slice(5, 6)], ids=["all", "one"])
def test_images_of_another_size_are_refused(place: Path, rows: int, which: slice) -> None:
    images, labels = sample(CIFAR10, "train")
    mixed = list(images)
    mixed[which] = [np.resize(image, (rows, 32, 3)) for image in mixed[which]]
    write_train(place, table(CIFAR10, mixed, labels))
    check_data_error("cifar10", "40 images", f"({rows}, 32, 3)", "all of shape (32, 32, 3)")


def test_a_missing_image_is_refused(place: Path) -> None:
    images, labels = sample(CIFAR10, "train")
    write_train(place, table(CIFAR10, [None, *images[1:]], labels))
    check_data_error("cifar10", "of shapes [(), (32, 32, 3)]")


def test_a_split_without_rows_is_refused(place: Path) -> None:
    empty = datasets.DatasetDict(train=table(CIFAR10, [], []))
    empty.save_to_disk(str(place / "cifar10"), num_shards={"train": 1})
    check_data_error("cifar10", "has 0 images, of shapes []; there must be some")


@pytest.mark.parametrize("label", [-1, 10, None])
def test_a_label_that_is_no_class_is_refused(place: Path, label: int | None) -> None:
    images, labels = sample(CIFAR10, "train")
    write_train(place, table(CIFAR10, images, [*labels[1:], label]))
    named = "nan" if label is None else str(label)
    check_data_error("cifar10", f"has 40 labels, among them [{named}]", "all in 0 .. 9")


def test_labels_in_words_are_refused(place: Path) -> None:
    words = table(CIFAR10, *sample(CIFAR10, "train")).cast_column("label", datasets.Value("string"))
    write_train(place, words)
    check_data_error("cifar10", "has 40 labels, among them ['0', '1', '2']", "all in 0 .. 9")


@pytest.mark.parametrize("content", [{"bytes": b"no image"}, 3], ids=["bytes", "number"])
def test_a_column_that_holds_no_images_is_refused(place: Path, content: Any) -> None:
    write_train(place, datasets.Dataset.from_dict({"img": [content], "label": [0]}))
    check_data_error("cifar10", "column 'img' that cannot be decoded", "must hold encoded images")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "doesn't contain any data files"),
        ({"train.parquet": b"PAR1 and no more"}, "cannot be loaded as CIFAR-10"),
        ({"dataset_dict.json": b'{"splits": ["train"]}'}, "cannot be loaded as CIFAR-10"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused(
    place: Path, files: dict[str, bytes], reason: str
) -> None:
    folder = place / "cifar10"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    check_data_error("cifar10", str(folder), reason, "uoft-cs/cifar10", "complete it or remove it")


def test_a_folder_without_the_split_is_refused(place: Path) -> None:
    images, labels = sample(CIFAR10, "test")
    table(CIFAR10, images, labels).to_parquet(str(place / "cifar10" / "test.parquet"))
    check_data_error("cifar10", "'train' is not present", "complete it or remove it")


# From the files to the artifact


@pytest.mark.slow
def test_a_run_on_cifar10_ends_with_an_artifact(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_hub(place, CIFAR10)
    flags = "--task cifar10 --model resnet8 --devices 2 --rounds 1 --epochs 1 --server-epochs 1"
    command = f"fedkit run --in-process --json --out {tmp_path} {flags} --min-size 1"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["rounds"] == 1 and summary["test_examples"] == N
    assert Path(summary["artifact"]).stat().st_size == summary["artifact_bytes"] > 0
