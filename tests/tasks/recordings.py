"""Files of series of activities, as a package of data sets holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedkit.tasks import motions

HEAD = "# about\n@problemName Some\n\n@data\n"


def written(folder: Path, seed: int = 0) -> Path:
    """Write a data set of two recordings of each activity, of 70 steps."""
    draws = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for split in ("TRAIN", "TEST"):
        rows = []
        for number, name in enumerate(2 * motions.ACTIVITIES):
            series = draws.normal(number % 4, 1, (6, 70)).round(3).astype(str)
            rows.append(":".join([*map(",".join, series), name]))
        (folder / f"BasicMotions_{split}.ts").write_text(HEAD + "\n".join(rows) + "\n")
    return folder
