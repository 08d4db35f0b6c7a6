"""Which C goes with which raw input."""

from __future__ import annotations

from collections.abc import Mapping

from edge.targets.c99 import listening, measuring, seeing
from edge.targets.c99.front_end_files import FrontEnd
from fedkit.preprocess.audio import Audio
from fedkit.preprocess.columns import CsvColumns
from fedkit.preprocess.pixels import Pixels
from fedkit.preprocess.raw_input import RawInput

FRONT_ENDS: Mapping[type[RawInput], FrontEnd] = {
    Audio: listening.FRONT_END,
    Pixels: seeing.FRONT_END,
    CsvColumns: measuring.FRONT_END,
}
"""Kind of raw input -> its C."""
