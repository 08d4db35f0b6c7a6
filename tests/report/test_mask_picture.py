"""The picture of a mask: a mark per kept weight, or the share of a block, and text as it is."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from edge.export import int8_graph
from edge.inspect import masks
from fedkit.cli import look
from fedkit.core.errors import ConfigError
from fedkit.report.mask_picture import Mask, blocks, picture
from tests.edge.models import images, small
from tests.report.run_folders import make_run, step, whole

SVG = "{http://www.w3.org/2000/svg}"


def random_mask(*shape: int, density: float = 0.2) -> Mask:
    return np.random.default_rng(0).random(shape) < density


def text_of(svg: bytes) -> str:
    return "".join(ElementTree.fromstring(svg).itertext())


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (5, 9), (1, 1), (7,), (6, 3, 1, 5)])
def test_every_kept_weight_has_a_mark(shape: tuple[int, ...]) -> None:
    mask = random_mask(*shape)
    svg = picture("conv", mask, ".svg")
    (kept,) = (g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if g.get("id") == "kept")
    assert len(list(kept.iter(f"{SVG}use"))) == mask.sum()
    assert f"{mask.sum()} of {mask.size} kept" in text_of(svg)
    assert "sampled" not in text_of(svg)


def test_a_large_layer_is_sampled_down_and_says_so() -> None:
    mask = random_mask(300, 70, 3, 3)
    svg = picture("conv", mask, ".svg")
    assert "a cell is 4 x 4 weights" in text_of(svg) and len(svg) < 100_000
    shares, size = blocks(mask.reshape(300, -1))
    cells = mask.reshape(300, -1)
    assert size == (4, 4) and shares.shape == (75, 158)
    for row, column in [(0, 0), (74, 157), (12, 157), (33, 7)]:
        part = cells[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert shares[row, column] == part.mean()


def test_a_png_is_a_picture_of_the_same() -> None:
    with Image.open(io.BytesIO(picture("conv", random_mask(8, 4, 3, 3), ".png"))) as found:
        assert found.format == "PNG" and found.size == (1050, 660)


@pytest.mark.parametrize(
    "name", ["$\\frac{1}{0$", "</text><script>x</script>", "\x1b[2J", "é" * 999]
)
def test_names_of_others_are_text(name: str) -> None:
    svg = picture(name, random_mask(3, 3), ".svg")
    root = ElementTree.fromstring(svg)
    assert root.find(f".//{SVG}script") is None
    assert name[:10].replace("\x1b", "\\x1b")[:6] in text_of(svg)


def test_masks_of_an_artifact_are_those_of_its_model() -> None:
    model = small(0.3)
    found = masks(int8_graph(model, images(3, 4, 5)))
    weights = {name: module.weight for name, module in model.named_modules() if name in found}
    assert len(found) == len(weights) >= 3
    for name, mask in found.items():
        kept = weights[name].detach().numpy() != 0
        assert mask.shape == kept.shape
        assert not (mask & ~kept).any()  # a small weight may round to zero
        assert mask.sum() > 0.9 * kept.sum()


def test_a_run_shows_what_its_checkpoint_keeps(tmp_path: Path) -> None:
    run = whole(tmp_path / "run")
    assert [(row["source"], row["kept"]) for row in look.inspect_run(run)["rows"]] == [
        ("conv", 3),
        ("linear", 1),
    ]
    look.draw_mask(run, "conv", tmp_path / "m.svg")
    assert "3 of 12 kept" in text_of((tmp_path / "m.svg").read_bytes())


@pytest.mark.parametrize(
    ("layer", "out", "told"),
    [
        ("nope\x1b[2J", "m.svg", r"no such layer; layers with weights: conv, linear"),
        ("conv", "m.jpg", r"ends in \.svg or \.png"),
        ("conv", "no/m.svg", "its folder is not"),
        ("conv", "run/there.png", "is there"),
    ],
)
def test_what_cannot_be_drawn_is_told(layer: str, out: str, told: str, tmp_path: Path) -> None:
    run = whole(tmp_path / "run")
    (run / "there.png").touch()
    with pytest.raises(ConfigError, match=told):
        look.draw_mask(run, layer, tmp_path / out)
    assert not (tmp_path / "m.svg").exists()


def test_a_run_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [step(0)])
    with pytest.raises(Exception, match="checkpoint"):
        look.inspect_run(tmp_path / "run")
