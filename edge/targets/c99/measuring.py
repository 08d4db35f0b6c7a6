"""C of models that take series: how lines of numbers become windows of integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge.artifact import Port
from edge.targets.c99.front_end_files import FrontEnd, initialised, sizes_header
from edge.targets.c99.literals import literal
from fedkit.preprocess.columns import CsvColumns


def files(columns: CsvColumns, port: Port) -> dict[str, str]:
    """Return name -> text of what is made for a model: sizes, scales, and names of columns."""
    sizes = {
        "SERIES_COLUMNS": len(columns.columns),
        "SERIES_STEPS": columns.steps,
        "SERIES_HOP": columns.hop,
    }
    return {
        "model_series_sizes.h": sizes_header("series", sizes),
        "model_series_tables.h": _tables(columns, port),
        "model_series_names.h": _names(columns),
    }


def _tables(columns: CsvColumns, port: Port) -> str:
    count = len(columns.columns)
    means = _floats("means", columns.mean or (0.0,) * count)
    deviations = _floats("deviations", columns.deviation or (1.0,) * count)
    return f"""\
/* An integer of the model's input is (value - mean) / deviation / SCALE + ZERO_POINT. */
#define MODEL_SERIES_SCALE {_float(port.scale)}
#define MODEL_SERIES_ZERO_POINT ({port.zero_point})

{means}
{deviations}"""


def _floats(name: str, values: Sequence[float]) -> str:
    return initialised("float", f"model_{name}[MODEL_SERIES_COLUMNS]", map(_float, values))


def _float(value: float) -> str:
    """Return a float32 of C, to its last bit."""
    return f"{float(np.float32(value))!r}f"


def _names(columns: CsvColumns) -> str:
    name = "model_column_names[MODEL_SERIES_COLUMNS]"
    return initialised("char *const", name, map(literal, columns.columns))


FRONT_END = FrontEnd(
    ("model_series.c",),
    ("model_series.h", "model_series_sizes.h", "model_series_tables.h", "model_series_names.h"),
    "series.c",
    files,
)
