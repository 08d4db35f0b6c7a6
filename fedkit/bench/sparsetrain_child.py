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
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from fedkit.engine.sparse.program import Program

    Inputs = NDArray[np.float32]
    Targets = NDArray[np.int64]

STEPS = 3
"""Steps that a process takes; the second is the first with momentum."""

RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4


def sparse_step(program: Program, inputs: Inputs, targets: Targets) -> Callable[[], float]:
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


def torch_step(model: nn.Module, inputs: Inputs, targets: Targets) -> Callable[[], float]:
    """Return what takes the same step of torch, dense and eager."""
    import torch

    model.train()
    sgd = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    loss_of = torch.nn.functional.cross_entropy
    batch, labels = torch.from_numpy(inputs), torch.from_numpy(targets)

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
        job: Who trains: `sparse` or `torch`.
        arguments: The folder that `fedkit.bench.sparsetrain` wrote, and for torch the model.
    """
    jobs: dict[str, Callable[..., int]] = {"sparse": _sparse, "torch": _torch}
    began = jobs[job](*arguments)
    peak, files = memory("VmHWM"), memory("RssFile")

    import json

    print(json.dumps({"peak_bytes": peak, "tensor_bytes": peak - files - began}))


def _sparse(folder: str) -> int:
    """Train the kept weights; return the anonymous memory before there were any."""
    from pathlib import Path

    import numpy as np

    from fedkit.engine.sparse import native
    from fedkit.engine.sparse.network import Network
    from fedkit.engine.sparse.plan import load_plan
    from fedkit.engine.sparse.program import Program

    inputs, targets = _batch(Path(folder))
    began = memory("RssAnon")
    plan = load_plan(Path(folder, "model.plan"))
    with np.load(Path(folder, "kept.npz")) as kept:
        masks = {
            name: _mask(kept[f"{name} positions"], plan.weights[name]) for name in plan.prunable
        }
        network = Network(plan, masks, native.load_kernels())
        for name in plan.weights:
            network.parameters.part(name, network.parameters.values)[:] = kept[name]
    step = sparse_step(Program(network, "train", len(targets)), inputs, targets)
    for _ in range(STEPS):
        step()
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported into the process that trains without it")
    return began


def _torch(folder: str, name: str) -> int:
    """Train the dense model; return the anonymous memory before there was one."""
    from pathlib import Path

    import torch

    from fedkit.nn.zoo import build_model

    torch.set_num_threads(1)
    inputs, targets = _batch(Path(folder))
    _use_torch()
    began = memory("RssAnon")
    classes = int(targets.max()) + 1
    step = torch_step(build_model(name, inputs.shape[1:], classes), inputs, targets)
    for _ in range(STEPS):
        step()
    return began


def _use_torch() -> None:
    """Take a step of next to nothing, so that what torch imports on first use is there."""
    import numpy as np
    from torch import nn

    layers = (nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(1, 2))
    torch_step(nn.Sequential(*layers), np.zeros((2, 1, 1, 1), np.float32), np.arange(2))()


def _batch(folder: Path) -> tuple[Inputs, Targets]:
    import numpy as np

    with np.load(folder / "batch.npz") as batch:
        return batch["inputs"], batch["targets"]


def _mask(positions: NDArray[np.int32], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    import numpy as np

    mask = np.zeros(shape, np.bool_)
    mask.reshape(-1)[positions] = True
    return mask


if __name__ == "__main__":
    main(*sys.argv[1:])
