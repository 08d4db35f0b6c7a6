"""The table of the benchmark of personal models says what its rows say."""

from __future__ import annotations

import numpy as np

from fedkit.bench import personal


def row(part: str, kind: str, accuracy: float, up: int, seconds: float) -> dict[str, object]:
    extra = {"accuracy_start": 0.5} if part == "tune" else {"accuracy_worst": accuracy - 0.1}
    figures = {"accuracy": accuracy, "bytes_up": up, "cpu_seconds": seconds}
    return {"part": part, "kind": kind, "seed": 1, **figures, **extra}


def test_the_table_compares_with_what_trains_and_sends_all() -> None:
    rows = [
        row("tune", "all", 0.8, 1000, 10.0),
        row("tune", "norm", 0.7, 10, 8.0),
        row("tune", "all", 0.6, 3000, 10.0),
        row("tune", "norm", 0.6, 30, 4.0),
        row("skew", "fedavg", 0.4, 200, 2.0),
        row("skew", "norm", 0.5, 190, 2.0),
    ]
    lines = personal.table({"rows": rows})
    assert lines[0] == "Accuracy of the backbone: 50.0%."
    assert [line for line in lines if line.startswith("| ")][1:] == [
        "| backbone, all trained | 70.0% | 60.0% to 80.0% |  | 100.00% | 100% |",
        "| backbone, `--train norm` | 65.0% | 60.0% to 70.0% |  | 1.00% | 60% |",
        "| cameras, FedAvg | 40.0% | 40.0% to 40.0% | 30.0% | 100.00% | 100% |",
        "| cameras, `--local norm` | 50.0% | 50.0% to 50.0% | 40.0% | 95.00% | 100% |",
    ]


def test_cameras_show_the_same_image_otherwise() -> None:
    image = np.random.default_rng(0).standard_normal((1, 8, 8)).astype(np.float32)
    seen = [personal._seen(image, camera) for camera in range(6)]
    assert all(each.shape == image.shape and each.dtype == np.float32 for each in seen)
    assert len({each.tobytes() for each in seen}) == 6
    assert personal._seen(image, 0).tobytes() == image.tobytes()
