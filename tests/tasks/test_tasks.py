"""The built-in tasks: what they load, from where, and what they say when they cannot."""

from __future__ import annotations

import gzip
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedkit.core.errors import DataError
from fedkit.tasks import BUILT_IN, digits, fashion_mnist, load_task
from fedkit.tasks.task import Examples
from tests.fresh import imported_by

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 28, 28)).astype(np.uint8)
LABELS = (np.arange(30) % 10).astype(np.uint8)


def check_examples(examples: Examples, shape: tuple[int, ...]) -> None:
    assert examples.inputs.shape == shape
    assert examples.inputs.dtype == np.float32
    assert examples.targets.dtype == np.int64
    assert examples.classes.tolist() == list(range(10))


# The registry


def test_built_in_tasks_are_found_by_name() -> None:
    hub = ["cifar10", "cifar100", "cinic10", "svhn"]
    digits = ["digits", "digits-pixels", "digits-reconstruction", "digits-rows"]
    ours = [*digits, "damaged-digits", "fashion-mnist", "fortunes"]
    ours += ["keywords", "keywords-kwt", "motions", "motions-gru"]
    assert sorted(BUILT_IN) == sorted([*ours, *hub])
    assert all(load_task(name) is task for name, task in BUILT_IN.items())


def test_importing_the_tasks_imports_no_data_library() -> None:
    heavy = "{'sklearn', 'datasets', 'flwr_datasets', 'pandas', 'pyarrow'}"
    code = f"import sys, fedkit.tasks; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Digits


def test_digits_have_the_documented_shape_and_range() -> None:
    check_examples(digits.train_data(), (1437, 1, 8, 8))
    check_examples(digits.test_data(), (360, 1, 8, 8))
    levels = np.unique(digits.train_data().inputs)
    assert np.array_equal(levels, np.arange(17, dtype=np.float32) / 16)


def test_digits_are_split_by_class_and_completely() -> None:
    from sklearn.datasets import load_digits

    train, test = digits.train_data(), digits.test_data()
    shares = np.bincount(test.targets) / np.bincount(np.append(train.targets, test.targets))
    assert shares == pytest.approx([0.2] * 10, abs=0.005)
    ours = np.concatenate([train.inputs, test.inputs]).reshape(-1, 64) * 16
    assert sorted(map(bytes, ours)) == sorted(map(bytes, load_digits().data.astype(np.float32)))


def test_digits_are_split_as_scikit_learn_does() -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, targets = load_digits(return_X_y=True)
    parts = train_test_split(images, targets, test_size=0.2, stratify=targets, random_state=0)
    for ours, (inputs, labels) in zip(
        (digits.train_data(), digits.test_data()), (parts[::2], parts[1::2]), strict=True
    ):
        np.testing.assert_array_equal(ours.inputs.reshape(-1, 64) * 16, inputs)
        np.testing.assert_array_equal(ours.targets, labels)


@pytest.mark.parametrize("number", [4, 7, 13, 20])
def test_a_stratified_draw_breaks_ties_as_scikit_learn_does(number: int) -> None:
    from sklearn.utils.extmath import _approximate_mode

    counts = np.array([5, 2, 2, 7, 5, 2])
    for seed in range(20):
        drawn = digits._drawn(counts, number, np.random.RandomState(seed))
        expected = _approximate_mode(counts, number, np.random.RandomState(seed))
        np.testing.assert_array_equal(drawn, expected)


def test_digits_need_no_import_of_scikit_learn() -> None:
    code = "from fedkit.tasks import digits; assert len(digits.train_data().targets) == 1437"
    assert imported_by(code) & {"sklearn", "scipy", "pandas"} == set()


def test_digits_never_change() -> None:
    splits = (digits.train_data(), digits.test_data())
    sums = [zlib.crc32(split.inputs.tobytes() + split.targets.tobytes()) for split in splits]
    assert sums == [2555204360, 2214273143]


