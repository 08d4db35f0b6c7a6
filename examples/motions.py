"""Activities told from a smart watch by a sparse int8 CNN: python examples/motions.py FOLDER

Needs data of a package, which nothing else of it is used of: pip install --no-deps aeon
"""

import sys
from typing import Any

import edge
import fedkit
from fedkit.tasks import motions

SETTINGS: dict[str, Any] = {
    "devices": 5, "alpha": 1.0, "density": 0.2, "rounds": 20, "epochs": 3, "batch_size": 16,
    "lr": 0.05,
}  # fmt: skip


def main(folder: str, **settings: Any) -> tuple[float, float]:
    run = fedkit.run("motions", **{**SETTINGS, **settings})
    train, test = motions.train_data(), motions.test_data()
    saved = edge.export_model(run.module(), train.inputs, f"{folder}/motions-c99")
    told = edge.open_artifact(saved.path).predict(test.inputs)
    accuracy = run.metric(told, test.targets)
    print(f"{run.density:.0%} of the weights, {saved.size / 1e3:.0f} kB of C: accuracy", end=" ")
    print(f"{run.accuracy:.1%} in floats, {accuracy:.1%} in its integers")
    return run.accuracy, accuracy


if __name__ == "__main__":
    main(sys.argv[1])
