"""The table of the benchmark of personal models says what its rows say."""

from __future__ import annotations

import numpy as np

from fedkit.bench import personal


def row(
    part: str, kind: str, accuracy: float, up: int, seconds: float, **more: float
) -> dict[str, object]:
    extra = {"accuracy_start": 0.5} if part == "tune" else {"accuracy_worst": accuracy - 0.1}
    figures = {"accuracy": accuracy, "bytes_up": up, "cpu_seconds": seconds}
    return {"part": part, "kind": kind, **figures, **extra, **more}


def test_the_tables_compare_with_what_trains_and_sends_all_each_at_its_best() -> None:
    rows = [
        *(row("tune", "all", accuracy, 1000, 10.0, lr=0.1) for accuracy in (0.8, 0.6)),
        *(row("tune", "all", 0.2, 1000, 10.0, lr=0.4) for _ in range(2)),
        *(row("tune", "norm", 0.5, 10, 8.0, lr=0.1) for _ in range(2)),
        *(row("tune", "norm", accuracy, 10, 4.0, lr=0.4) for accuracy in (0.72, 0.57)),
        *(row("tune", "norm+head", 0.4, 20, 8.0, lr=rate) for rate in (0.1, 0.1, 0.4, 0.4)),
        row("skew", "fedavg", 0.4, 200, 2.0),
        row("skew", "norm", 0.5, 190, 2.0),
        row("skew", "head", 0.3, 100, 3.0),
    ]
    lines = personal.table({"rows": rows})
    assert lines[0] == "Accuracy of the backbone: 50.0%."
    assert [line for line in lines if line.startswith("| ")] == [
        "| backbone | lr 0.1 | lr 0.4 "
        "| of the best of all | least seed | uplink | processor time |",
        "| all trained | 70.0% | 20.0% | 100.0% | 100.0% | 100.00% | 100% |",
        "| `--train norm` | 50.0% | 64.5% | 92.1% | 90.0% | 1.00% | 40% |",
        "| `--train norm+head` | 40.0% | 40.0% | 57.1% | 50.0% | 2.00% | 80% |",
        "| cameras | accuracy | of each seed | worst tenth | uplink | processor time |",
        "| FedAvg | 40.0% | 40.0% to 40.0% | 30.0% | 100.00% | 100% |",
        "| `--local norm` | 50.0% | 50.0% to 50.0% | 40.0% | 95.00% | 100% |",
        "| `--local head` | 30.0% | 30.0% to 30.0% | 20.0% | 50.00% | 150% |",
    ]


def test_cameras_show_the_same_image_otherwise() -> None:
    image = np.random.default_rng(0).standard_normal((1, 8, 8)).astype(np.float32)
    seen = [personal._seen(image, camera) for camera in range(6)]
    assert all(each.shape == image.shape and each.dtype == np.float32 for each in seen)
    assert len({each.tobytes() for each in seen}) == 6
    assert personal._seen(image, 0).tobytes() == image.tobytes()
