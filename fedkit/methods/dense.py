"""Dense FedAvg, what every sparse method is compared with."""

from __future__ import annotations

from fedkit.methods.interface import Method, send_whole

DENSE = Method(
    "FedAvg: every weight trains and travels (McMahan et al., 2017)",
    lambda opening: send_whole(opening.tuned(opening.dense)),
    settings={"density": 1.0},
)
METHODS = {"dense": DENSE}
