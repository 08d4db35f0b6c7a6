"""What Flower's run-config holds: the keys of `RunConfig`, and where the server records the run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER_KEY = "folder"
"""Run-config key of the run folder; all other keys are those of `RunConfig`."""


def run_keys(run_config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Split a Flower run-config into the keys of `RunConfig` and the run folder."""
    values = dict(run_config)
    folder = str(values.pop(FOLDER_KEY, ""))
    return values, folder or str(Path("runs", time.strftime("%Y%m%d-%H%M%S")).absolute())
