"""C of models that take sound: the front end and its tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.artifact import Port
from edge.targets.c99.front_end_files import FrontEnd, array, sizes_header
from fedkit.preprocess.audio import SCALE, Audio
from fedkit.preprocess.log_mel import LogMel


def files(audio: Audio, port: Port) -> dict[str, str]:
    """Return name -> text of what is made for a model: its sizes, and its tables."""
    return {"model_audio_sizes.h": _sizes(audio), "model_audio_tables.h": _tables(audio, port)}


FRONT_END = FrontEnd(
    ("ek_log_mel.c", "model_audio.c"),
    ("ek_log_mel.h", "model_audio.h", "model_audio_sizes.h", "model_audio_tables.h"),
    "wav.c",
    files,
)


def _sizes(audio: Audio) -> str:
    front_end = audio.front_end
    sizes = {
        "AUDIO_RATE": front_end.rate,
        "AUDIO_WINDOW": front_end.window,
        "AUDIO_HOP": front_end.hop,
        "AUDIO_FFT": front_end.fft,
        "AUDIO_CHANNELS": front_end.channels,
        "AUDIO_FRAMES": audio.frames,
    }
    return sizes_header("audio", sizes)


def _tables(audio: Audio, port: Port) -> str:
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
    text = "\n".join(array(kind, f"model_{key}", data) for key, (kind, data) in arrays.items())
    return f"""\
/* Constants of the front end; the last table has a level's value of the model's input. */
#include <stdint.h>

{text}
static const ek_log_mel model_front_end = {{
    {front_end.window}, {front_end.fft}, {front_end.channels},
    model_hann, model_cosines, model_sines, model_first, model_lines, model_weights,
}};
"""


def _triangles(front_end: LogMel) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return where each triangle begins, how many lines it has, and the weights of all."""
    weights = front_end.weights
    first = (weights > 0).argmax(axis=1)
    last = weights.shape[1] - (weights > 0)[:, ::-1].argmax(axis=1)
    rows = [row[start:end] for row, start, end in zip(weights, first, last, strict=True)]
    return first, last - first, np.concatenate(rows)