def test_digits_are_loaded_once_per_process() -> None:
    assert digits.train_data() is digits.train_data()


def test_the_model_of_digits_takes_its_inputs() -> None:
    model = digits.TASK.build_model(seed=0).eval()
    outputs = model(torch.from_numpy(digits.test_data().inputs[:5]))
    assert outputs.shape == (5, 10)


# Fashion-MNIST from folders


def idx(values: NDArray[np.uint8]) -> bytes:
    shape = np.array(values.shape, ">u4").tobytes()
    return bytes([0, 0, 8, values.ndim]) + shape + values.tobytes()


def write_folder(folder: Path, packed: bool = True) -> Path:
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        for name, values in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
            path = folder / f"{prefix}-{name}-ubyte"
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(values), mtime=0))
            else:
                path.write_bytes(idx(values))
    return folder


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder without any Fashion-MNIST; returns it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDKIT_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    fashion_mnist._load.cache_clear()
    yield tmp_path
    fashion_mnist._load.cache_clear()


def check_is_sample(examples: Examples) -> None:
    check_examples(examples, (30, 1, 28, 28))
    assert np.array_equal(examples.targets, LABELS)
    grey = examples.inputs[:, 0] * fashion_mnist.STD + fashion_mnist.MEAN
    np.testing.assert_allclose(grey * 255, IMAGES, atol=1e-3)


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_read_from_the_working_folder(nowhere: Path, packed: bool) -> None:
    write_folder(nowhere / "data" / "fashion-mnist", packed)
    check_is_sample(fashion_mnist.train_data())
    check_is_sample(fashion_mnist.test_data())


def test_the_variable_moves_the_local_folder(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(nowhere / "elsewhere" / "fashion-mnist")
    monkeypatch.setenv("FEDKIT_DATA", "elsewhere")
    check_is_sample(fashion_mnist.test_data())


def test_the_folder_of_the_debian_package_comes_second(nowhere: Path) -> None:
    debian = write_folder(nowhere / "debian")
    check_is_sample(fashion_mnist.test_data())
    fashion_mnist._load.cache_clear()
    (debian / "t10k-labels-idx1-ubyte.gz").unlink()
    write_folder(nowhere / "data" / "fashion-mnist")
    check_is_sample(fashion_mnist.test_data())


@pytest.mark.skipif(
    not fashion_mnist.DEBIAN_FOLDER.is_dir(),
    reason="the Debian package dataset-fashion-mnist is not installed",
)
def test_the_debian_package_holds_what_the_constants_say() -> None:
    images, labels = fashion_mnist.read_folder(fashion_mnist.DEBIAN_FOLDER, "train")
    assert images.shape == (60000, 28, 28)
    assert np.bincount(labels).tolist() == [6000] * 10
    assert images.mean() / 255 == pytest.approx(fashion_mnist.MEAN, abs=1e-4)
    assert images.std() / 255 == pytest.approx(fashion_mnist.STD, abs=1e-4)


# Broken files


def check_data_error(*parts: str) -> None:
    with pytest.raises(DataError) as caught:
        fashion_mnist.test_data()
    message = str(caught.value)
    for part in parts:
        assert part in message


def test_a_missing_file_is_named(nowhere: Path) -> None:
    folder = write_folder(nowhere / "data" / "fashion-mnist")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    check_data_error("no t10k-labels-idx1-ubyte.gz", "four idx files", "complete it or remove it")


PACKED_IMAGES = gzip.compress(idx(IMAGES), mtime=0)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (
            gzip.compress(idx(LABELS), mtime=0),
            ("starts with 00 00 08 01", "starts with 00 00 08 03"),
        ),
        (
            gzip.compress(b"\x00\x00\x0b\x03" + bytes(12), mtime=0),
            ("00 00 0b 03", "idx file of bytes"),
        ),
        (gzip.compress(b"", mtime=0), ("starts with nothing",)),
        (gzip.compress(idx(IMAGES)[:10], mtime=0), ("starts with 00 00 08 03", "and its shape")),
        (gzip.compress(idx(IMAGES)[:-1], mtime=0), ("holds 23519 values", "needs 23520")),
        (gzip.compress(idx(IMAGES) + b"x", mtime=0), ("holds 23521 values", "needs 23520")),
        (PACKED_IMAGES[:-500], ("cannot be read", "fetch it again")),
        (PACKED_IMAGES[:200] + bytes(200) + PACKED_IMAGES[400:], ("cannot be read",)),
        (idx(IMAGES), ("cannot be read", "Not a gzipped file")),
        (gzip.compress(idx(IMAGES[:, :27]), mtime=0), ("(30, 27, 28)", "must be [n, 28, 28]")),
        (gzip.compress(idx(IMAGES[1:]), mtime=0), ("(29, 28, 28)", "30 labels")),
    ],
)
def test_a_broken_image_file_is_refused(
    nowhere: Path, content: bytes, parts: tuple[str, ...]
) -> None:
    folder = write_folder(nowhere / "data" / "fashion-mnist")
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    check_data_error(*parts)


