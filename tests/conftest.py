"""Set before any test module is imported: no test talks to the network or takes every core."""

from __future__ import annotations

import os

os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    RAY_USAGE_STATS_ENABLED="0",
)
