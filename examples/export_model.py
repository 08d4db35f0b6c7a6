"""Export a torch model of your own as C: python examples/export_model.py FOLDER"""

import sys

import torch
from torch import nn

from edge.export import export_c99

torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
)
calibration = torch.rand(100, 1, 8, 8).numpy()  # use examples of what the model will see
saved = export_c99(model.eval(), calibration, sys.argv[1], provenance={"seed": 0}, name="model")
print(f"{saved.path}: {saved.size} bytes, arena of {saved.details['arena_bytes']} bytes")
