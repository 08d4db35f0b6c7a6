"""Raw inputs as manifests hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedkit.core.errors import ConfigError
from fedkit.preprocess.audio import Audio
from fedkit.preprocess.columns import CsvColumns
from fedkit.preprocess.pixels import Pixels
from fedkit.preprocess.raw_input import RawInput

KINDS: Mapping[str, Callable[[Mapping[str, Any]], RawInput]] = {
    "audio": Audio.from_json,
    "pixels": Pixels.from_json,
    "columns": CsvColumns.from_json,
}
"""Kind -> what makes one of a record."""


def of_record(record: Mapping[str, Any]) -> RawInput:
    """Return the raw input of a record that `to_json` made.

    Raises:
        ConfigError: It describes none that is known here.
    """
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"{record!r:.100} is not a raw input known here (it is of no known kind)")
    return KINDS[kind](record)
