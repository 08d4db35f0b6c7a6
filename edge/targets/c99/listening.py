"""C of models that take sound: the front end, its tables, and a program for .wav files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.artifact import Port
from edge.targets.c99 import pack
from edge.targets.c99.literals import literal, wrapped
from edge.targets.c_names import prefixed
from fedkit.preprocess.audio import SCALE, Audio
from fedkit.preprocess.log_mel import LogMel

SOURCES = ("ek_log_mel.c", "model_audio.c")
HEADERS = ("ek_log_mel.h", "model_audio.h", "model_audio_sizes.h", "model_audio_tables.h")
PROGRAM = "wav.c"

_FOLDER = Path(pack.__file__).with_name("front_end")


def files(audio: Audio, port: Port, outputs: int, name: str) -> dict[str, str]:
    """Return name -> text of the sources that a listening model has besides its own.

    Args:
        audio: What the model takes.
        port: Its input.
        outputs: How many values it gives.
        name: What identifiers begin with.
    """
    texts = {each.name: each.read_text(encoding="utf-8") for each in _FOLDER.iterdir()}
    texts["ek_log_mel.h"] = prefixed(texts["ek_log_mel.h"], name)
    texts["model_audio_sizes.h"] = _sizes(audio, outputs)
    texts["model_audio_tables.h"] = _tables(audio, port, outputs)
    return {file: _renamed(text, name) for file, text in texts.items()}


def _renamed(text: str, name: str) -> str:
    text = re.sub(r"\bMODEL_", f"{name.upper()}_", text)
    return re.sub(r"\bmodel_(?!audio(_sizes|_tables)?\.h)", f"{name}_", text)


def _sizes(audio: Audio, outputs: int) -> str:
    front_end = audio.front_end
    sizes = {
        "AUDIO_RATE": front_end.rate,
        "AUDIO_WINDOW": front_end.window,
        "AUDIO_HOP": front_end.hop,
        "AUDIO_FFT": front_end.fft,
        "AUDIO_CHANNELS": front_end.channels,
        "AUDIO_FRAMES": audio.frames,
        "CLASSES": outputs,
    }
    lines = "\n".join(f"#define MODEL_{key} {value}" for key, value in sizes.items())
    return f"#ifndef MODEL_AUDIO_SIZES_H\n#define MODEL_AUDIO_SIZES_H\n\n{lines}\n\n#endif\n"


def _tables(audio: Audio, port: Port, outputs: int) -> str:
    front_end = audio.front_end
    cosines, sines = front_end.twiddles
    first, lines, weights = _triangles(front_end)
    levels = port.quantize(np.arange(-128, 128).astype(np.float32) / np.float32(SCALE))
    arrays = {
        "hann": ("uint16_t", front_end.window_table),
        "cosines": ("int16_t", cosines),
        "sines": ("int16_t", sines),
        "first": ("uint16_t", first),
        "lines": ("uint16_t", lines),
        "weights": ("uint16_t", weights),
        "levels": ("int8_t", levels),
    }
    text = "\n".join(_array(kind, f"model_{key}", data) for key, (kind, data) in arrays.items())
    names = ",\n".join(f"    {literal(audio.name(number))}" for number in range(outputs))
    return f"""\
/* Constants of the front end; the last table has a level's value of the model's input. */
#include <stdint.h>

{text}
static const ek_log_mel model_front_end = {{
    {front_end.window}, {front_end.fft}, {front_end.channels},
    model_hann, model_cosines, model_sines, model_first, model_lines, model_weights,
}};

const char *const model_class_names[MODEL_CLASSES] = {{
{names},
}};
"""


def _triangles(front_end: LogMel) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return where each triangle begins, how many lines it has, and the weights of all."""
    weights = front_end.weights
    first = (weights > 0).argmax(axis=1)
    last = weights.shape[1] - (weights > 0)[:, ::-1].argmax(axis=1)
    rows = [row[start:end] for row, start, end in zip(weights, first, last, strict=True)]
    return first, last - first, np.concatenate(rows)


def _array(kind: str, name: str, values: NDArray[Any]) -> str:
    lines = "\n".join(wrapped(str(value) for value in values.tolist()))
    return f"static const {kind} {name}[{len(values)}] = {{\n{lines}\n}};\n"
