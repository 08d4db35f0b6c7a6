"""C of models that take pixels: what each pixel is as an integer of the input."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.artifact import Port
from edge.targets.c99.front_end_files import FrontEnd, sizes_header
from edge.targets.c99.literals import wrapped
from fedkit.preprocess.pixels import Pixels


def files(pixels: Pixels, port: Port) -> dict[str, str]:
    """Return name -> text of what is made for a model: its sizes, and tables if it needs some.

    There is a table for each channel, or one if these are alike, or none if a code is the pixel
    less 128.
    """
    every = np.arange(256, dtype=np.uint8)
    square = np.broadcast_to(every[:, None, None, None], (256, 1, 1, pixels.channels))
    codes = port.quantize(pixels.inputs(square)).reshape(256, pixels.channels).T
    tables = codes[:1] if (codes == codes[0]).all() else codes
    if (tables == every.astype(np.int16) - 128).all():
        tables = tables[:0]
    sizes = {
        "PIXELS_HEIGHT": pixels.height,
        "PIXELS_WIDTH": pixels.width,
        "PIXELS_CHANNELS": pixels.channels,
        "PIXELS": pixels.height * pixels.width * pixels.channels,
        "PIXELS_TABLES": len(tables),
    }
    return {
        "model_pixels_sizes.h": sizes_header("pixels", sizes),
        "model_pixels_tables.h": _tables(tables) if len(tables) else _NONE,
    }


def _tables(tables: NDArray[np.int8]) -> str:
    rows = "\n".join("\n".join(("{", *wrapped(map(str, row)), "},")) for row in tables.tolist())
    return f"""\
/* The integer of the model's input for each pixel of each channel. */
#include <stdint.h>

static const int8_t model_pixel_codes[MODEL_PIXELS_TABLES][256] = {{
{rows}
}};
"""


_NONE = "/* An integer of the model's input is the pixel less 128. */\n"

FRONT_END = FrontEnd(
    ("model_pixels.c",),
    ("model_pixels.h", "model_pixels_sizes.h", "model_pixels_tables.h"),
    "picture.c",
    files,
)
