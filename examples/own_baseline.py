"""A baseline of your own: fedkit run --method examples.own_baseline:LAMP.

Compared with others here: python examples/own_baseline.py
"""

import numpy as np
from numpy.typing import NDArray

import fedkit
from fedkit.methods.interface import Method, Opening, static
from fedkit.sparse.masks import global_masks
from fedkit.sparse.state import Masks


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
        result = fedkit.run("digits", method=method, devices=3, rounds=3, epochs=3, density=0.05)
        accuracies[method] = result.accuracy
        print(f"{method}: accuracy {result.accuracy:.3f} at density {result.density:.3f}")
    return accuracies


if __name__ == "__main__":
    main()
