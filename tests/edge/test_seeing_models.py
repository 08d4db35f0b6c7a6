"""Models of pictures: their artifacts take files, and int8 inputs are pixels less 128."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import edge
from edge.artifact import Artifact
from edge.check import graph_of
from edge.define.interpret_int8 import evaluate_int8
from fedkit.core.errors import ConfigError, DataError, ExportError
from fedkit.preprocess.pixels import Pixels
from fedkit.preprocess.records import of_record
from tests.command_line import fedkit
from tests.edge.targets.c99.library import need_gcc
from tests.edge.told_by_c import FLAGS, built, defined, refused, told
from tests.sets import slow_but

Pictures = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

GREY = Pixels(6, 8, classes=("cat", "dog", "cow"))
COLOURED = Pixels(6, 8, 3, mean=117, deviation=61.5)
OF_CHANNELS = Pixels(6, 8, 3, mean=(123.675, 116.28, 103.53), deviation=(58.395, 57.12, 57.375))
FRACTION = Pixels(6, 8, mean=72.94, deviation=90.02, classes=("cat", "dog", "cow"))
KINDS = {"grey": GREY, "coloured": COLOURED, "of channels": OF_CHANNELS, "fraction": FRACTION}


def pictures(pixels: Pixels, count: int = 20, most: int = 200) -> Pictures:
    """Pixels that do not fill the range: calibration alone would take a narrower one."""
    shape = (count, pixels.height, pixels.width, pixels.channels)
    return np.random.default_rng(0).integers(30, most, shape).astype(np.uint8)


def model(pixels: Pixels) -> nn.Module:
    torch.manual_seed(0)
    first = nn.Conv2d(pixels.channels, 4, 3, padding=1)  # its zeros are pixels of `mean`
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 48, 3)).eval()


def saved(path: Path, pixels: Pixels) -> Artifact:
    inputs = pixels.inputs(pictures(pixels))
    return edge.export_model(model(pixels), inputs, path, raw_input=pixels)


def write(path: Path, picture: Pictures, **how: str) -> Path:
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(path, **how)
    return path


@pytest.mark.parametrize("pixels", [GREY, COLOURED, Pixels(6, 8, mean=255, deviation=0.5)], ids=str)
def test_an_int8_input_is_the_pixel_less_128(pixels: Pixels, tmp_path: Path) -> None:
    found = saved(tmp_path / "m.tflite", pixels)
    (port,) = found.inputs
    assert isinstance(pixels.mean, int) and isinstance(pixels.deviation, float)
    assert port.zero_point == pixels.mean - 128
    assert port.scale == pytest.approx(1 / pixels.deviation, rel=1e-6)
    every = np.resize(np.arange(256, dtype=np.uint8), (6, 6, 8, pixels.channels))
    codes = port.quantize(pixels.inputs(every))
    assert np.array_equal(codes.transpose(0, 2, 3, 1), every.astype(np.int16) - 128)


def test_each_channel_has_its_mean_and_deviation() -> None:
    shown = pictures(OF_CHANNELS, 3, 256)
    mean, deviation = OF_CHANNELS.mean, OF_CHANNELS.deviation
    assert isinstance(mean, tuple) and isinstance(deviation, tuple)
    for channel in range(3):
        wanted = (shown[..., channel] - mean[channel]) / deviation[channel]
        np.testing.assert_allclose(OF_CHANNELS.inputs(shown)[:, channel], wanted, atol=1e-6)
    low, high = OF_CHANNELS.span
    assert (low, high) == pytest.approx((-123.675 / 58.395, (255 - 103.53) / 57.375))


@pytest.mark.parametrize("pixels", [OF_CHANNELS, FRACTION], ids=["of channels", "fraction"])
def test_other_codes_are_half_a_step_from_the_pixel_at_most(pixels: Pixels, tmp_path: Path) -> None:
    (port,) = saved(tmp_path / "m.tflite", pixels).inputs
    every = np.resize(np.arange(256, dtype=np.uint8)[:, None], (6, 8, 48, pixels.channels))
    inputs = pixels.inputs(every)
    found = port.dequantize(port.quantize(inputs))
    assert np.abs(found - inputs).max() <= port.scale * 1.001  # a half, and a half at the ends
    assert np.unique(port.quantize(inputs)).size > 220


@pytest.mark.parametrize("flags", slow_but(["plain"], FLAGS))
@pytest.mark.parametrize("kind", KINDS)
def test_the_c_program_says_of_files_what_eval_says(kind: str, flags: str, tmp_path: Path) -> None:
    need_gcc()
    pixels = KINDS[kind]
    made = saved(tmp_path / "see-c99", pixels)
    program = built(made, "picture", FLAGS[flags])
    every = np.resize(np.arange(256, dtype=np.uint8), (6, 6, 8, pixels.channels))
    shown = np.concatenate([every, pictures(pixels, 6, 256)])
    ending = "pgm" if pixels.channels == 1 else "ppm"
    files = [write(tmp_path / f"{n}.{ending}", each) for n, each in enumerate(shown)]
    commented = files[1].read_bytes().replace(b"\n", b"\n# 9 9\n#\n\t", 1)
    files[1].write_bytes(commented + b"behind")
    lines, outputs = told(program, files)
    np.testing.assert_array_equal(outputs, defined(made, pixels.inputs(shown)))
    wanted = [[str(f), pixels.name(int(o.argmax()))] for f, o in zip(files, outputs, strict=True)]
    assert lines == wanted
    read = np.concatenate([pixels.read(file) for file in files])
    np.testing.assert_array_equal(read, pixels.inputs(shown))


BAD_FOR_C: list[tuple[bytes, str]] = [
    (b"", "is no .pgm or .ppm file of bytes"),
    (b"P2\n8 6\n255\n" + b"1 " * 48, "is no .pgm or .ppm file of bytes"),
    (b"P6\n8 6\n255\n" + bytes(144), "has colours, and the model takes grey"),
    (b"P5", "has a damaged header"),
    (b"P5\n8 -6\n255\n" + bytes(48), "has a damaged header"),
    (b"P5\n8 6 # no end", "has a damaged header"),
    (b"P5\n8 6\n255x" + bytes(48), "has a damaged header"),
    (b"P5\n6 8\n255\n" + bytes(48), "has 6 x 8 pixels, and the model takes 8 x 6"),
    (b"P5\n99999999999999999999 6\n255\n", "has a damaged header"),
    (b"P5\n8 6\n65535\n" + bytes(96), "does not have levels of 0 to 255"),
    (b"P5\n8 6\n100\n" + bytes(48), "does not have levels of 0 to 255"),
    (b"P5\n8 6\n255\n" + bytes(47), "is shorter than it says"),
]


def test_the_c_program_names_a_bad_file(tmp_path: Path) -> None:
    need_gcc()
    program = built(saved(tmp_path / "see-c99", GREY), "picture")
    for number, (content, text) in enumerate(BAD_FOR_C):
        path = tmp_path / f"{number}.pgm"
        path.write_bytes(content)
        assert text in refused(program, path)
    assert "cannot be opened" in refused(program, tmp_path / "none.pgm")


@pytest.mark.parametrize("ending", [".tflite", ".onnx", "-c99"])
@pytest.mark.parametrize("pixels", KINDS.values(), ids=KINDS)
def test_a_picture_is_told_alike_from_its_file_and_its_pixels(
    pixels: Pixels, ending: str, tmp_path: Path
) -> None:
    found = saved(tmp_path / f"m{ending}", pixels)
    shown = pictures(pixels, 5, 256)
    names = ["a.png", "b.ppm"] if pixels.channels == 3 else ["a.png", "b.pgm"]
    runner = edge.open_artifact(found.path)
    for number, picture in enumerate(shown):
        file = write(tmp_path / names[number % 2], picture)
        read = pixels.read(file)
        assert np.array_equal(read, pixels.inputs(picture[None]))
        given = np.asarray(runner.predict(read))
        policy = next(iter(found.details["rounding"].values()))
        codes = (picture[None].astype(np.int16) - 128).astype(np.int8)
        if pixels in (OF_CHANNELS, FRACTION):
            codes = found.inputs[0].quantize(pixels.inputs(picture[None]).transpose(0, 2, 3, 1))
        expected = evaluate_int8(graph_of(found), codes, policy)
        assert np.array_equal(given, found.outputs[0].dequantize(expected))


def test_eval_tells_the_classes_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = saved(tmp_path / "m.tflite", GREY)
    shown = pictures(GREY, 3)
    files = [write(tmp_path / f"{number}.png", each) for number, each in enumerate(shown)]
    given = " ".join(f"--input {file}" for file in files)
    assert fedkit(f"eval {found.path} {given} --json", monkeypatch) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    outputs = np.asarray(edge.open_artifact(found.path).predict(GREY.inputs(shown)))
    assert [row["class"] for row in rows] == [GREY.classes[each.argmax()] for each in outputs]
    assert fedkit(f"eval {found.path} --input {tmp_path / 'none.png'}", monkeypatch) == 2
    assert "none.png cannot be read as a picture (No such file" in capsys.readouterr().err


def png(picture: Image.Image, form: str = "PNG") -> bytes:
    content = io.BytesIO()
    picture.save(content, form)
    return content.getvalue()


WHOLE = png(Image.fromarray(pictures(GREY, 1)[0, ..., 0]))
BAD: list[tuple[bytes, str]] = [
    (b"", "cannot be read as a picture"),
    (b"not a picture at all", "cannot be read as a picture"),
    (WHOLE[:40], "cannot be read as a picture"),
    (WHOLE[:-30], "cannot be read as a picture"),
    (WHOLE[:45] + bytes(8) + WHOLE[53:], "cannot be read as a picture"),
    (b"P5\n8 6\n255\n" + bytes(20), "cannot be read as a picture"),
    (b"P5\n8 -6\n255\n" + bytes(48), "cannot be read as a picture"),
    (png(Image.new("L", (6, 8))), "has 6 x 8 pixels, and the model takes 8 x 6"),
    (png(Image.new("RGB", (8, 6))), "pixels of kind 'RGB', and the model takes 'L'"),
    (png(Image.new("P", (8, 6))), "pixels of kind 'P'"),
    (png(Image.new("1", (8, 6))), "pixels of kind '1'"),
    (png(Image.new("LA", (8, 6))), "pixels of kind 'LA'"),
    (png(Image.new("I;16", (8, 6))), "pixels of kind 'I;16'"),
    (b"P5\n8 6\n65535\n" + bytes(96), "pixels of kind 'I'"),
    (png(Image.new("L", (8, 6)), "JPEG"), "cannot be read as a picture"),
    (b"P5\n99999999 99999999\n255\n", "cannot be read as a picture|has 99999999 x 99999999"),
]


@pytest.mark.parametrize(("content", "text"), BAD)
def test_a_bad_file_is_named(content: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=text) as told:
        GREY.read(path)
    assert str(told.value).startswith(str(path)) and "\n" not in str(told.value)


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Is a directory"):
        GREY.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"height": 0}, "sizes are 1 to 4096"),
        ({"width": 2.0}, "sizes are 1 to 4096"),
        ({"channels": 4}, "pictures have 1 or 3"),
        ({"mean": 256}, "a number of 0 to 255"),
        ({"mean": float("nan")}, "a number of 0 to 255"),
        ({"mean": "1"}, "a number of 0 to 255"),
        ({"mean": (1.0, 2.0)}, "a tuple of 1 such"),
        ({"mean": ()}, "a tuple of 1 such"),
        ({"deviation": (1.0, 0.0)}, "a tuple of 1 such"),
        ({"deviation": (0.0,)}, "deviation is"),
        ({"deviation": 0.0}, "deviation is 0"),
        ({"deviation": float("nan")}, "deviation is nan"),
        ({"deviation": 255}, "must be a float"),
        ({"classes": ("a", "")}, "in one line"),
        ({"classes": ("a\nb",)}, "in one line"),
    ],
)
def test_what_is_no_raw_input_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(GREY, **changes)


@pytest.mark.parametrize("pixels", KINDS.values(), ids=KINDS)
def test_records_give_back_what_they_are_of(pixels: Pixels) -> None:
    assert of_record(json.loads(json.dumps(pixels.to_json()))) == pixels


def without(key: str) -> Callable[[dict[str, object]], dict[str, object]]:
    return lambda record: {name: value for name, value in record.items() if name != key}


@pytest.mark.parametrize(
    "spoil",
    [
        without("kind"),
        without("height"),
        without("classes"),
        lambda record: {**record, "kind": ["pixels"]},
        lambda record: {**record, "kind": "smell"},
        lambda record: {**record, "classes": "abc"},
        lambda record: {**record, "more": 1},
        lambda record: {**record, "width": "8"},
        lambda record: {**record, "mean": [1.0, 2.0]},
        lambda record: {**record, "mean": [[1.0]]},
        lambda record: {**record, "height": [6]},
    ],
)
def test_a_record_of_something_else_is_refused(
    spoil: Callable[[dict[str, object]], dict[str, object]],
) -> None:
    with pytest.raises(ConfigError, match="not a raw input known here"):
        of_record(spoil(GREY.to_json()))


def test_a_model_of_other_inputs_is_refused(tmp_path: Path) -> None:
    inputs = GREY.inputs(pictures(GREY))
    for pixels, text in (
        (replace(GREY, height=8, width=6), r"takes \(1, 6, 8, 1\), and its raw input makes \(1, 8"),
        (replace(GREY, classes=("a", "b")), "2 classes have names, and the model has 3 outputs"),
    ):
        with pytest.raises(ExportError, match=text):
            edge.export_model(model(GREY), inputs, tmp_path / "m.tflite", raw_input=pixels)
        assert not list(tmp_path.iterdir())


class Joined(nn.Module):
    """A concat gives its inputs, of which the picture is one, one scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(3 * 48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([x, 5 * self.conv(x)], 1).flatten(1))


def test_pixels_that_a_concat_joins_with_others_are_exported_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = GREY.inputs(pictures(GREY))
    net = Joined().eval()
    found = edge.export_model(net, inputs, tmp_path / "m.tflite", raw_input=GREY)
    with torch.no_grad():
        wanted = net(torch.from_numpy(inputs)).numpy()
    error = np.abs(np.asarray(edge.open_artifact(found.path).predict(inputs)) - wanted).max()
    assert error < 0.05 * np.abs(wanted).max()
