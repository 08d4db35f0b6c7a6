"""A baseline of your own: fedkit run --method examples.own_baseline:LAMP.

Compared with others here: python examples/own_baseline.py
"""

import numpy as np
from numpy.typing import NDArray

from fedkit.config import make_config
from fedkit.methods.interface import Method, Opening, static
from fedkit.server.rounds import run_rounds
from fedkit.sparse.masks import global_masks
from fedkit.sparse.state import Masks
from sim.scenario import make_scenario


def score(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each squared weight's share of all in its layer that are no smaller."""
    squares = np.square(weight).reshape(-1)
    descending = np.argsort(-squares)
    scores = np.empty_like(squares)
    scores[descending] = squares[descending] / np.cumsum(squares[descending])
    return scores.reshape(weight.shape)


def lamp_masks(opening: Opening) -> Masks:
    scores = {name: score(opening.dense.weights[name]) for name in opening.dense.masks}
    return global_masks(scores, opening.budget, opening.config.exempt_layers)


LAMP = Method("layer-adaptive magnitude pruning (Lee et al., 2021)", static(lamp_masks))


def main() -> dict[str, float]:
    accuracies = {}
    for method in ("random", "examples.own_baseline:LAMP", "fedtiny"):
        config = make_config(
            {"method": method, "devices": 3, "rounds": 3, "epochs": 3, "density": 0.05}
        )
        scenario = make_scenario(config)
        *_, last = run_rounds(scenario.server(), scenario.local_fleet(), scenario.server_data)
        accuracies[method] = last.accuracy or 0.0
        print(f"{method}: accuracy {last.accuracy:.3f} at density {last.density:.3f}")
    return accuracies


if __name__ == "__main__":
    main()
