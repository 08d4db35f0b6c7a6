"""A device's process, as a test starts it: train on a folder of data, and tell the peak.

usage: data_child.py PLAN FOLDER PRECISION whole|lazy
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedkit.bench.process import memory
from fedkit.device.data import Expected, check_trainable, load_examples
from fedkit.engine.base import LocalTraining
from fedkit.engine.plan.plan import load_plan
from fedkit.engine.precision import plan_engine
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples

HOW = LocalTraining(epochs=1, batch_size=64, lr=0.01, momentum=0.9, weight_decay=1e-4)


def main(plan_path: str, folder: str, precision: str, how: str) -> None:
    """Do what a device does in a round."""
    plan, examples = load_plan(Path(plan_path)), load_examples(folder)
    if how == "whole":
        examples = Examples(examples.inputs[:], examples.targets)
    Expected("folder", plan.tensors[0].shape, 0.0).check(examples)
    check_trainable(examples, plan.tensors[0].shape, plan.loss, plan.output_shape, "error")
    engine = plan_engine(plan, precision)  # type: ignore[arg-type]
    weights = {name: np.zeros(shape, np.float32) for name, shape in engine.layout.weights.items()}
    masks = {name: np.ones(weights[name].shape, np.bool_) for name in engine.layout.prunable}
    state, loss = engine.train(ModelState(weights, {}, masks), examples, HOW, seed=0)
    digest = hashlib.sha256(b"".join(each.tobytes() for each in state.weights.values()))
    development = examples.take(np.arange(0, len(examples), 10))
    losses = loss, engine.loss(replace(state, stats={}), development)
    peak = memory("VmHWM")
    print(json.dumps({"sha256": digest.hexdigest(), "losses": losses, "peak_bytes": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
