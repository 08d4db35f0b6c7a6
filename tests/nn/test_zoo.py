from __future__ import annotations

import pytest
import torch
from torch import nn

from fedkit.core.errors import ConfigError
from fedkit.nn.zoo import MODELS, build_model

PARAMETERS = {
    "resnet8": 78_042,
    "resnet18": 11_173_962,
    "resnet18-w16": 701_466,
    "vgg11": 9_228_362,
    "ds-cnn": 28_170,
    "mobilenetv2-w0.25": 250_922,
    "mobilenetv2-w0.5": 700_490,
    "mobilenetv2-w1.0": 2_236_682,
}


@pytest.mark.parametrize("name", MODELS)
def test_number_of_parameters_for_colour_images_and_ten_classes(name: str) -> None:
    model = build_model(name, (3, 32, 32), 10)
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", MODELS)
def test_the_smallest_images_are_taken_and_smaller_ones_refused(name: str) -> None:
    smallest = MODELS[name][1]
    model = build_model(name, (1, smallest, smallest), 4)
    assert model(torch.zeros(2, 1, smallest, smallest)).shape == (2, 4)
    with pytest.raises(ConfigError, match=f"of at least {smallest}"):
        build_model(name, (1, smallest, smallest - 1), 4)


def convolutions(name: str) -> list[nn.Conv2d]:
    model = build_model(name, (3, 32, 32), 10)
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def test_mobilenetv2_has_the_published_shape() -> None:
    layers = convolutions("mobilenetv2-w1.0")
    assert len(layers) == 52  # stem, 16 blocks of three, one block of two, and the last
    assert [layer.out_channels for layer in layers[2::3]] == (
        [16, *[24] * 2, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320]
    )
    assert [layer.kernel_size for layer in layers if layer.stride != (1, 1)] == [(3, 3)] * 3
    assert all(layer.groups in (1, layer.in_channels) for layer in layers)


def test_mobilenetv2_channels_are_multiples_of_8_and_the_last_do_not_shrink() -> None:
    layers = convolutions("mobilenetv2-w0.25")
    assert {layer.out_channels % 8 for layer in layers} == {0}
    assert (layers[0].out_channels, layers[-1].out_channels) == (8, 1280)