def test_a_file_that_unpacks_to_a_giant_is_refused_and_not_unpacked(nowhere: Path) -> None:
    folder = write_folder(nowhere / "data" / "fashion-mnist")
    bomb = gzip.compress(bytes(300 << 20), compresslevel=1, mtime=0)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(bomb)
    check_data_error("unpacks to more than", "fetch it again")


@pytest.mark.parametrize("kind", ["giant", "claims"])
def test_a_file_that_is_or_claims_to_be_a_giant_is_refused(nowhere: Path, kind: str) -> None:
    folder = write_folder(nowhere / "data" / "fashion-mnist", packed=False)
    path = folder / "t10k-images-idx3-ubyte"
    if kind == "claims":
        path.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12)
        check_data_error("holds 0 values", "needs 79228162458924105385300197375")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
        check_data_error("cannot be read", "holds 1,099,511,627,776 bytes")


def test_a_label_out_of_range_is_refused(nowhere: Path) -> None:
    folder = write_folder(nowhere / "data" / "fashion-mnist")
    labels = gzip.compress(idx(LABELS + np.uint8(1)), mtime=0)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(labels)
    check_data_error("labels, among them [10]", "0 .. 9")


def test_an_empty_data_set_is_refused(nowhere: Path) -> None:
    folder = write_folder(nowhere / "data" / "fashion-mnist")
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES[:0]), mtime=0))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[:0]), mtime=0))
    check_data_error("has 0 labels")


# The hub


@pytest.fixture
def hub(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's format, parquet files with encoded images, in place of the network."""
    folder = nowhere / "hub"
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}
    )
    for split in ("train", "test"):
        columns = {"image": list(IMAGES), "label": LABELS.tolist()}
        dataset = datasets.Dataset.from_dict(columns, features=features)
        dataset.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    real = datasets.load_dataset

    def load_local(path: str, name: str | None) -> datasets.DatasetDict:
        assert path == fashion_mnist.IMAGES.hub_name
        return real(str(folder), name, cache_dir=str(nowhere / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_local)
    return folder


def test_fashion_mnist_is_loaded_from_the_hub_when_no_folder_has_it(hub: Path) -> None:
    check_is_sample(fashion_mnist.train_data())
    check_is_sample(fashion_mnist.test_data())


def test_without_any_source_the_error_names_all_three(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(path: str, name: str | None) -> None:
        raise ConnectionError("no route to the hub\nand a long explanation")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    check_data_error(
        "data/fashion-mnist",
        str(nowhere / "debian"),
        "zalando-datasets/fashion_mnist cannot be loaded (no route to the hub)",
        "FEDKIT_DATA",
        "install the Debian package dataset-fashion-mnist",
        "connect to the internet",
    )
