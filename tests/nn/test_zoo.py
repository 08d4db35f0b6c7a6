from __future__ import annotations

import pytest
import torch
from torch import nn

from fedkit.core.errors import ConfigError
from fedkit.nn.zoo import MODELS, build_model

IMAGE_MODELS = [
    name for name, row in MODELS.items() if (row.takes, row.returns) == ("maps", "logits")
]
PARAMETERS = {
    "resnet8": 78_042,
    "resnet18": 11_173_962,
    "resnet18-w16": 701_466,
    "resnet18-gn": 11_173_962,
    "resnet18-gn-w16": 701_466,
    "vgg11": 9_228_362,
    "ds-cnn": 28_170,
    "vww-mobilenetv1-0.25": 215_642,
    "mobilenetv2-w0.25": 250_922,
    "mobilenetv2-w0.5": 700_490,
    "mobilenetv2-w1.0": 2_236_682,
    "mobilenetv3-small-w0.5": 409_394,
    "mobilenetv3-small": 1_528_106,
    "efficientnet-lite0": 3_383_818,
    "vit-tiny": 81_946,
    "slab-vit-tiny": 100_003,
}

PUBLISHED = {
    "mobilenetv2-w1.0": 3_504_872,  # torchvision
    "mobilenetv3-small": 2_542_856,  # torchvision
    "efficientnet-lite0": 4_652_008,  # timm's tf_efficientnet_lite0
}
"""Parameters for the 1,000 classes of ImageNet."""


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_number_of_parameters_for_colour_images_and_ten_classes(name: str) -> None:
    model = build_model(name, (3, 32, 32), 10)
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_parameters_for_imagenet_is_the_published_one(name: str) -> None:
    model = build_model(name, (3, 224, 224), 1000)
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED[name]


def test_visual_wake_words_have_the_numbers_of_mlperf_tiny() -> None:
    model = build_model("vww-mobilenetv1-0.25", (3, 96, 96), 2)
    own = sum(weight.numel() for weight in model.parameters())
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    # The published 221,794 count running statistics, and a bias before each norm.
    assert own + 3 * sum(norm.num_features for norm in norms) == 221_794


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_the_smallest_images_are_taken_and_smaller_ones_refused(name: str) -> None:
    smallest = MODELS[name].smallest
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


def test_mobilenetv3_small_has_the_published_shape() -> None:
    layers = convolutions("mobilenetv3-small")
    depthwise = [layer for layer in layers if layer.groups > 1]
    assert [layer.out_channels for layer in depthwise] == (
        [16, 72, 88, 96, 240, 240, 120, 144, 288, 576, 576]
    )
    assert [layer.kernel_size[0] for layer in depthwise] == [3] * 3 + [5] * 8
    assert [layer.stride for layer in layers].count((2, 2)) == 3
    gates = [layer.out_channels for layer in layers if layer.bias is not None][::2]
    assert gates == [8, 24, 64, 64, 32, 40, 72, 144, 144]


def test_efficientnet_lite0_has_the_published_shape() -> None:
    layers = convolutions("efficientnet-lite0")
    assert len(layers) == 49  # stem, a block of two, 15 blocks of three, and the last
    assert [layer.out_channels for layer in layers[2::3]] == (
        [16, *[24] * 2, *[40] * 2, *[80] * 3, *[112] * 3, *[192] * 4, 320]
    )
    depthwise = [layer.kernel_size[0] for layer in layers if layer.groups > 1]
    assert depthwise == [3] * 3 + [5] * 2 + [3] * 3 + [5] * 7 + [3]
