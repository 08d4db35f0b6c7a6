"""Time a model in ExecuTorch: `infer_executorch_child.py MODEL.pt2 INPUTS.npy`.

It quantises the exported model to int8 by XNNPACK's quantiser, compiles it for XNNPACK, and prints
a JSON line with `artifact_bytes` and `ram_bytes`. Then, for each line with a number that it reads,
it prints the median microseconds of so many runs.

Nothing of fedkit is imported: ExecuTorch needs numpy 2, which tflite-runtime cannot take.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

_INSTANCES = 8
_WARM_UP = 5


def main(model: str, inputs: str) -> None:
    """Compile a .pt2, and start anew with the .pte: a compiler leaves memory behind."""
    if model.endswith(".pte"):
        run(model, inputs)
        return
    compiled = Path(model).with_suffix(".pte")
    compiled.write_bytes(_compiled(model, inputs))
    os.execv(sys.executable, [sys.executable, "-P", __file__, str(compiled), inputs])


def run(compiled: str, inputs: str) -> None:
    """Say what a compiled model takes, and time it as often as asked."""
    import numpy as np
    import torch
    from executorch.runtime import Runtime

    torch.set_num_threads(1)
    content, example = Path(compiled).read_bytes(), [torch.from_numpy(np.load(inputs)[:1])]
    runtime, kept = Runtime.get(), []
    before = 0
    for number in range(_INSTANCES + 1):
        program = runtime.load_program(content)
        kept.append((program, program.load_method("forward")))
        kept[-1][1].execute(example)
        if number == 0:
            before = _resident()
    _say({"artifact_bytes": len(content), "ram_bytes": (_resident() - before) // _INSTANCES})
    method = kept[0][1]
    for line in sys.stdin:
        times = [_time(method, example) for _ in range(_WARM_UP + int(line))]
        _say({"median_us": statistics.median(times[_WARM_UP:])})


def _compiled(model: str, inputs: str) -> bytes:
    import numpy as np
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    examples = torch.from_numpy(np.load(inputs))
    how = get_symmetric_quantization_config(is_per_channel=True)
    program = torch.export.load(model)
    prepared = prepare_pt2e(program.module(), XNNPACKQuantizer().set_global(how))
    for example in examples:
        prepared(example[None])
    exported = torch.export.export(convert_pt2e(prepared), (examples[:1],))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    return bytes(lowered.to_executorch().buffer)


def _time(method: Any, inputs: list[Any]) -> float:
    start = time.perf_counter_ns()
    method.execute(inputs)
    return (time.perf_counter_ns() - start) / 1000


def _resident() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def _say(what: dict[str, float]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
