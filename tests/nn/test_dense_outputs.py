"""The zoo's models that return maps, or what they were given: sizes, and what they compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edge.export import float_graph
from fedkit.core.errors import ConfigError
from fedkit.graph.interpret import evaluate
from fedkit.nn.dense_outputs import UNet
from fedkit.nn.zoo import MODELS, build_model, smallest_shape
from fedkit.tasks import digits, digits_pixels, digits_reconstruction


def parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_the_autoencoder_has_the_parameters_of_mlperf_tiny() -> None:
    """The published model has as many that train, and the statistics of its norms beside."""
    model = build_model("ad-autoencoder", (640,), 0)
    assert parameters(model) == 267_928
    widths = [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert widths == [128, 128, 128, 128, 8, 128, 128, 128, 128, 640]
    kinds = [type(layer) for layer in model.children()]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 9 + [nn.Linear]


def test_the_size_of_the_unet() -> None:
    assert parameters(build_model("unet-w8", (1, 8, 8), 11)) == 29_867


@pytest.mark.parametrize("size", [(4, 4), (4, 5), (7, 13), (8, 8), (6, 31)])
def test_logits_of_every_pixel_at_any_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = build_model("unet-w8", (3, *size), 5).eval()
    inputs = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(inputs)).numpy()
    assert wanted.shape == (2, 5, *size)
    found = evaluate(float_graph(model, (3, *size)), np.moveaxis(inputs, 1, 3))
    assert np.abs(np.moveaxis(found, 3, 1) - wanted).max() < 1e-5 * np.abs(wanted).max() + 1e-6


def test_a_unet_is_what_its_levels_say() -> None:
    """The same, written out for two levels."""
    torch.manual_seed(0)
    model = UNet(3, 5, width=4, levels=2).eval()
    fine, coarse, up = model.down[0], model.down[1], model.up[0]
    x = torch.randn(2, 3, 6, 8)

    def by_hand() -> Tensor:
        own = fine(x)
        low = coarse(functional.max_pool2d(own, 2))
        again = low.repeat_interleave(2, 2).repeat_interleave(2, 3)
        logits: Tensor = model.logits(up(torch.cat([own, again], 1)))
        return logits

    with torch.no_grad():
        assert torch.equal(model(x), by_hand())


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("unet-w8", (1, 3, 8), "height and width of at least 4"),
        ("unet-w8", (8, 8, 3), "channels are last here"),
        ("unet-w8", (64,), r"needs \(channels, height, width\)"),
        ("ad-autoencoder", (7,), r"\(features,\), at least 8 of them$"),
        ("ad-autoencoder", (1, 8, 8), r"inputs.reshape\(n, -1\) makes features"),
        ("ad-autoencoder", (), r"needs \(features,\)"),
    ],
)
def test_other_inputs_are_refused(name: str, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build_model(name, shape, 4)


def test_rows_of_the_zoo_read_as_they_did() -> None:
    """Until 0.1 a row was a pair of the factory and the smallest size."""
    factory, smallest = MODELS["resnet8"][:2]
    assert parameters(factory(3, 10)) == 78_042 and smallest == 4
    shapes = {name: smallest_shape(name, 3) for name in ("unet-w8", "har-cnn", "ad-autoencoder")}
    assert shapes == {"unet-w8": (3, 4, 4), "har-cnn": (3, 4), "ad-autoencoder": (8,)}


# Tasks


def test_pixels_have_the_class_of_their_digit() -> None:
    images, pixels = digits.test_data(), digits_pixels.test_data()
    assert np.array_equal(images.inputs, pixels.inputs) and pixels.targets.shape == (360, 8, 8)
    for image, target, classes in zip(images.inputs, images.targets, pixels.targets, strict=True):
        wanted = [[1 + target if grey >= 8 / 16 else 0 for grey in row] for row in image[0]]
        assert classes.tolist() == wanted
    assert len(digits_pixels.train_data()) == 1437 and pixels.classes.tolist() == [*range(11)]


def test_what_is_to_be_told_again_is_the_image() -> None:
    images, pixels = digits.train_data(), digits_reconstruction.train_data()
    assert pixels.inputs.shape == (1437, 64) and np.array_equal(pixels.inputs, pixels.targets)
    assert np.array_equal(pixels.inputs[3].reshape(8, 8), images.inputs[3, 0])
    task = digits_reconstruction.TASK
    outputs = pixels.targets + np.float32(0.5)
    assert task.measure(outputs, pixels.targets) == pytest.approx(0.25)
    assert not task.measure.higher_is_better
    assert task.loss(*map(torch.from_numpy, (outputs, pixels.targets))).item() == pytest.approx(
        0.25
    )
