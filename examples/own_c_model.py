"""A model of your own as C99 sources, compiled and compared: python examples/own_c_model.py"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge.export import export_c99
from edge.targets.c99.runner import CompiledRunner


def main() -> float:
    torch.manual_seed(0)
    pruned = nn.Conv2d(16, 32, 3, 2, padding=1)
    magnitudes = pruned.weight.detach().abs()
    pruned.weight.data[magnitudes < magnitudes.quantile(0.9)] = 0
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()),
        *(pruned, nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    ).eval()
    inputs = np.random.default_rng(0).standard_normal((100, 3, 32, 32)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        saved = export_c99(model, inputs, Path(folder) / "model", {"seed": 0})
        print(f"{len(saved.files)} files, arena of {saved.details['arena_bytes']} bytes")
        runner = CompiledRunner(saved.path)
        print(f"{runner.latency()['median_us']:.0f} us per image on this processor")
        found = runner.predict(inputs)
    expected = model(torch.from_numpy(inputs)).detach().numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    print(f"largest error {main():.1%} of the largest logit")
