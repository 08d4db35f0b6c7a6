"""One step of training, ours and torch's, and a process that takes a few of them alone.

`fedkit.bench.sparsetrain` times the steps and runs this file by its path, which prints one JSON
object. At the top it imports next to nothing, so that what is measured is the cost of the job.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fedkit.bench.process import memory

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from fedkit.engine.integer.program import IntegerProgram
    from fedkit.engine.kernels.network import Parameters
    from fedkit.engine.plan.structure import Plan
    from fedkit.engine.sparse.program import SparseProgram

    Inputs = NDArray[np.float32]
    Targets = NDArray[np.int64]

STEPS = 3
"""Steps that a process takes; the second is the first with momentum."""

RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4


def sparse_step(program: SparseProgram, inputs: Inputs, targets: Targets) -> Callable[[], float]:
    """Return what takes one step of our engine on this batch, and returns the loss before it."""
    import numpy as np

    order = np.arange(len(targets))

    def step() -> float:
        program.forward(inputs, order)
        loss = program.loss(targets)
        program.backward()
        program.step(RATE, MOMENTUM, DECAY)
        return loss

    return step


def integer_step(program: IntegerProgram, inputs: Inputs, targets: Targets) -> Callable[[], float]:
    """Return what takes the same step in integers; the inputs are quantised already, once."""
    import numpy as np

    from fedkit.engine.integer.engine import quantize_inputs
    from fedkit.engine.integer.optimiser import Sgd
    from fedkit.engine.kernels import native

    order, (codes, scale) = np.arange(len(targets)), quantize_inputs(inputs)
    sgd = Sgd(program.network, native.load_kernels(), MOMENTUM, DECAY, seed=0)

    def step() -> float:
        program.forward(codes, scale, order)
        loss = program.loss(targets)
        program.backward()
        sgd.step(program.gradient, program.gradient_units, RATE)
        return loss

    return step


def torch_step(
    model: nn.Module, inputs: Inputs, targets: Targets, dtype: str = "float32"
) -> Callable[[], float]:
    """Return what takes the same step of torch, dense and eager, all in one dtype."""
    import torch

    kind = getattr(torch, dtype)
    model.to(kind).train()
    sgd = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    loss_of = torch.nn.functional.cross_entropy
    batch, labels = torch.from_numpy(inputs).to(kind), torch.from_numpy(targets)

    def step() -> float:
        sgd.zero_grad(set_to_none=True)
        loss = loss_of(model(batch), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()
        return loss.item()

    return step


def main(job: str, *arguments: str) -> None:
    """Take some steps and print what memory they took.

    Args:
        job: Who trains: `sparse`, `integer` or `torch`.
        arguments: The folder that `fedkit.bench.sparsetrain` wrote; for integers their bits; for
            torch the model, and the dtype if it is not float32.
    """
    jobs: dict[str, Callable[..., int]] = {
        "sparse": _sparse,
        "integer": _integer,
        "torch": _torch,
    }
    began = jobs[job](*arguments)
    peak, files = memory("VmHWM"), memory("RssFile")

    import json

    print(json.dumps({"peak_bytes": peak, "tensor_bytes": peak - files - began}))


def _sparse(folder: str, stored_bits: str = "32") -> int:
    """Train the kept weights; return the anonymous memory before there were any."""
    from fedkit.engine.kernels import native
    from fedkit.engine.kernels.network import Network
    from fedkit.engine.sparse.program import SparseProgram

    inputs, targets = _batch(folder)
    began = memory("RssAnon")
    plan, masks = _pruned(folder)
    bits = int(stored_bits)
    network = Network(plan, masks, native.load_kernels())
    _fill(folder, plan, network.parameters, network.parameters.values)
    program = SparseProgram(network, "train", len(targets), stored_bits=bits)
    _take(sparse_step(program, inputs, targets))
    return began


def _integer(folder: str, bits: str) -> int:
    """Train the kept weights in integers."""
    from fedkit.engine.integer.engine import IntegerEngine
    from fedkit.engine.integer.integer_network import IntegerNetwork

    inputs, targets = _batch(folder)
    began = memory("RssAnon")
    plan, masks = _pruned(folder)
    engine = IntegerEngine(plan, bits=int(bits))
    network = IntegerNetwork(plan, masks, int(bits), engine.lanes)
    _fill(folder, plan, network.parameters, network.parameters.values)
    network.take_values()
    _take(integer_step(engine.program_of(network, "train", len(targets)), inputs, targets))
    return began


def _take(step: Callable[[], float]) -> None:
    for _ in range(STEPS):
        step()
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported into the process that trains without it")


def _pruned(folder: str) -> tuple[Plan, dict[str, NDArray[np.bool_]]]:
    from pathlib import Path

    import numpy as np

    from fedkit.engine.plan.plan import load_plan

    plan = load_plan(Path(folder, "model.plan"))
    with np.load(Path(folder, "kept.npz")) as kept:
        return plan, {
            name: _mask(kept[f"{name} positions"], plan.weights[name]) for name in plan.prunable
        }


def _fill(folder: str, plan: Plan, parameters: Parameters, values: NDArray[np.float32]) -> None:
    from pathlib import Path

    import numpy as np

    with np.load(Path(folder, "kept.npz")) as kept:
        for name in plan.weights:
            parameters.part(name, values)[:] = kept[name]


def _torch(folder: str, name: str, dtype: str = "float32") -> int:
    """Train the dense model; return the anonymous memory before there was one."""
    import torch

    from fedkit.nn.zoo import build_model

    torch.set_num_threads(1)
    inputs, targets = _batch(folder)
    _use_torch()
    began = memory("RssAnon")
    classes = int(targets.max()) + 1
    step = torch_step(build_model(name, inputs.shape[1:], classes), inputs, targets, dtype)
    for _ in range(STEPS):
        step()
    return began


def _use_torch() -> None:
    """Take a step of next to nothing, so that what torch imports on first use is there."""
    import numpy as np
    from torch import nn

    layers = (nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(1, 2))
    torch_step(nn.Sequential(*layers), np.zeros((2, 1, 1, 1), np.float32), np.arange(2))()


def _batch(folder: str) -> tuple[Inputs, Targets]:
    from pathlib import Path

    import numpy as np

    with np.load(Path(folder, "batch.npz")) as batch:
        return batch["inputs"], batch["targets"]


def _mask(positions: NDArray[np.int32], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    import numpy as np

    mask = np.zeros(shape, np.bool_)
    mask.reshape(-1)[positions] = True
    return mask


if __name__ == "__main__":
    main(*sys.argv[1:])
