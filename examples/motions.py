"""Activities told from a smart watch by a sparse int8 CNN: python examples/motions.py FOLDER

Needs data of a package, which nothing else of it is used of: pip install --no-deps aeon
The C in FOLDER takes numbers of sensors; its program `series` tells the activities of .csv files.
A recurrent network instead: python examples/motions.py FOLDER har-gru
"""

import subprocess
import sys
from typing import Any

import numpy as np

import edge
import fedkit
from fedkit.tasks import motions

FLEET: dict[str, Any] = {
    "devices": 5, "alpha": 1.0, "density": 0.2, "rounds": 20, "epochs": 3, "batch_size": 16,
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "har-cnn": {"task": "motions", "lr": 0.05}, "har-gru": {"task": "motions-gru", "lr": 0.2},
}  # fmt: skip


def main(folder: str, network: str = "har-cnn", **settings: Any) -> tuple[float, float]:
    run = fedkit.run(**{**FLEET, **NETWORKS[network], **settings})
    train, test = motions.train_data(), motions.test_data()
    path = f"{folder}/motions-c99"
    saved = edge.export_model(run.module(), train.inputs, path, raw_input=motions.RAW)
    told = edge.open_artifact(saved.path).predict(test.inputs)
    accuracy = run.metric(told, test.targets)
    print(f"{run.density:.0%} of the weights, {saved.size / 1e3:.0f} kB of C: accuracy", end=" ")
    print(f"{run.accuracy:.1%} in floats, {accuracy:.1%} in its integers")
    head = ",".join(motions.SIGNALS)
    np.savetxt(f"{folder}/window.csv", test.inputs[0].T, delimiter=",", header=head, comments="")
    subprocess.run(["make", "-s", "series"], cwd=saved.path, check=True)
    subprocess.run([saved.path / "series", f"{folder}/window.csv"], check=True)
    return run.accuracy, accuracy


if __name__ == "__main__":
    main(*sys.argv[1:])
