"""One device that answers recorded messages; `fedkit.bench.replay` runs it by its path.

Prints one JSON object. At the top it imports next to nothing, so that what is measured is the
device and not this file.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fedkit.bench.process import memory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from fedkit.config import RunConfig
    from fedkit.engine.base import Engine


def main(name: str) -> None:
    """Answer what the folder holds, and print the memory that took."""
    import json
    from pathlib import Path

    from fedkit.device.data import load_examples
    from fedkit.device.round import Device

    folder = Path(name)
    messages = _read(folder / "messages.pickle")
    config = next(messages)
    device = Device(0, load_examples(str(folder / "data.npz")), _engine(folder, config), config)
    idle = memory("VmRSS")
    for message in messages:
        device.handle(message.phase, message.request, message.memory)
        device.rest()  # as a real device does
    print(json.dumps({"idle_bytes": idle, "peak_bytes": memory("VmHWM")}))


def _read(path: Path) -> Iterator[Any]:
    """Yield the config, then each message when it is asked for: no two of them are held at once."""
    import pickle

    with path.open("rb") as file:
        while True:
            try:
                yield pickle.load(file)
            except EOFError:
                return


def _engine(folder: Path, config: RunConfig) -> Engine:
    """Return the engine of the plan beside the messages, or the task's on torch."""
    plan = folder / "model.plan"
    if plan.exists():
        from fedkit.core.heap import keep_small
        from fedkit.engine.plan.plan import load_plan
        from fedkit.engine.precision import plan_engine

        keep_small()  # as a real device does
        return plan_engine(
            load_plan(plan),
            config.precision,
            stored_bits=config.stored_bits,
            memory=config.memory_bytes,
        )
    from fedkit.engine.torch import TorchEngine
    from fedkit.tasks import load_task

    return TorchEngine.for_task(load_task(config.task), config.model, config.seed)


if __name__ == "__main__":
    main(*sys.argv[1:])
