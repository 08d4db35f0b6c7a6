"""Damaged machines, found by a sparse int8 autoencoder: python examples/anomaly.py FOLDER

Ten sites train it on what is normal, as a fleet. Then each site runs the C artifact on its own data
and tells the moments of its scores, of which the server makes the threshold.
"""

import sys
from typing import Any

import numpy as np

import edge
import fedkit
from fedkit.tasks import anomaly, damaged_digits

SETTINGS: dict[str, Any] = {
    "devices": 10, "partition": "natural-id", "density": 0.2, "rounds": 60, "epochs": 5,
}  # fmt: skip


def main(folder: str, **settings: Any) -> anomaly.Detection:
    run = fedkit.run("damaged-digits", **{**SETTINGS, **settings})
    train, normal = damaged_digits.train_data(), damaged_digits.test_data()
    saved = edge.export_model(run.module(), train.inputs[:256], f"{folder}/anomaly-c99")
    model = edge.open_artifact(saved.path)

    def scores(examples: fedkit.Examples) -> anomaly.Scores:
        return anomaly.scores(model.predict(examples.inputs), examples.inputs)

    sites = [train.take(np.flatnonzero(train.owners == site)) for site in range(10)]
    limit = anomaly.threshold([anomaly.spread(scores(own)) for own in sites])
    found = anomaly.judge(scores(normal), scores(damaged_digits.damaged(normal)), limit)
    print(f"{run.density:.0%} of the weights, {saved.size / 1e3:.0f} kB of C: ROC AUC", end=" ")
    print(f"{found.roc_auc:.3f}, {found.found:.0%} found, {found.false_alarms:.0%} false alarms")
    return found


if __name__ == "__main__":
    main(sys.argv[1])
