"""One device's client, measured from the inside; `fedkit.bench.client` runs it by its path.

Prints one JSON object. At the top it imports next to nothing, so that what is measured is the cost
of the client and not of this file.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING

from fedkit.bench.process import memory

if TYPE_CHECKING:
    from pathlib import Path

    from fedkit.engine.base import Engine

IMPORTS = {
    "torch": ("fedkit.flower.client_app", "fedkit.device.data", "fedkit.engine.torch"),
    "sparse": ("fedkit.flower.device_app",),
}
"""What the ClientApp of each kind of device imports before it can answer."""


def main(client: str, folder: str) -> None:
    """Import a client, train once, and print what that took.

    Args:
        client: A key of `IMPORTS`.
        folder: Holds what `fedkit.bench.client` writes for this process.
    """
    began = time.perf_counter()
    for name in IMPORTS[client]:
        import_module(name)
    seconds, idle = time.perf_counter() - began, memory("VmRSS")

    import json
    from pathlib import Path

    _train_round(client, Path(folder))
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    result = {
        "seconds_import": seconds,
        "idle_bytes": idle,
        "peak_bytes": memory("VmHWM"),
        "files": [file for file in files if file],
    }
    print(json.dumps(result))


def _train_round(client: str, folder: Path) -> None:
    """Answer one message to train, as a ClientApp does."""
    import pickle

    from fedkit.device.data import load_examples
    from fedkit.device.round import Device
    from fedkit.wire.messages import Packet

    config, request = pickle.loads((folder / "request.pickle").read_bytes())
    examples = load_examples(str(folder / "mine.npz"))
    engine = _torch_engine() if client == "torch" else _sparse_engine(folder / "model.plan")
    Device(0, examples, engine, config).handle("train", request, Packet({}))


def _torch_engine() -> Engine:
    from fedkit.engine.torch import TorchEngine
    from fedkit.nn.zoo import build_model
    from fedkit.tasks.task import cross_entropy

    return TorchEngine(build_model("resnet8", (3, 32, 32), 10), cross_entropy)


def _sparse_engine(plan: Path) -> Engine:
    from fedkit.engine.plan.plan import load_plan
    from fedkit.engine.sparse.engine import SparseEngine

    return SparseEngine(load_plan(plan))


if __name__ == "__main__":
    main(*sys.argv[1:])
